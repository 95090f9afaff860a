"""Runs the rows of a table of the papers one after the other, with several seeds.

    python -m fsar_jax.sweep --list                          the tables of docs/tables.md
    python -m fsar_jax.sweep vim-t4 --list                   its rows, and how far each is
    python -m fsar_jax.sweep vim-t4 --config.data.dir=DATA --config.model.backbone.weights=FILE
                                                             runs them, then prints the table
    python -m fsar_jax.sweep mine.txt --seeds=0,1            your own rows: a command on each line

Each run has the folder ROOT/<row>/seed<k>, with its results.json and what it printed, log.txt. To
continue a sweep that was stopped, repeat its command: finished runs are skipped, and a run that was
cut goes on from its checkpoint. Flags --config.KEY=VALUE are added to every row.

Several processes may share a sweep, on one machine or on several with a common folder. They never
run the same row and seed at once, and --rows=i/n gives each its own share:

    sbatch --array=0-15 --gpus=1 --wrap='python -m fsar_jax.sweep vim-t4 \\
        --root=/shared/runs --rows=$SLURM_ARRAY_TASK_ID/16 --config.data.dir=/shared/data'

--ray[=ADDRESS] runs them as tasks on a Ray cluster, with one GPU each where it has any, and prints
the table at the end (pip install 'fsar_jax[ray]').
"""

import os
import sys

from fsar_jax.stopping import PATIENCE, RUN_STOPPED, errors_in_one_line, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals(RUN_STOPPED)

import argparse
import contextlib
import fnmatch
import functools
import pathlib
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import ml_collections
import tqdm

from fsar_jax import train
from fsar_jax.arguments import Parser, slice_of
from fsar_jax.config import (
    SETTINGS,
    flatten,
    keys_that_affect,
    resolve_paths,
    settings_by_key,
    with_newer_settings,
)
from fsar_jax.evaluation.paper_tables import Row, given_by, method_and_preset, read_tables, rows_of
from fsar_jax.evaluation.results import FILE, PUBLISHED, read_results
from fsar_jax.evaluation.table import as_markdown, table
from fsar_jax.files import local_path, write_whole
from fsar_jax.machine import file_lock
from fsar_jax.messages import differences, listed, one_line, printable
from fsar_jax.on_ray import Cluster, spelled_out, without_ray
from fsar_jax.progress import METRICS_FILE, Progress
from fsar_jax.stopping import finish_first
from fsar_jax.training.inputs import with_features
from fsar_jax.training.workdir import lock_workdir, make_workdir

LOCK, LOG = 'sweep.lock', 'log.txt'
LOOK_SECONDS = 2.0  # between looks at how far a run is
FINISHED, FAILED, ELSEWHERE = 'finished', 'failed', 'elsewhere'
PROGRAM = sys.executable, '-m', 'fsar_jax.train'
STARTED = '$ python -m fsar_jax.train'  # in log.txt, the first line of each try
STARTS = keys_that_affect('start')
FILES = (*STARTS, *keys_that_affect('list'))  # compared by name, wherever they lie


class Run(NamedTuple):
    """A row with one seed.

    Attributes:
      row: of the table.
      seed: config.seed.
      folder: its workdir.
      of: the run that an evaluation is of; None for a training, and for published weights.
      flags: of `python -m fsar_jax.train`.
    """

    row: Row
    seed: int
    folder: pathlib.Path
    of: 'Run | None'
    flags: tuple[str, ...]

    @property
    def source(self) -> pathlib.Path:
        """The workdir in which `fsar_jax.train` works."""
        return self.of.folder if self.of else self.folder

    @property
    def title(self) -> str:
        return f'{self.row.name} seed {self.seed}'


class Outcome(NamedTuple):
    """What became of a run.

    Attributes:
      state: FINISHED, FAILED or ELSEWHERE, which another process works on.
      line: for people.
    """

    state: str
    line: str


# ── What is to run ────────────────────────────────────────────────────────────────────────────────


def runs_of(
    rows: Sequence[Row],
    seeds: Sequence[int],
    root: pathlib.Path,
    flags: Sequence[str] = (),
    share: tuple[int, int] = (0, 1),
) -> list[Run]:
    """The runs of the rows, all rows with the first seed first.

    Args:
      flags: added to those of every row.
      share: (i, n), the i-th of n parts. An evaluation is in the part of the run that it evaluates.
    """
    by_name = {row.name: row for row in rows}

    def run_of(row: Row, seed: int) -> Run:
        folder = root / row.name / f'seed{seed}'
        of = run_of(by_name[row.evaluates], seed) if row.evaluates else None
        how = ('--mode=evaluate',) if row.mode == 'evaluate' else ()
        workdir = f'--workdir={of.folder if of else folder}'
        return Run(
            row, seed, folder, of, (*row.flags, *how, f'--config.seed={seed}', *flags, workdir)
        )

    runs = [run_of(row, seed) for seed in seeds for row in rows if row.mode]
    places = {folder: number for number, folder in enumerate(dict.fromkeys(r.source for r in runs))}
    return [run for run in runs if places[run.source] % share[1] == share[0]]


@functools.cache
def config_of(flags: tuple[str, ...]) -> ml_collections.ConfigDict:
    """The settings that `fsar_jax.train` reads from flags. They are locked.

    Raises:
      ValueError: they cannot be read; one line.
    """
    try:
        given = train.parse(['fsar_jax.train', *flags])
    except SystemExit as error:
        raise ValueError(str(error.code).removeprefix('error: ')) from None
    if given.config is None:
        raise ValueError('no --config given, such as --config=strm:ssv2')
    return resolve_paths(given.config)


def episodes_of(run: Run) -> int:
    """How many training episodes a run takes; 1 for an evaluation, and for what cannot be read."""
    with contextlib.suppress(ValueError):
        train_settings = config_of(run.flags).train
        if run.row.mode == 'train':
            return train_settings.num_steps * train_settings.episodes_per_step
    return 1


# ── How far it is ─────────────────────────────────────────────────────────────────────────────────


def is_finished(run: Run) -> bool:
    """Whether the folder holds results of this run with these settings.

    Results of other settings do not count: the run goes on from there, or says why it cannot. Nor
    do those of an evaluation if the run that it evaluates has gone on since.

    Raises:
      ValueError, OSError: the results are damaged, or the flags cannot be read; one line.
    """
    if not (run.folder / FILE).exists():
        return False
    results = read_results(run.folder)
    if run.of:
        source = read_results(run.source)
        if source.get('params_hash') != results.get('params_hash'):
            return False
    elif run.row.mode == 'evaluate' and not _is_of_weights(results, run):
        return False
    return not differing(results, run)


def _is_of_weights(results, run):
    """Whether results of published weights are of the method and of the file that a run names, and
    the file has not changed since."""
    given = given_by(run.flags)
    method, _ = method_and_preset(given.get('config', ''))
    weights, said = pathlib.Path(given['weights']), str(results.get('selected_on'))
    if method not in ('', results['method']):
        return False
    if said.startswith(PUBLISHED) and said != PUBLISHED + weights.name:
        return False
    written = (run.folder / FILE).stat().st_mtime
    return not weights.exists() or weights.stat().st_mtime <= written


def differing(results: dict, run: Run, only: Collection[str] = ()) -> list[str]:
    """The settings in which results are not those of a run, in words; where `only` names some,
    among these.

    The number of classes, which a run counts itself, is not compared where it is not given. An
    evaluation has the settings of its run, so only those that it gives are compared.
    """
    config = with_features(config_of(run.flags))
    ignored = keys_that_affect('cost')
    now, there = settings_by_key(config), with_newer_settings(flatten(results.get('config') or {}))
    keys = [key for key, value in now.items() if value is not None or not SETTINGS[key].counted]
    if run.row.mode == 'evaluate':
        given = {flag.partition('=')[0].removeprefix('--config.') for flag in run.flags}
        keys = [key for key in keys if key in given]
    file = lambda value: value and pathlib.Path(value).name  # wherever it lies now
    keys = [
        key
        for key in keys
        if key not in ignored and (not only or key in only)
        if key not in FILES or file(there.get(key)) != file(now[key])
    ]
    of_keys = lambda settings: {key: settings.get(key) for key in keys}
    return differences(of_keys(there), of_keys(now))


def steps_done(workdir: pathlib.Path) -> int:
    """The last step in metrics.jsonl, 0 where there is none. Only the end of the file is read."""
    try:
        with open(workdir / METRICS_FILE, 'rb') as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            found = re.findall(rb'^\{"step": (\d+)', file.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[-1]) if found else 0


def state_of(run: Run) -> str:
    """How far a run is, in words. Nothing is written."""
    try:
        if is_finished(run):
            results = read_results(run.folder)
            return f"{results['accuracy']:.2%} ± {results['ci95']:.2%}"
        num_steps = config_of(run.flags).train.num_steps
    except (ValueError, OSError) as error:
        return f'failed: {one_line(error)}'
    for name in (LOCK, 'lock'):
        if (run.folder / name).exists():
            try:
                with file_lock(run.folder / name, 'busy'):
                    pass
            except OSError:  # a folder of somebody else's
                continue
            except ValueError:
                return f'running, step {steps_done(run.folder)} of {num_steps}'
    failed = last_error(run.folder / LOG)
    if failed:
        return f'failed: {failed}'
    step = steps_done(run.folder)
    return f'stopped at step {step} of {num_steps}' if step else 'not begun'


def last_error(log: pathlib.Path) -> str:
    """The line with which the last try ended, if it failed; '' if it did not."""
    try:
        text = log.read_text(errors='replace')
    except OSError:
        return ''
    lines = text.rpartition(STARTED)[2].splitlines()
    failed = [line.removeprefix('error: ') for line in lines if line.startswith('error: ')]
    return failed[-1] if failed else ''


# ── Running ───────────────────────────────────────────────────────────────────────────────────────


def sweep(runs: Sequence[Run], title: str) -> list[Outcome]:
    """Runs what is not finished, one after the other, and prints a line for each.

    A run that fails is one line, and the others go on.
    """
    episodes = [episodes_of(run) for run in runs]
    outcomes = []
    with Progress(sum(episodes), title, 'episode') as progress:
        for number, (run, size) in enumerate(zip(runs, episodes), 1):
            shown = Shown(progress, size)
            outcome = outcome_of(run, shown)
            outcomes.append(outcome)
            if outcome.state == FINISHED:
                shown.reach(size)
            _say(f'[{number}/{len(runs)}] {run.title}: {outcome.line}')
    return outcomes


def sweep_on_ray(
    address: str, arguments: Sequence[str], runs: Sequence[Run], title: str
) -> list[Outcome]:
    """The same in tasks on a Ray cluster: a run and its evaluations in each.

    Args:
      arguments: the command line that the runs are of.
      runs: all runs of that command line.
    """
    episodes = [episodes_of(run) for run in runs]
    titles = {run.folder: run.title for run in runs}
    outcomes: dict[pathlib.Path, Outcome] = {}
    parts = len({run.source for run in runs})
    with Cluster(address) as cluster, Progress(sum(episodes), title, 'episode') as progress:
        shown = {run.folder: Shown(progress, size) for run, size in zip(runs, episodes)}
        room = cluster.room_for()
        print(f'{parts} parts, {room.slots} at once', flush=True)
        rows = [[*without_ray(arguments), f'--rows={i}/{parts}'] for i in range(parts)]
        for ended in cluster.run('fsar_jax.sweep:run_share', rows, room.options):
            for _, found in ended:
                for folder, outcome in found:
                    outcomes[folder] = outcome
                    shown[folder].reach(sys.maxsize)
                    _say(f'[{len(outcomes)}/{len(runs)}] {titles[folder]}: {outcome.line}')
            for run in runs:
                if run.folder not in outcomes and not run.of:
                    with contextlib.suppress(ValueError):
                        steps = config_of(run.flags).train.episodes_per_step
                        shown[run.folder].reach(steps_done(run.folder) * steps)
    return [outcomes[run.folder] for run in runs]


def run_share(arguments: Sequence[str]) -> list[tuple[pathlib.Path, Outcome]]:
    """Runs the part that --rows=i/n of the arguments names, and waits for what other processes work
    on. (folder of a run, what became of it) of each."""
    jax.config.update('jax_platforms', 'cpu')  # an accelerator is for the runs
    args, flags = parsed(arguments)
    mine = runs_of(chosen_rows(args), args.seeds, local_path(args.root, '--root'), flags, args.rows)
    outcomes = dict(zip((run.folder for run in mine), sweep(mine, listed(args.tables))))
    # A worker that was lost may have left its run behind.
    while busy := {run.source for run in mine if outcomes[run.folder].state == ELSEWHERE}:
        time.sleep(10 * LOOK_SECONDS)
        again = [
            run for run in mine if run.source in busy and outcomes[run.folder].state != FINISHED
        ]
        outcomes |= zip((run.folder for run in again), sweep(again, listed(args.tables)))
    return list(outcomes.items())


def _say(line):
    tqdm.tqdm.write(line, file=sys.stdout)  # above the bar
    sys.stdout.flush()


class Shown:
    """How much of one run the progress bar of a sweep shows.

    Args:
      progress: of the sweep.
      size: episodes of this run.
    """

    def __init__(self, progress: Progress, size: int) -> None:
        self._progress, self._size, self._done = progress, size, 0

    def reach(self, episodes: int) -> None:
        """Moves the bar to where `episodes` of this run are done. It never moves back."""
        new = min(episodes, self._size) - self._done
        if new > 0:
            self._done += new
            self._progress.advance(new)


def outcome_of(run: Run, shown: Shown) -> Outcome:
    """Runs one run, unless it is finished or another process works on it."""
    try:
        with contextlib.ExitStack() as stack:
            if is_finished(run):
                return Outcome(FINISHED, f'{accuracy_of(run)}, as it was')
            config = config_of(run.flags)
            if config.eval.split != 'test' and run.row.mode == 'train':
                return Outcome(
                    FAILED,
                    f'config.eval.split={config.eval.split}: a sweep tests on the test split',
                )
            if run.of and not is_finished(run.of):
                busy = is_busy(run.source)
                return Outcome(
                    ELSEWHERE if busy else FAILED,
                    f'the run that it evaluates, {run.of.title}, '
                    + ('is running in another process' if busy else 'is not finished'),
                )
            make_workdir(run.folder)
            try:
                stack.enter_context(file_lock(run.folder / LOCK, 'busy'))
                with lock_workdir(run.folder):  # one started by hand, or left by a killed sweep
                    pass
            except ValueError:
                return Outcome(ELSEWHERE, 'is running in another process')
            if is_finished(run):  # by another process, a moment ago
                return Outcome(FINISHED, accuracy_of(run))
            before = steps_done(run.folder) * config.train.episodes_per_step
            shown.reach(before)
            failed = other_start(run) or start(run, shown, config.train.episodes_per_step)
            if not failed and not is_finished(run):
                failed = other_settings(run, differing(read_results(run.folder), run))
            return Outcome(FAILED, failed) if failed else Outcome(FINISHED, accuracy_of(run))
    except (ValueError, OSError) as error:
        return Outcome(FAILED, one_line(error))


def other_start(run: Run) -> str:
    """Why a run cannot go on to be that of the row: it began from other weights, which nobody would
    see in its results. '' where it can."""
    if not (run.folder / FILE).exists() or run.row.mode == 'evaluate':
        return ''
    return other_settings(run, differing(read_results(run.folder), run, STARTS))


def other_settings(run: Run, found: list[str]) -> str:
    """One line that names settings, '' where there are none."""
    where = printable(run.folder / FILE, 1000)
    return found and f'{where} is of other settings ({listed(found)}): use another --root' or ''


def is_busy(folder: pathlib.Path) -> bool:
    """Whether a sweep works in the folder."""
    try:
        with file_lock(folder / LOCK, 'busy') if folder.is_dir() else contextlib.nullcontext():
            return False
    except ValueError:
        return True


def accuracy_of(run: Run) -> str:
    """'86.21% ± 0.31%'."""
    results = read_results(run.folder)
    return f"{results['accuracy']:.2%} ± {results['ci95']:.2%}"


def start(run: Run, shown: Shown, episodes_per_step: int) -> str:
    """Starts the run as a process of its own and waits for its end. What it prints goes to log.txt.

    Returns:
      Why it failed, in one line; '' where it did not. Of an evaluation, results.json in the run's
      folder is a copy of what it wrote, there or into the folder of the run that it evaluates.
    """
    package = os.fspath(pathlib.Path(__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get('PYTHONPATH')])]
    log = run.folder / LOG
    with open(log, 'ab') as output:
        output.write(f'{STARTED} {shlex.join(run.flags)}\n'.encode())
        output.flush()
        process = subprocess.Popen(
            [*PROGRAM, *run.flags],
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C comes from here, once, and not from the terminal too
        )
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        end(process)

    with finish_first(stop):
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_SECONDS)
                if not run.of:
                    shown.reach(steps_done(run.folder) * episodes_per_step)
        finally:
            end(process)
        if stopped.is_set():  # not a failure: this process is about to end as well
            time.sleep(PATIENCE)
    if process.returncode:
        return last_error(log) or unexpected_end(process.returncode, log)
    if run.row.mode == 'evaluate':
        lines = log.read_text(errors='replace').splitlines()
        written = [line for line in lines if line.startswith(f'{run.source}/')]
        write_whole(run.folder / FILE, pathlib.Path(written[-1]).read_bytes())
    return ''


def unexpected_end(status: int, log: pathlib.Path) -> str:
    """Notes in the log, and returns, how a run ended that printed no error."""
    how = f'status {status}' if status > 0 else signal.Signals(-status).name
    last = log.read_text(errors='replace').splitlines()[-1]
    line = f'it ended with {how} ({printable(last)}): {printable(log, 1000)} has what it printed'
    with open(log, 'a', encoding='utf-8') as output:
        output.write(f'error: {line}\n')
    return line


def end(process: subprocess.Popen) -> None:
    """Ends a run in such a way that nothing which it finished is lost."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def main(arguments: list[str] | None = None) -> int:
    """Does what the command line asks for (None: sys.argv).

    Returns:
      The exit status: 1 if a run has failed.

    Raises:
      ValueError, OSError: one line about a flag or a file.
    """
    args, flags = parsed(arguments)
    if not args.tables:
        if not args.list:
            raise ValueError('no table given: python -m fsar_jax.sweep --list lists them')
        for known in read_tables():
            print(f'{", ".join(known.names):<22} {len(known.rows):>4} rows  {known.title}')
        return 0
    if args.ray and args.rows != (0, 1):
        raise ValueError('--ray runs all parts: give no --rows with it')
    rows = chosen_rows(args)
    root = local_path(args.root, '--root')
    runs = runs_of(rows, args.seeds, root, flags)
    if args.list:
        print_rows(rows, runs)
        return 0
    mine = runs_of(rows, args.seeds, root, flags, args.rows)
    for row in rows:
        if not row.mode:
            print(f'{row.name}: {row.command or row.here}: not a row that a sweep runs')
    print(f'{len(mine)} of {len(runs)} runs, in {root}', flush=True)
    title = listed(args.tables)
    if args.ray:
        given = sys.argv[1:] if arguments is None else arguments
        outcomes = sweep_on_ray(args.ray, given, mine, title)
    else:
        outcomes = sweep(mine, title)
    print_table(runs)
    failed = [run.title for run, outcome in zip(mine, outcomes) if outcome.state == FAILED]
    elsewhere = [run.title for run, outcome in zip(mine, outcomes) if outcome.state == ELSEWHERE]
    if elsewhere:
        print(f'note: running in other processes: {listed(elsewhere)}', file=sys.stderr)
    if failed:
        print(f'error: {len(failed)} of {len(mine)} runs failed: {listed(failed)}', file=sys.stderr)
    return 1 if failed else 0


def chosen_rows(args: argparse.Namespace) -> list[Row]:
    """The rows that --only names, with those that they evaluate. ValueError if there are none, or
    one has a seed of its own."""
    everything = rows_of(args.tables)
    chosen = [row for row in everything if fnmatch.fnmatch(row.name, args.only)]
    needed = {row.name for row in chosen} | {row.evaluates for row in chosen}
    rows = [row for row in everything if row.name in needed]
    if not rows:
        raise ValueError(f"no row's name is like --only={printable(args.only)}: --list has them")
    for row in rows:
        if (seed := given_by(row.flags).get('config.seed')) is not None:
            raise ValueError(
                f"row '{row.name}' has --config.seed={printable(seed)}: take it out, --seeds gives "
                'every run its seed'
            )
    return rows


def parsed(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The flags of the sweep, and those for every row."""
    parser = Parser(
        prog='python -m fsar_jax.sweep',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('tables', nargs='*', metavar='TABLE', help='vim-t4, or a file of rows')
    add('--root', default='runs/tables', help='folder of all runs; default runs/tables')
    add('--seeds', type=_seeds, default=(0, 1, 2), help='default 0,1,2')
    add('--rows', metavar='I/N', help='only part I (from 0) of N')
    add('--ray', metavar='ADDRESS', help='run the parts as tasks on a Ray cluster')
    add('--only', default='*', metavar='PATTERN', help="rows with such a name: '*ucf101*'")
    add('--list', action='store_true', help='print the rows and how far they are, and run nothing')
    add('--config.KEY', dest='_', metavar='VALUE', help='a setting for every row')
    own: list[str] = []
    flags: list[str] = []  # taken out first: argparse reads one with a space as a table
    before = ''
    for word in spelled_out(sys.argv[1:] if arguments is None else arguments):
        if before.startswith('--config.') and '=' not in before and not word.startswith('-'):
            flags[-1] += f'={word}'
        else:
            (flags if word.startswith('--config.') else own).append(word)
        before = word
    args, others = parser.parse_known_args(own)
    args.rows = slice_of(args.rows, '--rows') or (0, 1)
    if others:
        raise ValueError(
            f"unexpected argument '{printable(others[0])}': settings for every row look like "
            '--config.train.num_steps=1000'
        )
    for flag in flags:
        if flag.partition('=')[0] == '--config.seed':
            raise ValueError('--config.seed is given to every run by --seeds=0,1,2')
    return args, flags


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(part) for part in text.split(',')))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise argparse.ArgumentTypeError(
            f'{printable(text)} should be whole numbers from 0: --seeds=0,1,2'
        )
    return seeds


def print_rows(rows: Sequence[Row], runs: Sequence[Run]) -> None:
    """Each row with its paper's number, its command and how far its runs are."""
    for row in rows:
        print(f'{row.name}    paper {row.paper or "none"}')
        print(f'    {row.command or row.here}')
        for run in runs:
            if run.row.name == row.name:
                print(f'    seed {run.seed}: {state_of(run)}')


def print_table(runs: Sequence[Run]) -> None:
    """What `python -m fsar_jax.table` prints of the runs that are finished."""
    finished = {}
    for run in runs:
        with contextlib.suppress(ValueError, OSError):
            if is_finished(run):
                finished[os.fspath(run.folder)] = read_results(run.folder)
    if not finished:
        return
    try:
        rows, notes = table(finished)
    except ValueError as error:
        rows, notes = [], [one_line(error)]
    if rows:
        print(f'\n{as_markdown(rows)}')
    for note in notes:
        print(f'note: {note}', file=sys.stderr)


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # an accelerator is for the runs
    with errors_in_one_line():
        sys.exit(main())
