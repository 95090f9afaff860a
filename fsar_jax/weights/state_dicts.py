"""Finds a state dict in the content of a file: the key it is under, and the prefix of its names.

Training codes save weights under keys of their own ('model', 'ema') and wrap the network in others,
which puts a prefix before every name ('module.', 'backbone.'). No such word is trusted: all dicts
of a file and all prefixes are tried, and the one that leaves exactly the expected names is taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fsar_jax.messages import listed, printable
from fsar_jax.weights.pickle_file import RESAVE, Opaque, UnreadTensor

# Where several dicts of a file fit, the first of these keys wins; then one of MAIN; then any other,
# such as an average of the weights (ema, teacher).
STATE_DICT_KEYS = ('model_state_dict', 'model_state', 'state_dict')
MAIN = ('model', 'net', 'network', 'module', 'params', 'weights')
# Wrappers that may stand anywhere in a name: what puts them there.
WRAPPERS = {
    'module': 'multi-GPU training',
    '_orig_mod': 'torch.compile',
    '_fsdp_wrapped_module': 'FSDP',
    '_forward_module': 'Lightning Fabric',
    '_checkpoint_wrapped_module': 'activation checkpointing',
}
WRAPPER = re.compile(rf'(?:^|(?<=\.))({"|".join(WRAPPERS)})\.')

MAX_NESTING = 6
MAX_DICTS = 2_000
MAX_PREFIXES = 20
MAX_NAMES = 20_000  # of one dict; a ResNet-50 has 320
MAX_NAME = 1_000  # characters


StateDicts = Mapping[tuple[str, ...], Mapping[str, Any]]  # by the keys that lead to each


class Names(NamedTuple):
    """The names of a model's state dict.

    Attributes:
      required: it must have all of these.
      known: whether it may have a name; true of the required ones.
    """

    required: list[str]
    known: Callable[[str], bool]


class Found(NamedTuple):
    """A state dict under plain names.

    Attributes:
      arrays: by plain name. Values that are not tensors are left out, unless a weight is expected
        there.
      notes: what was done to find it, one line each.
      place: the same, to end an error with: " (under 'ema')".
    """

    arrays: dict[str, Any]
    notes: list[str]
    place: str


def state_dicts(content: Any, path: str | os.PathLike) -> dict[tuple[str, ...], dict[str, Any]]:
    """{keys that lead to it: dict} of every dict with arrays in what `read_torch` returned,
    outermost first.

    Raises:
      ValueError: there is none. One line that names the file and says what it holds.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(MAX_NESTING):
        below: list[tuple[tuple[str, ...], Any]] = []
        for where, node in level:
            if not isinstance(node, dict) or id(node) in seen or len(seen) > MAX_DICTS:
                continue
            seen.add(id(node))
            if any(_is_tensor(value) for value in node.values()):
                found[where] = node
            below += [
                ((*where, str(key)), value)
                for key, value in node.items()
                if isinstance(value, dict)
            ]
        level = below
    if found:
        return found
    if isinstance(content, Opaque):
        holds = (
            f"it holds an object of class '{printable(content.name)}', which only its own code "
            f"can load: {RESAVE}"
        )
    elif isinstance(content, np.ndarray):
        holds = 'it holds a tensor without a name'
    elif not isinstance(content, dict):
        holds = f'it holds a {type(content).__name__}'
    elif not content:
        holds = 'it is empty'
    else:
        objects = [
            f'{key} ({value.name})' for key, value in content.items() if type(value) is Opaque
        ]
        holds = f'its keys are {listed(content)}'
        if objects:
            holds += f'; objects, which only their own code can load: {listed(objects)}: {RESAVE}'
    raise ValueError(
        f'{printable(path, 1000)}: no state dict inside: {holds}; expected arrays by name, or one '
        f'of {", ".join((*STATE_DICT_KEYS, *MAIN))} with them'
    )


def pick_state_dict(content: Any, path: str | os.PathLike) -> dict[str, Any]:
    """The state dict in what `read_torch` returned, whatever names it has: the one under the first
    of STATE_DICT_KEYS, else the content itself, else the only one there is.

    Raises:
      ValueError: there is none, or there are several and none is the obvious one.
    """
    found = {where: node for where, node in state_dicts(content, path).items() if len(where) < 2}
    usual = [where for where in found if where and where[0] in STATE_DICT_KEYS]
    if usual:
        return found[min(usual, key=lambda where: STATE_DICT_KEYS.index(where[0]))]
    if () in found:
        return found[()]
    best = _best(found or state_dicts(content, path))
    if len(best) > 1:
        raise ValueError(f'{printable(path, 1000)}: {_several(best)}')
    return (found or state_dicts(content, path))[best[0]]


def find_names(candidates: StateDicts, names: Names) -> Found:
    """The one of `state_dicts` that has `names` once wrappers are removed; if none does, the
    closest one.

    Raises:
      ValueError: several fit and none is the obvious one, or one has the same name twice.
    """
    plain = {where: _plain(node, names) for where, node in candidates.items()}
    fits = {where: found for where, (found, fit, _) in plain.items() if fit}
    if not fits:
        present = lambda item: sum(name in item[1][0].arrays for name in names.required)
        where, (found, _, twice) = max(plain.items(), key=present)
        if twice:
            raise ValueError(twice)
        return found._replace(place=_place(where, found.place))
    best = _best(fits)
    if len(best) > 1:
        raise ValueError(_several(best))
    found, others = fits[best[0]], [where for where in fits if where != best[0]]
    notes = list(found.notes)
    if others:
        taken = (
            f"the weights under '{_dotted(best[0])}', the model itself by its name,"
            if best[0]
            else 'the outermost weights'
        )
        notes.insert(
            0, f'took {taken} and not those under {listed(map(_dotted, others))}, which fit too'
        )
    elif best[0] and best[0][-1] not in STATE_DICT_KEYS:
        notes.insert(0, f"took the weights under '{_dotted(best[0])}'")
    return found._replace(notes=notes, place=_place(best[0], found.place))


def _best(places: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The most obvious of these: the outermost dict, then by STATE_DICT_KEYS, then MAIN, then the
    rest; several of equal rank."""
    order = {key: rank for rank, key in enumerate(STATE_DICT_KEYS)}
    order |= dict.fromkeys(MAIN, len(STATE_DICT_KEYS))
    last = len(STATE_DICT_KEYS) + 1
    rank = lambda where: max((order.get(key, last) for key in where), default=-1)
    places = list(places)
    first = min(map(rank, places))
    return [where for where in places if rank(where) == first]


def _several(places) -> str:
    return (
        f'several state dicts fit: {listed(map(_dotted, places))}: save the one that you mean '
        'alone, torch.save(torch.load("this file", '
        f'map_location="cpu")[{printable(places[0][0])!r}], "weights.pth")'
    )


def _dotted(where):
    return '.'.join(printable(key, 60) for key in where)


def _place(where, place):
    return (
        f" (under '{_dotted(where)}')" if where and where[-1] not in STATE_DICT_KEYS else ''
    ) + place


def _is_tensor(value):
    return isinstance(value, (np.ndarray, jax.Array, UnreadTensor))


def _beside(value):
    """Whether a value may lie beside the weights without being one: text, numbers, objects, and
    arrays of one integer (n_averaged, step)."""
    if isinstance(value, (np.ndarray, jax.Array)):
        return value.size == 1 and value.dtype.kind in 'iub'
    plain = (bool, int, float, complex, str, bytes, list, tuple, dict, set, np.generic)
    return value is None or isinstance(value, plain) or type(value) is Opaque


def _plain(state_dict, names):
    """What is found in one dict, whether its names are exactly `names`, and an error where it has a
    name twice."""
    arrays, removed = {}, dict.fromkeys(WRAPPERS, 0)
    for name, value in state_dict.items():
        plain = name = str(name)
        if len(name) < MAX_NAME:
            for wrapper in set(WRAPPER.findall(name)):
                removed[wrapper] += 1
            plain = WRAPPER.sub('', name)
        if plain in arrays:
            wrapper = next((wrapper for wrapper in WRAPPERS if removed[wrapper]), 'module')
            return (
                Found(arrays, [], ''),
                False,
                f"the state dict has '{printable(plain)}' twice, with and without '{wrapper}.'",
            )
        arrays[plain] = value
    notes = [
        f"removed '{wrapper}.' of {reason} from {removed[wrapper]} of {len(arrays)} names"
        for wrapper, reason in WRAPPERS.items()
        if removed[wrapper]
    ]

    def without(prefix):
        inside = {name.removeprefix(prefix): value for name, value in arrays.items()}
        if len(inside) < len(arrays):  # two would have one name
            return None
        inside = {
            name: value for name, value in inside.items() if names.known(name) or not _beside(value)
        }
        if not prefix:
            return Found(inside, notes, '')
        count = sum(name.startswith(prefix) for name in arrays)
        return Found(
            inside,
            [*notes, f"removed '{printable(prefix)}' from {count} of {len(arrays)} names"],
            f" (without '{printable(prefix)}')",
        )

    def missing(prefix):
        return sum(
            prefix + name not in arrays and (name not in arrays or name.startswith(prefix))
            for name in names.required
        )

    lacking = {prefix: missing(prefix) for prefix in _prefixes(arrays, names)}
    whole = [prefix for prefix in lacking if not lacking[prefix]]
    for prefix in whole:
        found = without(prefix)
        if found and all(map(names.known, found.arrays)):
            return found, True, None
    twice = None
    # A larger network of the family has all names, and more blocks before the ends of some.
    whole = [p for p in whole if all(p + name in arrays for name in names.required)]
    if len(whole) > 1 and names.required:
        after = listed(repr(prefix) for prefix in whole)
        twice = (
            f'the names of the model are there {len(whole)} times, after {after}: keep only those '
            'that you mean'
        )
    return without(min(lacking, key=lacking.__getitem__)) or without(''), False, twice


def _prefixes(arrays, names):
    """The prefixes to try: whatever stands before the first or the last required name in any name;
    '' first, then the shortest."""
    if not names.required or len(arrays) > MAX_NAMES:
        return ['']
    ends = {names.required[0], names.required[-1]}
    found = {name[: -len(end)] for name in arrays for end in ends if name.endswith(f'.{end}')}
    return ['', *sorted(found, key=lambda prefix: (len(prefix), prefix))[:MAX_PREFIXES]]
