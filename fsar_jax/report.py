"""Draws what a run did, on one page: python -m fsar_jax.report --workdir=runs/strm

This writes WORKDIR/report/index.html, which needs no network and no second file, and beside it
every figure as PNG and as PDF: training curves, test accuracy, confusion matrix, classes; for some
test episodes the frames that the method compares, where it looks and how it aligns; and t-SNE of
features. With --against=RUN2 it compares the two, episode by episode and class by class. A figure
that the run has nothing for is left out, with one line. docs/report.md explains every figure.
"""

from __future__ import annotations

import importlib.util
import itertools
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fsar_jax.stopping import errors_in_one_line, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('figures that are finished are kept')

import numpy as np

from fsar_jax.arguments import Parser
from fsar_jax.config import resolve_paths
from fsar_jax.data.episodes import episodes_hash
from fsar_jax.evaluation.evaluate import TrainedModel, episodes_of
from fsar_jax.evaluation.results import FILE, read_results
from fsar_jax.files import check_output_folder, local_path
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.messages import one_line, printable
from fsar_jax.named_arrays import params_hash
from fsar_jax.progress import METRICS_FILE, Progress, read_metrics
from fsar_jax.training.inputs import open_split
from fsar_jax.training.run_settings import run_config
from fsar_jax.training.selected import best_of_run, step_in
from fsar_jax.training.state import schedules

if TYPE_CHECKING:  # they need the extra, which `main` checks first
    from fsar_jax.analysis.looking import Subject
    from fsar_jax.analysis.run_report import Picture, Run

EXTRA = {'matplotlib': 'matplotlib', 'sklearn': 'scikit-learn'}  # module: package


def main(arguments: list[str] | None = None) -> None:
    """Draws and writes the report that `arguments` ask for (None: those of the command line).

    Raises:
      ValueError, OSError: one line about a flag or the run.
    """
    parser = Parser(prog='python -m fsar_jax.report', description=__doc__)
    parser.add_argument('--workdir', required=True, help='workdir of the run')
    parser.add_argument('--against', help='workdir of another run, to compare with')
    parser.add_argument(
        '--episodes',
        default='4',
        help="how many test episodes to look into, the hardest ones; or which: '3,17', and '3,' "
        'for one. Default %(default)s; 0 for none',
    )
    parser.add_argument('--dir', help='folder of the built datasets; default that of the run')
    parser.add_argument('--out', help='folder to write; default WORKDIR/report')
    args = parser.parse(arguments)
    asked = parse_episodes(args.episodes)
    check_extra()
    workdir = local_path(args.workdir, '--workdir')
    out = workdir / 'report' if args.out is None else local_path(args.out, '--out')
    other = None if args.against is None else local_path(args.against, '--against')
    if args.out or workdir.is_dir():  # else there is no such run, which is said below
        check_output_folder(out, '--out')

    from fsar_jax.analysis.run_report import facts, run_pictures, write_report

    run, against = read_run(workdir), read_run(other) if other else None
    if against is not None and against.name == run.name:
        run, against = run._replace(name=str(workdir)), against._replace(name=str(other))
    if run.results:  # before the first picture is drawn
        check_asked(asked, len(run.results['correct']), workdir)
    first = ('Training and test', run_pictures(run, against))
    rest = episode_parts(workdir, run, other, against, asked, args.dir)
    page, notes = write_report(
        out, f'Report of {run.name}', facts(run), itertools.chain([first], rest)
    )
    for note in notes:
        print(f'note: left out: {printable(note, 1000)}', file=sys.stderr)
    print(page)


def parse_episodes(given: str) -> int | list[int]:
    """The value of --episodes: '20', how many; '3,17' or '3,', which.

    Raises:
      ValueError: it is neither; one line.
    """
    numbers = [number.strip() for number in given.split(',')]
    if not re.fullmatch(r'[0-9]{1,9}( *, *[0-9]{1,9})* *,? *', given.strip()):
        raise ValueError(
            f"--episodes={printable(given)} is neither a number of episodes, such as 20, nor a "
            "list of them, such as 3,17"
        )
    if len(numbers) == 1:
        return int(numbers[0])
    return list(dict.fromkeys(int(number) for number in numbers if number))


def check_asked(asked: int | list[int], count: int, workdir: pathlib.Path) -> None:
    """ValueError where an episode is asked for by number that is not one of `count`."""
    if isinstance(asked, list) and max(asked) >= count:
        raise ValueError(
            f'--episodes={",".join(map(str, asked))}: the test episodes of '
            f'{printable(workdir, 1000)} are 0 to {count - 1}'
        )


def episode_parts(
    workdir: pathlib.Path,
    run: Run,
    other: pathlib.Path | None,
    against: Run | None,
    asked: int | list[int],
    data_dir: str | None,
) -> Iterator[tuple[str, Iterable[Picture | str]]]:
    """The sections that look into episodes, and one with a line where that cannot be done.

    Args:
      workdir, run: of the run; other, against: of the one to compare with, or None.
      asked: of `parse_episodes`.
      data_dir: of --dir, or None.
    """
    if asked == 0:
        return
    from fsar_jax.analysis.episode_pictures import episode_sections
    from fsar_jax.analysis.looking import hardest

    try:
        subject = open_subject(workdir, run, data_dir)
    except (ValueError, OSError) as error:
        yield 'Episodes', [f'what happens inside episodes: {one_line(error)}']
        return
    count = len(subject.episodes)
    if isinstance(asked, list):
        numbers = asked
        check_asked(asked, count, workdir)
    else:
        numbers = hardest(run.results['correct'] if run.results else [0] * count, asked)
        if not run.results:
            yield 'Episodes', ['the hardest episodes: nothing was tested, so the first are shown']
    beside = None
    if against is not None and other is not None:
        try:
            beside = open_subject(other, against, data_dir)
            check_same_episodes(subject, beside)
        except (ValueError, OSError) as error:
            beside = None
            yield 'Episodes', [f'{against.name} beside {run.name}: {one_line(error)}']
    with Progress(len(numbers) + 2, 'drawing', 'section') as progress:
        for section in episode_sections(subject, numbers, beside):
            yield section
            progress.advance()


def open_subject(workdir: pathlib.Path, run: Run, data_dir: str | None) -> Subject:
    """The best checkpoint of a run and its test episodes.

    Raises:
      ValueError, OSError: no checkpoint, no dataset, or another checkpoint or other episodes than
        those that were evaluated; one line.
    """
    from fsar_jax.analysis.looking import Subject

    config, mesh = run_config(workdir), episode_mesh(1)
    if data_dir is not None:
        config.data.dir = data_dir
    config = resolve_paths(config)
    dataset = open_split(config, config.eval.split, config.eval.query)
    count = run.results['num_episodes'] if run.results else config.eval.num_episodes
    episodes = episodes_of(dataset, config, count)
    if run.results and episodes_hash(dataset, episodes) != run.results['episodes_hash']:
        raise ValueError(
            f'the test episodes of {printable(config.data.dataset)} in '
            f'{printable(config.data.dir, 1000)} are not those of results.json: evaluate the run '
            'again, or give the folder of its data with --dir'
        )
    selected = best_of_run(workdir, mesh)
    tested = run.results.get('params_hash') if run.results else None
    if tested and tested != params_hash(selected.state.variables['params']):
        advice = (
            f'go on training to step {selected.to_come}, which tests it'
            if selected.to_come
            else 'evaluate the run again'
        )
        raise ValueError(
            f'{printable(workdir / FILE, 1000)} is of step {run.selected}, the best checkpoint is '
            f'now another, of step {selected.step}: {advice}'
        )
    learner = create_learner(config.model)
    return Subject(
        run.name, TrainedModel(learner, selected.state.variables, config, mesh), dataset, episodes
    )


def check_same_episodes(subject: Subject, other: Subject) -> None:
    """Raises ValueError, one line, where two subjects do not have the same clips in their
    episodes."""
    one, two = subject.episodes, other.episodes
    same = (
        subject.dataset.video_ids == other.dataset.video_ids
        and np.array_equal(one.support, two.support)
        and np.array_equal(one.query, two.query)
    )
    if not same:
        raise ValueError('the two do not have the same test episodes')


def check_extra() -> None:
    """Raises ValueError, one line, where what only this command needs is not installed."""
    missing = [EXTRA[name] for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f'report needs {" and ".join(missing)}, not installed here: '
            "pip install 'fsar_jax[report]', or in a checkout pip install -e '.[report]'"
        )


def read_run(workdir: pathlib.Path) -> Run:
    """What the workdir of a run holds.

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
    selected = step_in(results.get('selected_on')) if results else best_step(metrics)
    return Run(name, results, metrics, scheduled, selected)


def best_step(metrics: list[dict]) -> int | None:
    """The step with the best accuracy on val, the first of several; the last step without any."""
    val = [line for line in metrics if line.get('val_accuracy') is not None]
    if not val:
        return max((line['step'] for line in metrics), default=None)
    return max(val, key=lambda line: (line['val_accuracy'], -line['step']))['step']


if __name__ == '__main__':
    with errors_in_one_line():
        main()
