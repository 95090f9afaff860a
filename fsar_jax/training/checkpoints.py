"""Checkpoints of a run: written in the background, the last few and the best kept, restored on any devices.

The only module that knows Orbax. Orbax V1 writes a checkpoint beside its final name and renames it when it is
complete, so a process killed in the middle of a save leaves the earlier checkpoints as they were.
"""

import dataclasses
import json
import math
import os
import pathlib

import jax
import ml_collections
import numpy as np

try:
    from orbax.checkpoint import v1 as ocp
except ImportError:                                       # releases in which V1 has no public name yet
    from orbax.checkpoint.experimental import v1 as ocp

SELECTION_METRIC = 'val_accuracy'
CONFIG_FILE = 'config.json'
_LISTED = 5                                               # differing leaves named in an error message


class Checkpoints:
    """The checkpoints `<directory>/<step>/` of one run, with the config that made them in `config.json`.

    A context manager; leaving it waits for the save in progress. With several processes all of them call
    every method, on one shared directory.

    Args:
      directory: made when absent, unless `read_only`.
      keep: the last `keep` checkpoints stay, and the best on 'val_accuracy' besides.
      config: written to config.json at the first save.
      read_only: for evaluation: never writes nor cleans up, so it is safe beside a training run.

    Raises:
      FileNotFoundError: `read_only` and the directory holds no checkpoint.
    """

    def __init__(self, directory, keep: int = 3, config: ml_collections.ConfigDict | None = None, read_only: bool = False):
        self.directory = pathlib.Path(os.path.abspath(directory))
        self._config, self._config_written = config, False
        if read_only and not self.directory.is_dir():
            raise FileNotFoundError(f'no checkpoint in {directory}: train first, or check --workdir')
        self._checkpointer = ocp.training.Checkpointer(
            self.directory, preservation_policy=_LatestAndBest(keep), cleanup_tmp_directories=not read_only)
        if read_only and self.latest_step is None:
            self.close()
            raise FileNotFoundError(f'no checkpoint in {directory}: train first, or check --workdir')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def steps(self) -> list[int]:
        """Steps that are saved, ascending; a save in progress counts from the moment it was asked for."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def latest_step(self) -> int | None:
        """The last step saved; None before the first."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the highest 'val_accuracy', of equals the earliest; None when no step has one."""
        index = _best(self._checkpointer.checkpoints)
        return None if index is None else self.steps[index]

    def save(self, step: int, state, metrics: dict | None = None) -> bool:
        """Starts writing a checkpoint and returns; waits only for the save before it.

        Args:
          step: number of finished steps.
          state: any pytree of arrays. May be donated to the next step right after the call.
          metrics: what JSON can hold, without NaN. 'val_accuracy' decides which checkpoint is the best.

        Returns:
          False, and nothing is written, when the step is saved already.

        Raises:
          ValueError: `metrics` is not strict JSON.
        """
        if step in self.steps:
            return False
        try:
            metrics = json.loads(json.dumps(metrics or {}, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f'metrics of step {step} cannot be written as JSON ({error}): pass Python '
                             f'numbers, strings and lists, without NaN') from None
        self._write_config()
        self._checkpointer.save_checkpointables_async(step, {'state': state}, metrics=metrics, force=True)
        return True

    def restore(self, abstract_state, step: int | None = None):
        """Reads a checkpoint onto the devices that `abstract_state` names, whatever it was saved on.

        Args:
          abstract_state: the state, or the same tree of `jax.ShapeDtypeStruct`; its shardings say where the
            arrays go, without one they go to the first device.
          step: which checkpoint; None is the latest.

        Returns:
          (state, metrics).

        Raises:
          FileNotFoundError: no checkpoint, or none at this step.
          ValueError: it holds another model: one line, the leaves that differ in name, shape or dtype.
        """
        self.wait()
        if step is None:
            step = self.latest_step
        found = self._find(step)
        saved = self._checkpointer.checkpointables_metadata(step).metadata['state']
        self._check_same_model(step, saved, abstract_state)
        abstract_state = jax.tree.map(_abstract, abstract_state)
        restored = self._checkpointer.load_checkpointables(step, {'state': abstract_state})
        return restored['state'], dict(found.metrics or {})

    def wait(self):
        """Returns when the save in progress is on disk; raises what went wrong with it."""
        self._checkpointer.wait()

    def close(self):
        """Waits, then lets go of the directory."""
        self._checkpointer.close()

    def _find(self, step):
        for checkpoint in self._checkpointer.checkpoints:
            if checkpoint.step == step:
                return checkpoint
        which = 'no checkpoint' if step is None else f'no checkpoint of step {step}'
        there = ', '.join(map(str, self.steps)) or 'none'
        raise FileNotFoundError(f'{which} in {self.directory} (there: {there})')

    def _write_config(self):
        if self._config is None or self._config_written or jax.process_index():
            return
        path = self.directory / CONFIG_FILE
        draft = path.with_suffix('.tmp')
        draft.write_text(self._config.to_json(indent=2, sort_keys=True) + '\n')
        draft.replace(path)                               # a kill leaves the old file or the new, never half
        self._config_written = True

    def _check_same_model(self, step, saved, wanted):
        saved, wanted = _leaves(saved), _leaves(wanted)
        here, there = 'the model asked for', 'the checkpoint'
        differences = []
        for name in sorted(saved | wanted, key=lambda name: (not name.startswith('params'), name)):
            if name not in saved:
                differences.append(f'{name} {_show(wanted[name])} is not in {there}')
            elif name not in wanted:
                differences.append(f'{name} {_show(saved[name])} is not in {here}')
            elif saved[name] != wanted[name]:
                both = f'{_show(saved[name])} in {there}, {_show(wanted[name])} in {here}'
                differences.append(f'{name} is {both}')
        if differences:
            rest = f'; and {len(differences) - _LISTED} more' if len(differences) > _LISTED else ''
            raise ValueError(f'the checkpoint {self.directory / str(step)} is of another model: '
                             f'{"; ".join(differences[:_LISTED])}{rest}. '
                             f'Use the config it was made with ({self.directory / CONFIG_FILE}) or another '
                             f'--workdir')


@dataclasses.dataclass
class _LatestAndBest:
    """Orbax preservation policy: the last n, and the best (`ocp`'s own BestN keeps the latest of equals)."""
    n: int

    def should_preserve(self, checkpoints, *, context):
        del context
        kept = set(range(len(checkpoints))[-self.n:]) | {_best(checkpoints)}
        return [index in kept for index in range(len(checkpoints))]


def _best(checkpoints) -> int | None:
    """Index of the highest 'val_accuracy', of equals the first."""
    scores = [(checkpoint.metrics or {}).get(SELECTION_METRIC) for checkpoint in checkpoints]
    scores = [-math.inf if score is None else score for score in scores]
    if not scores or max(scores) == -math.inf:
        return None
    return scores.index(max(scores))


def _leaves(tree) -> dict[str, tuple]:
    """{'params/conv/kernel': (shape, dtype name)}; typed PRNG keys as the integers that Orbax stores."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {}
    for path, leaf in paths:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        leaves[name] = tuple(leaf.shape), np.dtype(leaf.dtype).name
    return leaves


def _abstract(leaf):
    # Without a sharding Orbax would look for the devices that the checkpoint was saved on.
    sharding = getattr(leaf, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def saved_settings(directory) -> dict:
    """{'model.matcher.name': value, …}: the settings of the run whose checkpoints lie there; {} where there are none.

    A function of the files alone: Orbax, once opened, works in the background and complains when it is stopped at once.
    """
    directory = pathlib.Path(directory)
    path = directory / CONFIG_FILE
    if not path.exists() or not any(entry.name.isdigit() for entry in directory.iterdir()):
        return {}
    return flatten(json.loads(path.read_text()))


def flatten(tree: dict, prefix: str = '') -> dict:
    """{'a': {'b': 1}} → {'a.b': 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return flat


def _show(shape_and_dtype) -> str:
    shape, dtype = shape_and_dtype
    return f'{dtype}[{",".join(map(str, shape))}]'
