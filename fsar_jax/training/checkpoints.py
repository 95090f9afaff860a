"""Saves checkpoints in the background, keeps the last few and the best, and restores them on any
devices.

A checkpoint is written under a temporary name, gets the checksums of its files and of the state,
and is renamed when it is complete. So a process that is killed during a save leaves the earlier
checkpoints intact. What is restored is checked against what was saved: if a checkpoint is damaged,
an earlier one is used.
"""

import contextlib
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from concurrent import futures

import jax
import ml_collections
import numpy as np

from fsar_jax.files import write_whole
from fsar_jax.messages import listed, printable
from fsar_jax.named_arrays import by_name
from fsar_jax.processes import all_or_none, from_first_process, print_once, wait_for_all
from fsar_jax.stage import ArrayTree
from fsar_jax.training import checkpoint_files as files
from fsar_jax.training import orbax_files
from fsar_jax.training.checkpoint_arrays import differences, on_host, placed, shapes, without_key
from fsar_jax.training.checkpoint_files import CONFIG_FILE, DamagedCheckpoint

SELECTION_METRIC = 'val_accuracy'
_UNFINISHED = '.unfinished'  # <step>.unfinished-1 is a save that is going on, or was killed
_REPLACED = '.damaged'  # <step>.damaged is a checkpoint until its replacement has its name
_LISTED = 5  # differing leaves that an error message names
_FAILED_ELSEWHERE = 'another process cannot read or write a checkpoint, and says why'


class Checkpoints:
    """The checkpoints `<directory>/<step>/` of one run, and in `config.json` the config that made
    them.

    Use it as a context manager; leaving it waits for the save in progress. With several processes,
    all of them call every method, on one shared directory. A damaged checkpoint is reported once on
    standard output. It is never used, does not count as one of those that are kept, and stays until
    its step is saved again.

    Args:
      directory: created if it does not exist, unless `read_only`.
      keep: number of latest checkpoints to keep, besides the best on 'val_accuracy'; None for
        all.
      config: written to config.json at the first save.
      read_only: for evaluation. Nothing is written or cleaned up, so this is safe beside a training
        run.

    Raises:
      FileNotFoundError: `read_only` and the directory holds no checkpoint.
      DamagedCheckpoint: `read_only` and all checkpoints are damaged.
      OSError: a directory that cannot be written.
      ValueError: a name that Orbax cannot write to, see `orbax_files.check_directory`.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int | None = None,
        config: ml_collections.ConfigDict | None = None,
        read_only: bool = False,
    ) -> None:
        self.directory = pathlib.Path(os.path.abspath(directory))
        self._keep, self._config, self._config_written = keep, config, False
        # (step, future) of the save in progress
        self._saving: tuple[int, futures.Future] | None = None
        self._started = 0  # saves
        self._writer = futures.ThreadPoolExecutor(1, 'checkpoints')
        orbax_files.check_directory(self.directory, read_only)
        if not read_only:
            if jax.process_index() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._put_back()
                self._remove_unfinished()
                files.check_writable(self.directory)
            wait_for_all('checkpoints are opened')
        orbax_files.quieten_orbax()
        self._saved: dict[int, dict] = {}  # step: metrics
        self._damaged: dict[int, dict | None] = {}  # the same, None where they cannot be read
        self._look()
        if read_only and not self._saved:
            self.close()
            raise (
                self._none_is_good()
                if self._damaged
                else FileNotFoundError(
                    f'no checkpoint in {printable(directory, 1000)}: train first, or check '
                    '--workdir'
                )
            )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or jax.process_count() == 1:
            return self.close()
        # The other processes may be anywhere: to wait for them would be to wait for ever.
        self.wait_for_files()
        self._writer.shutdown()

    @property
    def steps(self) -> list[int]:
        """The saved steps, ascending. A save in progress counts as soon as it is asked for; a
        checkpoint known to be damaged does not count."""
        return sorted(self._saved)

    @property
    def latest_step(self) -> int | None:
        """The last step saved; None before the first."""
        return max(self._saved, default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the highest 'val_accuracy', of equals the earliest; None when no step has
        one."""
        return _best(self._saved)

    @property
    def damaged_and_better(self) -> list[int]:
        """The damaged steps that would be `best_step`, or may be because their 'val_accuracy' is
        not known."""
        if self.best_step is None:
            return [step for step in sorted(self._damaged) if step > (self.latest_step or 0)]
        return [
            step
            for step in sorted(self._damaged)
            if self._damaged[step] is None
            or _best(self._saved | {step: self._damaged[step]}) == step
        ]

    def is_unscored(self, step: int) -> bool:
        """Whether a saved step has no 'val_accuracy'."""
        return SELECTION_METRIC not in (self._saved[step] or {})

    def save(self, step: int, state: ArrayTree, metrics: dict | None = None) -> bool:
        """Starts writing a checkpoint and returns. Waits only for the save before it.

        Args:
          step: number of finished steps.
          state: any pytree of arrays. May be donated to the next step right after the call.
          metrics: what JSON can hold, without NaN. 'val_accuracy' decides which checkpoint is the
            best.

        Returns:
          False, and nothing is written, when the step is saved already; unless without the metric
          that decides, which `metrics` has.

        Raises:
          ValueError: `metrics` is not strict JSON.
          OSError: this save or the one before it failed. The earlier checkpoints are whole.
        """
        if step in self._saved and not (
            self.is_unscored(step) and SELECTION_METRIC in (metrics or {})
        ):
            return False
        try:
            metrics = json.loads(json.dumps(metrics or {}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'metrics of step {step} cannot be written as JSON ({error}): pass Python '
                'numbers, strings and lists, without NaN'
            ) from None
        self.wait()
        state = jax.tree.map(without_key, state)
        arrays = {name: on_host(leaf) for name, leaf in by_name(state).items()}
        # Its own name: threads of a save that failed may still make files under the one before.
        self._started += 1
        draft = self.directory / f'{step}{_UNFINISHED}-{self._started}'
        with self._explaining(step):
            if jax.process_index() == 0:
                self._remove_unfinished()
            self._write_config()
            response = orbax_files.save_async(draft, state, checksums=files.CHECKSUMS_FILE)
        self._saving = (
            step,
            self._writer.submit(self._finish, step, response, draft, arrays, metrics),
        )
        self._saved[step] = metrics
        return True

    def restore(self, abstract_state: ArrayTree, step: int | None = None) -> tuple:
        """Reads a checkpoint onto the devices that `abstract_state` names, whatever it was saved
        on.

        Args:
          abstract_state: the state, or the same tree of `jax.ShapeDtypeStruct`. Its shardings say
            where the arrays go; without one they go to the first device.
          step: which checkpoint; None is the last good one.

        Returns:
          (state, metrics).

        Raises:
          FileNotFoundError: no checkpoint, or none at this step.
          DamagedCheckpoint: this step is damaged, and no longer among `steps`; for None, all are.
          ValueError: it holds another model: one line that names the leaves which differ in name,
            shape or dtype.
        """
        self.wait()
        if step is None:
            return self._restore_first_good(abstract_state, lambda: self.latest_step)
        if step not in self._saved:
            raise FileNotFoundError(
                f'no checkpoint of step {step} in {printable(self.directory, 1000)} (there: '
                f'{", ".join(map(str, self.steps)) or "none"})'
            )
        arrays = self._read(step, abstract_state)
        leaves = [placed(arrays[name], leaf) for name, leaf in by_name(abstract_state).items()]
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), dict(
            self._saved[step]
        )

    def restore_best(self, abstract_state: ArrayTree) -> tuple:
        """(state, metrics) of `best_step`, or of the last step where none has a 'val_accuracy'. A
        damaged checkpoint is no longer among `steps`, and the next best is restored.

        Raises:
          FileNotFoundError, DamagedCheckpoint, ValueError: as `restore`.
        """
        self.wait()
        return self._restore_first_good(
            abstract_state, lambda: self.latest_step if self.best_step is None else self.best_step
        )

    def resume(self, abstract_state: ArrayTree) -> tuple:
        """(state, step) of the last good checkpoint, to go on from; (None, 0) for a directory
        without any.

        Checks the files of all checkpoints, so that those which count as kept are good, and a
        damaged best one is known now.

        Raises:
          DamagedCheckpoint: there are checkpoints, and all are damaged.
          ValueError: as `restore`.
        """
        if not self._saved and not self._damaged:
            return None, 0
        state, _ = self.restore(abstract_state)
        for step in self.steps[:-1]:
            path = self.directory / str(step)
            try:
                _in_all_processes(lambda: files.check_files(path, files.read_manifest(path)))
            except DamagedCheckpoint as error:
                self._set_aside(step, error)
        for step in self.steps:  # a run may have been killed when the replacement was whole
            self._remove(f'{step}{_REPLACED}')
        return state, self.latest_step

    def wait(self) -> None:
        """Returns when the save in progress is on disk and the checkpoints that need not be kept
        are deleted. Raises what went wrong with the save."""
        if self._saving is None:
            return
        step, future = self._saving
        try:
            with self._explaining(step):
                _in_all_processes(future.result)
        finally:
            self._saving = None
        self._damaged.pop(step, None)
        older = self.steps[: -self._keep] if self._keep else []
        dropped = [old for old in older if old != self.best_step]
        for old in dropped:
            del self._saved[old]
        for name in (f'{step}{_REPLACED}', *map(str, dropped)):
            self._remove(name)
        if jax.process_index() == 0:
            self._remove_unfinished()

    def wait_for_files(self) -> None:
        """Returns when this process has written what it was writing. May be called from any thread,
        without the other processes."""
        if (saving := self._saving) is not None:
            saving[1].exception()

    def close(self) -> None:
        """Waits, then lets go of the directory."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def _finish(self, step, response, draft, arrays, metrics):
        """In the background: waits for Orbax, seals the checkpoint and gives it its name."""
        response.result()  # also ends the thread and the event loop that Orbax has for each save
        if jax.process_index():
            return
        files.write_manifest(draft, metrics, arrays)
        path = self.directory / str(step)
        if os.path.lexists(path):  # damaged: it is deleted when its replacement is whole
            self._remove(f'{step}{_REPLACED}')
            path.rename(path.with_name(f'{step}{_REPLACED}'))
        draft.rename(path)

    def _read(self, step, abstract_state) -> dict[str, np.ndarray]:
        """{name: array} of a checkpoint that holds this model and is what was saved."""
        path = self.directory / str(step)
        try:
            manifest, tree = _in_all_processes(lambda: files.read_description(path))
            self._check_same_model(step, shapes(by_name(tree)), shapes(by_name(abstract_state)))
            arrays = _in_all_processes(lambda: files.read_arrays(path, tree, manifest))
        except DamagedCheckpoint as error:
            self._set_aside(step, error)
            raise
        if manifest.files is None:
            print_once(
                f'note: checkpoint {printable(path, 1000)} is from before checksums were kept: '
                'taken as it is'
            )
        return arrays

    def _look(self):
        """Finds the checkpoints and reads their metrics, as the first process sees them."""
        found = []
        for path in files.step_directories(self.directory):
            try:
                found.append((int(path.name), files.read_manifest(path).metrics, None))
            except DamagedCheckpoint as error:
                if os.path.lexists(path):  # else a training run has just deleted it
                    found.append((int(path.name), None, str(error)))
        for step, metrics, damage in from_first_process(found):
            if damage is None:
                self._saved[step] = metrics
            else:
                self._set_aside(step, damage)

    def _restore_first_good(self, abstract_state, choose: Callable[[], int | None]):
        while self._saved:
            with contextlib.suppress(DamagedCheckpoint):
                return self.restore(abstract_state, choose())
        if self._damaged:
            raise self._none_is_good()
        raise FileNotFoundError(f'no checkpoint in {printable(self.directory, 1000)} (there: none)')

    def _set_aside(self, step, error):
        """From now on this step counts as damaged."""
        metrics = self._saved.pop(step, None)
        if os.path.lexists(self.directory / str(step)):
            self._damaged[step] = metrics
            print_once(f'note: {error}: it does not count')
        else:  # deleted meanwhile by the run that is evaluated
            print_once(f'note: checkpoint {printable(self.directory / str(step), 1000)} is gone')

    def _none_is_good(self):
        return DamagedCheckpoint(
            f'all checkpoints in {printable(self.directory, 1000)} are damaged (steps '
            f'{listed(sorted(self._damaged))}): train again in another --workdir, or put back a '
            'copy of them'
        )

    def _remove(self, name):
        """Deletes an entry under another name, so that a kill leaves no half of a checkpoint."""
        path = self.directory / name
        if jax.process_index() == 0 and os.path.lexists(path):
            with contextlib.suppress(OSError):
                path = path.rename(
                    path.with_name(f'{name.removesuffix(_REPLACED)}{_UNFINISHED}-dropped')
                )
                files.delete(path)

    def _put_back(self):
        """Gives a checkpoint its name again whose replacement was about to get it at a kill."""
        for path in self.directory.glob(f'*{_REPLACED}'):
            named = path.with_name(path.name.removesuffix(_REPLACED))
            if named.name.isdecimal() and not os.path.lexists(named):
                path.rename(named)

    def _remove_unfinished(self):
        unfinished = rf'\d+({re.escape(_UNFINISHED)}|{re.escape(orbax_files.UNFINISHED)})'
        for path in self.directory.iterdir():
            if re.match(unfinished, path.name):
                files.delete(path)

    @contextlib.contextmanager
    def _explaining(self, step):
        """Turns what goes wrong in a save into one line, and deletes what it has left, to make
        room."""
        try:
            yield
        except Exception as error:
            self._saved.pop(step, None)
            if jax.process_index() == 0:
                with contextlib.suppress(OSError):
                    self._remove_unfinished()
            kept = (
                f'those of steps {listed(self.steps)} are whole'
                if self._saved
                else 'there is none yet'
            )
            raise OSError(
                f'the checkpoint of step {step} cannot be written to '
                f'{printable(self.directory, 1000)} ({files.reason(error)}); '
                f'{kept}: fix that and run the same command again'
            ) from error

    def _write_config(self):
        if self._config is None or self._config_written or jax.process_index():
            return
        write_whole(
            self.directory / CONFIG_FILE, self._config.to_json(indent=2, sort_keys=True) + '\n'
        )
        self._config_written = True

    def _check_same_model(self, step, saved, wanted):
        found = differences(saved, wanted)
        if found:
            rest = f'; and {len(found) - _LISTED} more' if len(found) > _LISTED else ''
            raise ValueError(
                f'the checkpoint {printable(self.directory / str(step), 1000)} is of another '
                f'model: {"; ".join(found[:_LISTED])}{rest}. Use the config it was made with '
                f'({printable(self.directory / CONFIG_FILE, 1000)}) or another --workdir'
            )


def _best(metrics: Mapping[int, dict | None]) -> int | None:
    """The step of the highest 'val_accuracy', of equals the first."""
    values = {step: (metrics[step] or {}).get(SELECTION_METRIC) for step in sorted(metrics)}
    scores = {
        step: score
        for step, score in values.items()
        if isinstance(score, (int, float)) and math.isfinite(score)
    }
    return max(scores, key=scores.__getitem__, default=None)


def _in_all_processes(action):
    return all_or_none(action, DamagedCheckpoint(_FAILED_ELSEWHERE))
