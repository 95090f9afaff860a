"""Paired comparison of evaluations: python -m fsar_jax.evaluation.compare a/results.json b/results.json

With more than two files, each is compared with the first. Methods that face the same episodes share
most of the luck of the draw; the difference per episode removes it, so its interval is narrower
than the two separate ones suggest.
"""

import sys
from typing import NamedTuple

import numpy as np

from fsar_jax.evaluation import results
from fsar_jax.messages import one_line, printable

_USAGE = 'usage: python -m fsar_jax.evaluation.compare a/results.json b/results.json [more ...]'


class PairedDifference(NamedTuple):
    """Accuracy of the second minus the first (a fraction), half-width of its 95% interval,
    episodes."""

    difference: float
    ci95: float
    num_episodes: int


def paired_difference(first: dict, second: dict) -> PairedDifference:
    """Mean over E episodes of (accuracy of `second` − accuracy of `first`), ± 1.96 · σ / sqrt(E) of
    these.

    Args:
      first, second: contents of two results.json.

    Raises:
      ValueError: they were not measured on the same episodes; one line that says in what they
        differ.
    """
    for key in ('dataset', 'split', 'num_episodes', 'queries', 'episodes_hash'):
        if first[key] != second[key]:
            raise ValueError(
                f'not the same episodes: {key} is {printable(first[key])} in one and '
                f'{printable(second[key])} in the '
                f'other; evaluate both with the same dataset, split, seed, way, shot and '
                f'num_episodes, or with one episodes_file'
            )
    a, b = (np.asarray(r['correct'], np.float64) / r['queries'] for r in (first, second))
    if len(a) != len(b):
        raise ValueError(
            f"not the same episodes: 'correct' has {len(a)} entries in one, {len(b)} in another"
        )
    difference = b - a
    half_width = 1.96 * difference.std() / np.sqrt(len(difference))
    return PairedDifference(float(difference.mean()), float(half_width), len(difference))


def main(paths: list[str]) -> int:
    """Prints a line per file and one per difference. Returns 0; for bad input 2, with one line on
    stderr."""
    if len(paths) < 2 or any(path.startswith('-') for path in paths):
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        runs = [results.read_results(path) for path in paths]
        differences = []
        for path, run in zip(paths[1:], runs[1:]):
            try:
                differences.append(paired_difference(runs[0], run))
            except ValueError as error:
                raise ValueError(
                    f'{printable(paths[0], 1000)} and {printable(path, 1000)}: {error}'
                ) from None
    except (ValueError, OSError) as error:
        print(one_line(error), file=sys.stderr)
        return 2
    for number, (path, run) in enumerate(zip(paths, runs), 1):
        print(
            f'[{number}]  {_percent(run["accuracy"])} ± {_percent(run["ci95"])}  '
            f'{printable(run["method"])}  {printable(path, 1000)}'
        )
    for number, paired in enumerate(differences, 2):
        verdict = 'excludes' if abs(paired.difference) > paired.ci95 else 'includes'
        print(
            f'[{number}] − [1]  {100 * paired.difference:+.2f} ± {100 * paired.ci95:.2f} points, '
            f'paired over {paired.num_episodes} episodes: the interval {verdict} 0'
        )
    return 0


def _percent(fraction: float) -> str:
    return f'{100 * fraction:.2f}%'


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
