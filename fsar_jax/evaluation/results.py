"""From per-episode counts to results.json.

The file holds no dates, so a repeated evaluation writes the same bytes except under 'seconds'. It
is strict JSON: a value that does not exist is null, never NaN.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fsar_jax.config import SETTINGS, flatten
from fsar_jax.fields import Setting
from fsar_jax.files import local_path, read_json, write_whole
from fsar_jax.mesh import float32_products
from fsar_jax.messages import listed, printable

FILE = 'results.json'
PUBLISHED = 'published weights, '  # 'selected_on' begins so, and ends with the file's name


def accuracy_with_interval(
    correct: Sequence[int] | np.ndarray, queries: int
) -> tuple[float, float]:
    """Mean accuracy over episodes and the half-width of its 95% interval, both as fractions.

    The half-width is 1.96 · σ / sqrt(E), σ the standard deviation of the E episode accuracies with
    divisor E: the convention of the published few-shot numbers. It says how far another draw of
    episodes from the same clips would move the mean, not how far another training run would.

    Args:
      correct: int [E], right answers per episode.
      queries: Q, queries of an episode.
    """
    accuracies = np.asarray(correct, np.float64) / queries
    return float(accuracies.mean()), float(1.96 * accuracies.std() / np.sqrt(len(accuracies)))


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [C, C]: row, the true class; column, the answer. `truth`, `predicted`: ints of one
    shape, any."""
    pairs = np.asarray(truth).ravel().astype(np.int64) * num_classes + np.asarray(predicted).ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def versions() -> dict[str, str | None]:
    """Of python, jax, flax, numpy and fsar_jax (None when it is used without being installed)."""
    found: dict[str, str | None] = {'python': platform.python_version()}
    for name in ('jax', 'flax', 'numpy', 'fsar_jax'):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def computed_on() -> dict[str, str]:
    """{'device': its kind, 'float32_products': see fsar_jax.mesh.float32_products}."""
    device = jax.devices()[0]
    return {'device': device.device_kind, 'float32_products': float32_products(device)}


def file_name(results: dict, changed: dict) -> str:
    """results.json, or results_<split>.json for another split than test.

    What is not as in the run, `changed` {'episode.shot': 2}, makes it results.shot=2.json, so that
    it lies beside the results of the run. At most 170 characters, which any file system takes.
    """
    keys, suffix = flatten(results['config']), ''
    for key, value in changed.items():
        known = SETTINGS.get(key, Setting(None))
        if known.affects == 'list' and value:
            value = f"{pathlib.Path(value).stem}-{results['episodes_hash'][:8]}"
        if not known.names_file:
            suffix += f'.{short_key(key, keys)}={value}'
    name = re.sub(r'[^\w.,=+-]', '-', suffix, flags=re.ASCII)
    if len(name) > 140:
        name = f'{name[:130]}-{hashlib.sha256(suffix.encode()).hexdigest()[:8]}'
    return f"{file_stem(results['split'])}{name}.json"


def file_stem(split: str) -> str:
    """'results' for the test split, 'results_val' for val."""
    return 'results' if split == 'test' else f'results_{split}'


def short_key(key: str, keys) -> str:
    """The last part of a key, or as many as tell it from the other keys: 'shot', but
    'eval.query'."""
    parts = key.split('.')
    endings = ('.'.join(parts[-n:]) for n in range(1, len(parts)))
    return next(
        (e for e in endings if sum(other == e or other.endswith(f'.{e}') for other in keys) == 1),
        key,
    )


def write_results(
    workdir: str | os.PathLike[str], results: dict, changed: dict | None = None
) -> pathlib.Path:
    """Writes workdir/results.json, or the file that `file_name` names, and returns its path.

    Only process 0 writes. Lists of numbers take one line each.

    Raises:
      ValueError: a value that strict JSON does not have, such as NaN; it names the key.
      OSError: with the path.
    """
    path = pathlib.Path(workdir) / file_name(results, changed or {})
    _, wrong = with_nulls(results)
    if wrong:
        raise ValueError(
            f'{path} is not written, NaN and infinity are not JSON compliant: {listed(wrong)}'
        )
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f'  {json.dumps(key)}: {_dump(value)}' for key, value in results.items()]
        write_whole(path, '{\n' + ',\n'.join(lines) + '\n}\n')
    return path


def with_nulls(tree: Any, prefix: str = '') -> tuple[Any, list[str]]:
    """A tree of dicts and lists with None for each float that is not finite, and where those were:
    ['aem.after']."""
    if isinstance(tree, (dict, list, tuple)):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        found = {key: with_nulls(value, f'{prefix}{key}.') for key, value in items}
        values = {key: value for key, (value, _) in found.items()}
        return values if isinstance(tree, dict) else list(values.values()), [
            name for _, names in found.values() for name in names
        ]
    wrong = isinstance(tree, float) and not math.isfinite(tree)
    return (None, [prefix.rstrip('.')]) if wrong else (tree, [])


def read_results(path: str | os.PathLike[str]) -> dict:
    """Reads results.json, or the one in a directory, and checks that its numbers can be those of an
    evaluation.

    Raises:
      FileNotFoundError, ValueError, OSError: absent, not a results file, or one that contradicts
        itself; one line.
    """
    path = local_path(path, 'the results file')
    path = path / FILE if path.is_dir() else path
    shown = printable(path, 1000)
    if not path.exists():
        raise FileNotFoundError(f'{shown}: no such file, evaluate that run first')
    try:
        results = read_json(path, 'evaluate that run again')
    except ValueError as error:
        raise ValueError(
            f'{shown}: not a results file (it {str(error).removeprefix(shown).strip()})'
        ) from None
    needed = (
        'method',
        'dataset',
        'split',
        'accuracy',
        'ci95',
        'num_episodes',
        'queries',
        'episodes_hash',
        'correct',
    )
    missing = [key for key in needed if not isinstance(results, dict) or key not in results]
    if missing:
        raise ValueError(f'{shown}: not a results file, it has no {", ".join(missing)}')
    wrong = contradiction(results)
    if wrong:
        raise ValueError(
            f'{shown}: {wrong}: not as an evaluation writes it, evaluate that run again'
        )
    return results


def contradiction(results: dict) -> str:
    """What in the content of a results file cannot be, in words; '' where all fits together."""
    shown = lambda value: printable(json.dumps(value), 60)
    for key in ('method', 'dataset', 'split', 'episodes_hash'):
        if not isinstance(results[key], str):
            return f"'{key}' is {shown(results[key])}, not a text"
    for key in ('num_episodes', 'queries'):
        if not _whole(results[key]) or not 1 <= results[key] < 2**31:
            return f"'{key}' is {shown(results[key])}, not a whole number, at least 1"
    correct, queries = results['correct'], results['queries']
    if not isinstance(correct, list) or not correct:
        return f"'correct' is {shown(correct)}, not a list of each episode's right answers"
    for episode, value in enumerate(correct):
        if not _whole(value) or not 0 <= value <= queries:
            return (
                f"'correct' has {shown(value)} in episode {episode}, not a whole number from 0 to "
                f'its {queries} queries'
            )
    if len(correct) != results['num_episodes']:
        return f"'correct' has {len(correct)} entries, 'num_episodes' is {results['num_episodes']}"
    for key, right in zip(('accuracy', 'ci95'), accuracy_with_interval(correct, queries)):
        value = results[key]
        if not _is_number(value) or not right - 1e-6 <= value <= right + 1e-6:
            return f"'{key}' is {shown(value)}, 'correct' gives {right:.6f}"
    chance = results.get('chance', 0.0)
    if not _is_number(chance) or not 0 <= chance <= 1:
        return f"'chance' is {shown(chance)}, not a number from 0 to 1"
    for key in ('way', 'shot'):
        if ('way' in results or 'shot' in results) and not _whole(results.get(key)):
            return f"'{key}' is {shown(results.get(key))}, not a whole number"
    notes = results.get('trained_on') or {}
    if not isinstance(notes, dict) or not all(isinstance(note, dict) for note in notes.values()):
        return f"'trained_on' is {shown(notes)}, not what is noted of each split"
    return _class_contradiction(results)


def _class_contradiction(results: dict) -> str:
    """The same for what it says of the classes, which older files lack."""
    classes, confusion = results.get('classes') or [], results.get('confusion') or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "'classes' is not a list of names"
    is_row = lambda row: (
        isinstance(row, list) and len(row) == len(classes) and all(map(_whole, row))
    )
    if not isinstance(confusion, list) or not all(map(is_row, confusion)):
        return (
            f"'confusion' has rows that are not one number for each of the {len(classes)} classes"
        )
    if confusion and len(confusion) != len(classes):
        return f"'confusion' has {len(confusion)} rows, 'classes' has {len(classes)} names"
    per_class = results.get('per_class') or {}
    is_fraction = lambda x: type(x) in (int, float) and 0 <= x <= 1
    if not isinstance(per_class, dict) or not all(
        value is None or is_fraction(value) for value in per_class.values()
    ):
        return "'per_class' is not an accuracy, or null, for each class"
    return ''


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _dump(value) -> str:
    # The lists are long (10,000 episodes) and are data; the rest is for reading.
    if isinstance(value, dict):
        return json.dumps(value, indent=2, allow_nan=False).replace('\n', '\n  ')
    if isinstance(value, list) and value and isinstance(value[0], list):
        return (
            '[\n    ' + ',\n    '.join(json.dumps(row, allow_nan=False) for row in value) + '\n  ]'
        )
    return json.dumps(value, allow_nan=False)
