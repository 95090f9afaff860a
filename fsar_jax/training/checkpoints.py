"""Checkpoints of a run: written in the background, the last few and the best kept, restored on any
devices.

The only module that knows Orbax. A checkpoint is written beside its final name, gets the checksums
of its files and of the state, and is renamed when it is complete: a process killed in the middle of
a save leaves the earlier checkpoints as they were, and what comes back is what was saved, or the
checkpoint is damaged and an earlier one counts.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import logging as std_logging
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable
from concurrent import futures

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from fsar_jax.checksums import sha256_of
from fsar_jax.config import flatten
from fsar_jax.files import read_json, write_whole
from fsar_jax.messages import listed, one_line, printable

try:
    from orbax.checkpoint import v1 as ocp
except ImportError:  # releases in which V1 has no public name yet
    from orbax.checkpoint.experimental import v1 as ocp

SELECTION_METRIC = 'val_accuracy'
CONFIG_FILE = 'config.json'
RECORD_FILE = 'checksums.json'  # in each checkpoint
_ABOUT = '_CHECKPOINT_METADATA'  # Orbax's own, in each checkpoint
_UNFINISHED = '.unfinished'  # <step> and this: a save that is going on, or was killed
_UNFINISHED_BEFORE = '.orbax-checkpoint-tmp'  # the same, of releases that had no checksums
_LISTED = 5  # differing leaves named in an error message
_REPLACED = '.damaged'  # <step> and this: a damaged one, until its step is saved again
_LONGEST_PATH = 3800  # of Linux' 4,095 bytes, with what Orbax puts behind
# Where they cannot be made, the threads that are to write into them would wait for minutes.
_DIRECTORIES_FIRST = ocp.options.AsyncOptions(create_directories_asynchronously=False)


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was saved, or cannot be read. One line."""


class Checkpoints:
    """The checkpoints `<directory>/<step>/` of one run, with the config that made them in
    `config.json`.

    A context manager; leaving it waits for the save in progress. With several processes all of them
    call every method, on one shared directory. A damaged checkpoint is named once on standard
    output, does not count as one of those that are kept, and stays until its step is saved again.

    Args:
      directory: made when absent, unless `read_only`.
      keep: the last `keep` checkpoints stay, and the best on 'val_accuracy' besides.
      config: written to config.json at the first save.
      read_only: for evaluation: never writes nor cleans up, so it is safe beside a training run.

    Raises:
      FileNotFoundError: `read_only` and the directory holds no checkpoint.
      DamagedCheckpoint: `read_only` and all that it holds are damaged.
      OSError: a directory that cannot be written.
      ValueError: a name that Orbax cannot write to, see `check_directory`.
    """

    def __init__(
        self,
        directory,
        keep: int = 3,
        config: ml_collections.ConfigDict | None = None,
        read_only: bool = False,
    ):
        self.directory = pathlib.Path(os.path.abspath(directory))
        self._keep, self._config, self._config_written = keep, config, False
        self._saving = None  # (step, future) of the save in progress
        self._writer = futures.ThreadPoolExecutor(1, 'checkpoints')
        check_directory(self.directory, read_only)
        if not read_only:
            if jax.process_index() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._remove_unfinished()
                _check_writable(self.directory)
            _meet('checkpoints are opened')
        _quieten_orbax()
        self._saved, self._damaged = (
            {},
            {},
        )  # {step: metrics}; of damaged ones None where they are not known
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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def steps(self) -> list[int]:
        """Steps that are saved, ascending; a save in progress counts from the moment it was asked
        for, one known to be damaged does not."""
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
        """Damaged steps that would be `best_step`, or may be: nothing is known of their
        'val_accuracy'."""
        if self.best_step is None:
            return [step for step in sorted(self._damaged) if step > (self.latest_step or 0)]
        return [
            step
            for step in sorted(self._damaged)
            if self._damaged[step] is None
            or _best(self._saved | {step: self._damaged[step]}) == step
        ]

    def save(self, step: int, state, metrics: dict | None = None) -> bool:
        """Starts writing a checkpoint and returns; waits only for the save before it.

        Args:
          step: number of finished steps.
          state: any pytree of arrays. May be donated to the next step right after the call.
          metrics: what JSON can hold, without NaN. 'val_accuracy' decides which checkpoint is the
            best.

        Returns:
          False, and nothing is written, when the step is saved already.

        Raises:
          ValueError: `metrics` is not strict JSON.
          OSError: what went wrong with this save or the one before it. The earlier checkpoints are
            whole.
        """
        if step in self._saved:
            return False
        try:
            metrics = json.loads(json.dumps(metrics or {}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f'metrics of step {step} cannot be written as JSON ({error}): pass Python '
                f'numbers, strings and lists, without NaN'
            ) from None
        self.wait()
        state = jax.tree.map(_without_key, state)
        arrays = {name: _on_host(leaf) for name, leaf in _by_name(state).items()}
        draft = self.directory / f'{step}{_UNFINISHED}'
        with self._explaining(step), ocp.Context(async_options=_DIRECTORIES_FIRST):
            if jax.process_index() == 0:
                self._remove_unfinished()  # also what late threads of a save that failed have left
            self._write_config()
            response = ocp.save_checkpointables_async(
                draft, {'state': state}, custom_metadata={'checksums': RECORD_FILE}
            )
        self._saving = (
            step,
            self._writer.submit(self._finish, step, response, draft, arrays, metrics),
        )
        self._saved[step] = metrics
        return True

    def restore(self, abstract_state, step: int | None = None):
        """Reads a checkpoint onto the devices that `abstract_state` names, whatever it was saved
        on.

        Args:
          abstract_state: the state, or the same tree of `jax.ShapeDtypeStruct`; its shardings say
            where the arrays go, without one they go to the first device.
          step: which checkpoint; None is the last good one.

        Returns:
          (state, metrics).

        Raises:
          FileNotFoundError: no checkpoint, or none at this step.
          DamagedCheckpoint: this step is damaged, and no longer among `steps`; or for None, all
            are.
          ValueError: it holds another model: one line, the leaves that differ in name, shape or
            dtype.
        """
        self.wait()
        if step is None:
            return self._restore_first_good(abstract_state, lambda: self.latest_step)
        if step not in self._saved:
            there = ', '.join(map(str, self.steps)) or 'none'
            raise FileNotFoundError(
                f'no checkpoint of step {step} in {printable(self.directory, 1000)} (there: '
                f'{there})'
            )
        arrays = self._read(step, abstract_state)
        wanted = _by_name(abstract_state)
        placed = {name: _placed(arrays[name], leaf) for name, leaf in wanted.items()}
        return jax.tree.unflatten(jax.tree.structure(abstract_state), placed.values()), dict(
            self._saved[step]
        )

    def restore_best(self, abstract_state):
        """(state, metrics) of `best_step`, or of the last step where none has a 'val_accuracy'; of
        the next best where that is damaged (and then it is no longer among `steps`).

        Raises:
          FileNotFoundError, DamagedCheckpoint, ValueError: as `restore`.
        """
        self.wait()
        return self._restore_first_good(
            abstract_state, lambda: self.latest_step if self.best_step is None else self.best_step
        )

    def resume(self, abstract_state) -> tuple:
        """(state, step) of the last good checkpoint, to go on from; (None, 0) of a directory
        without any.

        The files of all checkpoints are checked, so that those that count as kept are good, and a
        damaged best is known now.

        Raises:
          DamagedCheckpoint: there are checkpoints, and all are damaged.
          ValueError: as `restore`.
        """
        if not self._saved and not self._damaged:
            return None, 0
        state, _ = self.restore(abstract_state)
        for step in self.steps[:-1]:
            try:
                _all_or_none(
                    lambda: _check_files(
                        self.directory / str(step), _read_record(self.directory / str(step))
                    )
                )
            except DamagedCheckpoint as error:
                self._set_aside(step, error)
        for step in self.steps:
            self._remove(
                f'{step}{_REPLACED}'
            )  # of a run that was killed when its replacement was whole
        return state, self.latest_step

    def wait(self):
        """Returns when the save in progress is on disk and what need not be kept is gone; raises
        what went wrong with it."""
        if self._saving is None:
            return
        step, future = self._saving
        try:
            with self._explaining(step):
                _all_or_none(future.result)
        finally:
            self._saving = None
        self._damaged.pop(step, None)
        dropped = [old for old in self.steps[: -self._keep] if old != self.best_step]
        for old in dropped:
            del self._saved[old]
        for name in (f'{step}{_REPLACED}', *map(str, dropped)):
            self._remove(name)

    def wait_for_files(self):
        """Returns when this process has written what it was writing; from any thread, without the
        other processes."""
        if (saving := self._saving) is not None:
            saving[1].exception()

    def close(self):
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
        write_whole(
            draft / RECORD_FILE,
            _sealed(
                {'metrics': metrics, 'state': _state_hash(arrays), 'files': _file_hashes(draft)}
            ),
        )
        path = self.directory / str(step)
        if os.path.lexists(path):  # damaged: it goes when its replacement is whole
            self._remove(f'{step}{_REPLACED}')
            path.rename(path.with_name(f'{step}{_REPLACED}'))
        draft.rename(path)

    def _read(self, step, abstract_state) -> dict[str, np.ndarray]:
        """{name: array} of a checkpoint that holds this model and is what was saved."""
        path = self.directory / str(step)
        try:
            record, tree = _all_or_none(lambda: _read_description(path))
            self._check_same_model(step, _shapes(_by_name(tree)), abstract_state)
            arrays = _all_or_none(lambda: _read_arrays(path, tree, record))
        except DamagedCheckpoint as error:
            self._set_aside(step, error)
            raise
        if record.files is None:
            _say(
                f'note: checkpoint {printable(path, 1000)} is from before checksums were kept: '
                'taken as it is'
            )
        return arrays

    def _look(self):
        """Which checkpoints are there, and what they say of themselves: as the first process sees
        it."""
        found = []
        for path in _step_directories(self.directory):
            try:
                found.append((int(path.name), _read_record(path).metrics, None))
            except DamagedCheckpoint as error:
                if os.path.lexists(path):  # else dropped by the run that makes it
                    found.append((int(path.name), None, str(error)))
        for step, metrics, error in _of_first_process(found):
            if error is None:
                self._saved[step] = metrics
            else:
                self._set_aside(step, error)

    def _restore_first_good(self, abstract_state, choose: Callable[[], int]):
        while self._saved:
            with contextlib.suppress(DamagedCheckpoint):
                return self.restore(abstract_state, choose())
        if self._damaged:
            raise self._none_is_good()
        raise FileNotFoundError(f'no checkpoint in {printable(self.directory, 1000)} (there: none)')

    def _set_aside(self, step, error):
        metrics = self._saved.pop(step, None)
        if os.path.lexists(self.directory / str(step)):
            self._damaged[step] = metrics
            _say(f'note: {error}: it does not count')
        else:  # dropped meanwhile by the run that is evaluated
            _say(f'note: checkpoint {printable(self.directory / str(step), 1000)} is gone')

    def _none_is_good(self):
        return DamagedCheckpoint(
            f'all checkpoints in {printable(self.directory, 1000)} are damaged (steps '
            f'{listed(sorted(self._damaged))}): '
            'train again in another --workdir, or put back a copy of them'
        )

    def _remove(self, name):
        """Under another name first, so that a kill in the middle leaves no half of a checkpoint."""
        path = self.directory / name
        if jax.process_index() == 0 and os.path.lexists(path):
            with contextlib.suppress(OSError):
                path = path.rename(
                    path.with_name(f'{name.removesuffix(_REPLACED)}{_UNFINISHED}-dropped')
                )
                _delete(path)

    def _remove_unfinished(self):
        for path in self.directory.iterdir():
            if re.match(
                rf'\d+({re.escape(_UNFINISHED)}|{re.escape(_UNFINISHED_BEFORE)})', path.name
            ):
                _delete(path)

    @contextlib.contextmanager
    def _explaining(self, step):
        """Of what goes wrong in a save, one line; and what it leaves is removed, to make room."""
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
                f'{printable(self.directory, 1000)} ({_reason(error)}); '
                f'{kept}: mend that and give the same command again'
            ) from error

    def _write_config(self):
        if self._config is None or self._config_written or jax.process_index():
            return
        write_whole(
            self.directory / CONFIG_FILE, self._config.to_json(indent=2, sort_keys=True) + '\n'
        )
        self._config_written = True

    def _check_same_model(self, step, saved, wanted):
        wanted = _shapes(_by_name(wanted))
        here, there = 'the model asked for', 'the checkpoint'
        differences = []
        for name in sorted(saved | wanted, key=lambda name: (not name.startswith('params'), name)):
            if name not in saved:
                differences.append(f'{name} {_show(wanted[name])} is not in {there}')
            elif name not in wanted:
                differences.append(f'{printable(name)} {_show(saved[name])} is not in {here}')
            elif saved[name] != wanted[name]:
                both = f'{_show(saved[name])} in {there}, {_show(wanted[name])} in {here}'
                differences.append(f'{name} is {both}')
        if differences:
            rest = f'; and {len(differences) - _LISTED} more' if len(differences) > _LISTED else ''
            raise ValueError(
                f'the checkpoint {printable(self.directory / str(step), 1000)} is of another '
                'model: '
                f'{"; ".join(differences[:_LISTED])}{rest}. '
                'Use the config it was made with '
                f'({printable(self.directory / CONFIG_FILE, 1000)}) or another '
                f'--workdir'
            )


@dataclasses.dataclass(frozen=True)
class _Record:
    """What RECORD_FILE says: metrics, SHA-256 of the state, and of each file by its path in the
    checkpoint; None where there is no such file, in checkpoints from before."""

    metrics: dict
    state: str | None
    files: dict[str, str] | None


def check_directory(directory, read_only: bool = False) -> None:
    """Refuses a directory to whose name Orbax cannot write checkpoints that it reads again; where
    `read_only`, from which it cannot read. For the start of a run.

    Raises:
      ValueError: one line.
    """
    path = os.path.abspath(directory)
    shown, advice = (
        printable(path, 1000),
        'use another --workdir (a symbolic link to this one will do)',
    )
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise ValueError(f'{shown} is no UTF-8, checkpoints cannot lie there: {advice}') from None
    odd = sorted(set(path) & set('\\' if read_only else '*?[\\'))
    if odd or re.search(r'[A-Za-z]\w*:/', path):
        what = ' and '.join(map(repr, odd)) or "':/'"
        raise ValueError(
            f'{shown} has {what} in it, which Orbax takes for a pattern or an address: {advice}'
        )
    if size > _LONGEST_PATH:
        raise ValueError(
            f'{shown} has {size:,} bytes, checkpoints can lie in paths of {_LONGEST_PATH:,}: '
            f'{advice}'
        )


@functools.cache
def _quieten_orbax() -> None:
    """Once and for all: Orbax logs a traceback from each thread in which something went wrong, and
    TensorStore tells an event loop that is closed by then, some of it after the fact. What went
    wrong is raised besides, and told in one line; with --verbosity=1 all is seen."""

    def wanted(record):
        return logging.level_debug() or not (
            'orbax' in pathlib.Path(record.pathname).parts
            or record.name == 'asyncio'
            and 'tensorstore' in record.getMessage()
        )

    def hook(unraisable, before=sys.unraisablehook):
        late = (
            isinstance(unraisable.exc_value, RuntimeError)
            and str(unraisable.exc_value) == 'Event loop is closed'
        )
        if logging.level_debug() or not late:
            before(unraisable)

    for logger in (logging.get_absl_logger(), std_logging.getLogger('asyncio')):
        logger.addFilter(wanted)
    sys.unraisablehook = hook


def _check_writable(directory) -> None:
    probe = directory / '.writable'
    write_whole(probe, bytes(4096))
    probe.unlink()


def _step_directories(directory) -> list[pathlib.Path]:
    """Entries that are named like steps, ascending."""
    if not directory.is_dir():
        return []
    named = [path for path in directory.iterdir() if re.fullmatch('0|[1-9][0-9]*', path.name)]
    return sorted(named, key=lambda path: int(path.name))


def _read_record(path) -> _Record:
    """What a checkpoint says of itself. Of a damaged one, this may still be right: see
    `_check_files`."""
    with _as_damage(path):
        if not path.is_dir():
            raise ValueError('it is no directory')
        if (path / RECORD_FILE).is_file():  # a pipe would be waited for
            return _Record(**_unsealed((path / RECORD_FILE).read_bytes()))
        about = path / _ABOUT  # Orbax passes over one that is damaged
        if not about.is_file() or 'checksums' in (
            json.loads(about.read_bytes()).get('custom_metadata') or {}
        ):
            raise ValueError(f'{RECORD_FILE} is missing')
        metrics = path / 'metrics' / 'metrics'  # where Orbax's Checkpointer had them
        return _Record(
            dict(json.loads(metrics.read_bytes())) if metrics.is_file() else {}, None, None
        )


def _check_files(path, record: _Record) -> None:
    """Raises DamagedCheckpoint when a file is not as it was written."""
    with _as_damage(path):
        found = _file_hashes(path, record.files or ())
        for name, expected in (record.files or {}).items():
            if found[name] != expected:
                raise ValueError(
                    f'{name} is {"not what was written" if found[name] else "missing"}'
                )


def _read_description(path) -> tuple[_Record, dict]:
    """The record of a checkpoint whose files are as they were written, and its tree of Orbax's
    descriptions of arrays."""
    record = _read_record(path)
    _check_files(path, record)
    with _as_damage(path):
        tree = ocp.checkpointables_metadata(path).metadata.get('state')
        if tree is None:
            raise ValueError('the description of its arrays is missing or damaged')
        return record, tree


def _read_arrays(path, tree, record: _Record) -> dict[str, np.ndarray]:
    with _as_damage(path):
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
        arrays = _by_name(ocp.load_checkpointables(path, {'state': like})['state'])
        if record.state not in (None, _state_hash(arrays)):
            raise ValueError('the checksum of the state is another one')
        return arrays


@contextlib.contextmanager
def _as_damage(path):
    """Orbax, TensorStore and the file system raise whatever they like of a damaged checkpoint."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise DamagedCheckpoint(
            f'checkpoint {printable(path, 1000)} is damaged ({_reason(error)})'
        ) from error


def _reason(error: BaseException) -> str:
    """The system's words where they are in it, else the beginning of what Orbax and TensorStore
    say."""
    said = one_line(error)
    for code in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.EMFILE,
    ):
        if os.strerror(code) in said:
            return os.strerror(code)
    said = said.partition(' [tensorstore_spec=')[0]
    return printable(said if len(said) < 200 else '…' + said[-199:])


def _sealed(record: dict) -> bytes:
    return (
        json.dumps(
            {'record': record, 'sha256': hashlib.sha256(_json(record)).hexdigest()},
            indent=1,
            sort_keys=True,
        ).encode()
        + b'\n'
    )


def _unsealed(content: bytes) -> dict:
    found = json.loads(content)
    if found['sha256'] != hashlib.sha256(_json(found['record'])).hexdigest():
        raise ValueError(f'{RECORD_FILE} is not what was written')
    return found['record']


def _file_hashes(path, names=None) -> dict[str, str | None]:
    """{'state/_METADATA': SHA-256, …} of all files in a directory, or of these names, None where
    there is no such file."""
    names = (
        sorted(str(file.relative_to(path)) for file in path.rglob('*') if file.is_file())
        if names is None
        else names
    )

    def of(name):  # a pipe would be waited for
        return sha256_of(path / name) if (path / name).is_file() else None

    with futures.ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(of, names), strict=True))


def _state_hash(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and SHA-256 of the bytes of each array, in the order of their
    names."""

    def of(name):
        array = arrays[name]
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return f'{name} {array.dtype.name} {array.shape} {hashlib.sha256(data).hexdigest()}\n'

    with (
        futures.ThreadPoolExecutor() as pool
    ):  # hashing lets go of the interpreter: arrays side by side
        return hashlib.sha256(''.join(pool.map(of, sorted(arrays))).encode()).hexdigest()


def _json(value) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _without_key(leaf):
    """Typed PRNG keys as the integers that they are, which are stored."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _on_host(leaf) -> np.ndarray:
    """The whole array in this process's memory. On a CPU a jax.Array itself: JAX does not hand its
    memory on while this refers to it."""
    if not isinstance(leaf, jax.Array):
        return np.array(leaf)
    if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _placed(value: np.ndarray, like) -> jax.Array:
    """On the devices that `like` names."""
    sharding = getattr(like, 'sharding', None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    array = jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    if not _is_key(like):
        return array
    kind = []  # of a key that may be a ShapeDtypeStruct, only a trace tells
    jax.eval_shape(lambda key: kind.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(array, impl=kind[0])


def _is_key(leaf) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _by_name(tree) -> dict:
    """{'params/conv/kernel': leaf}, in the order of the tree."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}


def _shapes(leaves: dict) -> dict[str, tuple]:
    """{name: (shape, dtype name)}; typed PRNG keys as the integers that are stored."""
    leaves = {
        name: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        for name, leaf in leaves.items()
    }
    return {name: (tuple(leaf.shape), np.dtype(leaf.dtype).name) for name, leaf in leaves.items()}


def _best(metrics: dict[int, dict]) -> int | None:
    """The step of the highest 'val_accuracy', of equals the first."""
    scores = {step: metrics[step].get(SELECTION_METRIC) for step in sorted(metrics)}
    scores = {
        step: score
        for step, score in scores.items()
        if isinstance(score, (int, float)) and math.isfinite(score)
    }
    return max(scores, key=scores.get, default=None)


def _all_or_none(action):
    """The result of what all processes do; what goes wrong in one of them goes wrong in all."""
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    if multihost_utils.process_allgather(np.array(error is None)).all():
        return result
    raise error or DamagedCheckpoint(
        'another process cannot read or write a checkpoint, and says why'
    )


def _of_first_process(value):
    """Process 0's value, of what JSON can hold, on all processes."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(_json(value), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = np.resize(text, size)  # of the others only the size counts
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(text)))


def _meet(where: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _delete(path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def saved_settings(directory) -> dict:
    """{'model.matcher.name': value, …}: the settings of the run whose checkpoints lie there; {}
    where there are none.

    A function of the files alone.

    Raises:
      ValueError, OSError: config.json is damaged or cannot be read: one line, with the file and
        what to do.
    """
    directory = pathlib.Path(directory)
    path = directory / CONFIG_FILE
    if not path.exists() or not _step_directories(directory):
        return {}
    what = 'these are the settings of the run; put back a copy, or delete the file and go on training with the same command, which writes it anew'
    settings = read_json(path, what)
    if not isinstance(settings, dict):
        raise ValueError(f'{printable(path, 1000)} is damaged (no settings by name): {what}')
    return flatten(settings)


def _show(shape_and_dtype) -> str:
    shape, dtype = shape_and_dtype
    return f'{dtype}[{",".join(map(str, shape))}]'
