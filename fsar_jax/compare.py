"""Compares evaluations in pairs: python -m fsar_jax.compare a/results.json b/results.json

With more than two files, each is compared with the first. An episode that is easy for one method is
usually easy for another. The difference per episode removes this shared part, so its interval is
narrower than the two separate intervals suggest.
"""

import sys

from fsar_jax.stopping import errors_in_one_line, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('nothing was changed')

from fsar_jax.evaluation.compare import paired_difference
from fsar_jax.evaluation.results import read_results
from fsar_jax.messages import one_line, printable

USAGE = 'usage: python -m fsar_jax.compare a/results.json b/results.json [more ...]'


def main(paths: list[str]) -> int:
    """Prints one line per file and one per difference.

    Returns:
      The exit status: 0, or for bad input 2, with one line on stderr.
    """
    if paths and paths[0] in ('-h', '--help'):
        print(f'{USAGE}\n\n{__doc__.split(chr(10), 2)[2].strip()}')
        return 0
    for path in paths:
        if path.startswith('-'):
            print(f'error: unknown flag {printable(path)} ({USAGE})', file=sys.stderr)
            return 2
    if len(paths) < 2:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        runs = [read_results(path) for path in paths]
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
    with errors_in_one_line():
        sys.exit(main(sys.argv[1:]))
