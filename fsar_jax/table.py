"""Prints a table of many runs: python -m fsar_jax.table runs/*/results.json

One row for each method, dataset, way and shot. Runs that differ in the seed alone are averaged;
results of a run that was not over have a row of their own, named after their checkpoint.
Each accuracy has two numbers beside it: the spread over seeds (the standard deviation of the runs),
which says how far another training run would move it, and the 95% interval over episodes, which
says how far another draw of test episodes would. The last column is the difference to the first
row, paired by episode; a star means that its interval excludes 0. Compare it with the spread over
seeds before you believe it.
"""

import sys

from fsar_jax.stopping import errors_in_one_line, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('nothing was changed')

from fsar_jax.arguments import Parser
from fsar_jax.evaluation.results import read_results
from fsar_jax.evaluation.table import as_latex, as_markdown, table


def main(arguments: list[str] | None = None) -> None:
    """Prints the table that `arguments` ask for (None: those of the command line). Notes about it
    go to stderr, so that the table alone can be redirected to a file.

    Raises:
      ValueError, OSError: one line about a file or a flag.
    """
    parser = Parser(prog='python -m fsar_jax.table', description=__doc__)
    parser.add_argument('results', nargs='+', help='results.json files, or the workdirs of runs')
    parser.add_argument(
        '--against',
        help='the method to compare with, or the whole name of a row; default: the first row',
    )
    parser.add_argument('--latex', action='store_true', help='LaTeX in place of Markdown')
    args = parser.parse(arguments)
    rows, notes = table({path: read_results(path) for path in args.results}, args.against)
    print(as_latex(rows) if args.latex else as_markdown(rows))
    for note in notes:
        print(f'note: {note}', file=sys.stderr)


if __name__ == '__main__':
    with errors_in_one_line():
        main()
