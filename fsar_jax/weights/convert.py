"""Turns published arrays into Flax variables, once every name, shape and value is right.

Whatever is missing, unknown or of another shape is an error, and one error lists all of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from fsar_jax.messages import listed, printable
from fsar_jax.weights.entries import TRANSFORMS, Entry, Shape
from fsar_jax.weights.pickle_file import Opaque
from fsar_jax.weights.state_dicts import MAX_NAME


def convert(
    arrays: Mapping[str, Any],
    entries: Mapping[str, Entry],
    unused: str,
    notes: Iterable[str] = (),
    place: str = '',
) -> dict[str, Any]:
    """Published arrays → {'params': …, 'batch_stats': …}, float32.

    Args:
      arrays: {published name: array}, and what else the state dict holds.
      entries: all arrays that the model needs.
      unused: regular expression of the names that may be there without a use.
      notes: warnings to log once everything fits.
      place: where in its file the state dict lies, to end an error with.

    Raises:
      ValueError: one line that lists all missing, unknown and mis-shaped arrays, or all with values
        that no weight has.
    """
    check_names(arrays, entries, unused, place)
    _check_values(arrays, entries, place)
    for note in notes:
        logging.warning('fsar_jax.weights: %s', note)
    variables: dict[str, Any] = {}
    for name, entry in entries.items():
        *parents, leaf = entry.path.split('/')
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        array = np.asarray(arrays[name]).astype(np.float32, copy=False)
        node[leaf] = jnp.asarray(TRANSFORMS[entry.transform].array(array))
    variables.setdefault('params', {})
    return variables


def name_matches(pattern: str, name: str) -> bool:
    """Whether the whole name matches; a name too long for any weight never does."""
    return len(name) < MAX_NAME and re.fullmatch(pattern, name) is not None


def is_array(value: object) -> TypeGuard[np.ndarray | jax.Array]:
    """Whether a value of a state dict is an array of numbers."""
    return (
        isinstance(value, (np.ndarray, np.generic, jax.Array)) and value.dtype.kind not in 'OSUMm'
    )


def check_names(
    arrays: Mapping[str, Any], entries: Mapping[str, Entry], unused: str, place: str
) -> None:
    """ValueError, one line, unless the arrays have the names and shapes of the entries, and besides
    these only names that match `unused`."""
    unknown = [name for name in arrays if name not in entries and not name_matches(unused, name)]
    missing = [name for name in entries if name not in arrays]
    wrong = [
        name
        for name, entry in entries.items()
        if name in arrays and not _fits(arrays[name], entry.shape)
    ]
    expected: Callable[[str], str] = lambda name: _shape_text(entries[name].shape)
    found: Callable[[str], str] = lambda name: _value_text(arrays[name])
    problems = {
        'missing': [f'{name} {expected(name)}' for name in missing],
        'unknown': [f'{name} {found(name)}' for name in unknown],
        'mis-shaped': [f'{name} expected {expected(name)} found {found(name)}' for name in wrong],
    }
    if any(problems.values()):
        raise ValueError(
            'the state dict is not one of the model that config.model describes: '
            f'{_problems_text(problems)}{place}'
        )


def _check_values(arrays: Mapping[str, Any], entries: Mapping[str, Entry], place: str) -> None:
    """Refuses what no training leaves behind, before it becomes silent wrong numbers."""
    types: list[str] = []
    broken: list[str] = []
    large: list[str] = []
    negative: list[str] = []
    for name, entry in entries.items():
        array = np.asarray(arrays[name])
        if not jnp.issubdtype(array.dtype, jnp.floating):
            types.append(f'{name} ({array.dtype.name})')
            continue
        with np.errstate(over='ignore'):
            values = array.astype(np.float32, copy=False)
        count = values.size - np.count_nonzero(np.isfinite(values))
        if count:
            beyond = array.dtype.itemsize > 4 and np.isfinite(array).all()
            (large if beyond else broken).append(f'{name} ({count:,} of {values.size:,} values)')
        elif re.fullmatch('batch_stats/.*/var', entry.path) and (values < 0).any():
            negative.append(f'{name} ({np.min(values):.3g})')
    problems = {
        'of a type that no weight has': types,
        'with NaN or infinite values': broken,
        'beyond the range of float32': large,
        'with a negative running variance': negative,
    }
    if any(problems.values()):
        raise ValueError(
            f'the state dict has weights that no model can use: {_problems_text(problems)}: its '
            'training failed, or the file is damaged or was converted wrongly: take another '
            f'checkpoint{place}'
        )


def _problems_text(problems: Mapping[str, list[str]]) -> str:
    return '; '.join(
        f'{len(names)} {kind}: {listed(names)}' for kind, names in problems.items() if names
    )


def _fits(value: object, shape: Shape) -> bool:
    return (
        is_array(value)
        and value.ndim == len(shape)
        and all(size in (None, found) for size, found in zip(shape, value.shape))
    )


def _shape_text(shape: Shape) -> str:
    return '[' + ', '.join('?' if size is None else str(size) for size in shape) + ']'


def _value_text(value: object) -> str:
    if isinstance(value, Opaque):
        return printable(value.name)
    return _shape_text(value.shape) if is_array(value) else type(value).__name__
