"""Draws what a run did, on one page: python -m fsar_jax.report --workdir=runs/strm

This writes runs/strm/report/index.html, which needs no network and no second file, and beside it
every figure as PNG and as PDF: training curves, test accuracy, confusion matrix and classes. With
--against=RUN2 it compares the two, episode by episode and class by class. A figure that the run has
nothing for is left out, with one line. docs/report.md explains every figure.
"""

import argparse
import importlib.util
import pathlib
import sys

from fsar_jax.stopping import on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('figures that are finished are kept')

import numpy as np

from fsar_jax.evaluation.results import FILE, read_results
from fsar_jax.files import local_path
from fsar_jax.learner import create_learner
from fsar_jax.messages import one_line, printable
from fsar_jax.progress import METRICS_FILE, read_metrics
from fsar_jax.training.run_settings import run_config
from fsar_jax.training.state import schedules

EXTRA = {'matplotlib': 'matplotlib', 'sklearn': 'scikit-learn'}  # module: package


def main(arguments: list[str] | None = None) -> None:
    """Draws and writes the report that `arguments` ask for (None: those of the command line).

    Raises:
      ValueError, OSError: one line about a flag or the run.
    """
    parser = argparse.ArgumentParser(
        prog='python -m fsar_jax.report',
        description=__doc__.partition('\n\n')[2],
        allow_abbrev=False,
    )
    parser.add_argument('--workdir', required=True, help='workdir of the run')
    parser.add_argument('--against', help='workdir of another run, to compare with')
    parser.add_argument('--out', help='folder to write; default WORKDIR/report')
    args = parser.parse_args(arguments)
    check_extra()
    workdir = local_path(args.workdir, '--workdir')
    out = local_path(args.out, '--out') if args.out else workdir / 'report'
    other = local_path(args.against, '--against') if args.against else None

    from fsar_jax.analysis.run_report import facts, run_pictures, write_report

    run, against = read_run(workdir), read_run(other) if other else None
    if against is not None and against.name == run.name:
        run, against = run._replace(name=str(workdir)), against._replace(name=str(other))
    sections = [('Training and test', run_pictures(run, against))]
    page, notes = write_report(out, f'Report of {run.name}', facts(run), sections)
    for note in notes:
        print(f'note: left out: {printable(note, 1000)}', file=sys.stderr)
    print(page)


def check_extra() -> None:
    """Raises ValueError, one line, where what only this command needs is not installed."""
    missing = [EXTRA[name] for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f'report needs {" and ".join(missing)}, not installed here: '
            "pip install 'fsar_jax[report]', or in a checkout pip install -e '.[report]'"
        )


def read_run(workdir: pathlib.Path):
    """What the workdir of a run holds: a `fsar_jax.analysis.run_report.Run`.

    Raises:
      FileNotFoundError: nothing of a run.
      ValueError: a damaged file; one line that names it.
    """
    from fsar_jax.analysis.run_report import Run

    results = read_results(workdir) if (workdir / FILE).exists() else None
    metrics = read_metrics(workdir) if (workdir / METRICS_FILE).exists() else []
    try:
        config = run_config(workdir)
    except FileNotFoundError:
        if results is None and not metrics:
            raise
        config = None
    scheduled = {}
    if config is not None and metrics:
        count = config.train.num_steps
        for name, at in schedules(config, create_learner(config.model)).items():
            values = np.array([float(at(step)) for step in range(count)])
            scheduled[name.partition(' (')[0]] = values
    name = results['method'] if results else workdir.name
    return Run(name, results, metrics, scheduled, best_step(metrics))


def best_step(metrics: list[dict]) -> int | None:
    """The step with the best accuracy on val, the first of several; the last step without any."""
    val = [line for line in metrics if line.get('val_accuracy') is not None]
    if not val:
        return max((line['step'] for line in metrics), default=None)
    return max(val, key=lambda line: (line['val_accuracy'], -line['step']))['step']


if __name__ == '__main__':
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f'error: {one_line(error)}')
