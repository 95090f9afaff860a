"""Selects the checkpoint of a run that is evaluated."""

import os
import pathlib
import re
from typing import NamedTuple

import jax

from fsar_jax.learner import create_learner
from fsar_jax.mesh import replicated
from fsar_jax.messages import listed
from fsar_jax.stage import ArrayTree
from fsar_jax.training.checkpoint_files import step_directories
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.run_settings import run_config
from fsar_jax.training.state import TrainState, train_state_shapes


class Selected(NamedTuple):
    """The checkpoint that is evaluated.

    Attributes:
      state: on the devices.
      step: its step.
      how: how it was chosen, in words.
      damaged: steps that may be better, but are damaged.
      metrics: as saved with it, {'val_accuracy': …}.
      to_come: the last step of a run that has not done it yet; 0 of a finished one.
    """

    state: TrainState
    step: int
    how: str
    damaged: list[int]
    metrics: dict[str, float]
    to_come: int = 0

    @property
    def changed(self) -> dict[str, tuple]:
        """As of `departures`: another checkpoint than this one may be the best, one that is damaged
        or that the run has not reached."""
        others = [*self.damaged, *filter(None, [self.to_come])]
        return {'checkpoint': (max(others), self.step)} if others else {}


def best_of_run(workdir: str | os.PathLike[str], mesh: jax.sharding.Mesh) -> Selected:
    """The checkpoint that counts of the run in `workdir`, on the devices of the mesh.

    The state is built from the settings of the run, so nothing else has to be known of it.
    """
    directory, config = pathlib.Path(workdir) / 'checkpoints', run_config(workdir)
    with Checkpoints(directory, config=config, read_only=True) as checkpoints:
        like = train_state_shapes(config, create_learner(config.model))
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), like
        )
        selected = select(checkpoints, like)
    last = max(int(path.name) for path in step_directories(directory))
    steps = config.train.num_steps
    return selected._replace(to_come=steps if last < steps else 0)


def select(checkpoints: Checkpoints, like: ArrayTree) -> Selected:
    """The best checkpoint on val, or the last one where val was not evaluated. Where it is damaged,
    the next best, and `how` says so.

    like: the state, see `Checkpoints.restore`.
    """
    state, metrics = checkpoints.restore_best(like)
    best, damaged = checkpoints.best_step, checkpoints.damaged_and_better
    step = checkpoints.latest_step if best is None else best
    assert step is not None  # one has just been restored
    how = f'last step ({step})' if best is None else f'val accuracy at step {step}'
    if damaged:
        how += f' (damaged: step {listed(damaged)})'
    return Selected(state, step, how, damaged, metrics)


def step_in(how: object) -> int | None:
    """The step that `Selected.how` names, which results keep as 'selected_on'; None for others."""
    found = re.match(r'(val accuracy at step |last step \()(\d+)', str(how))
    return int(found[2]) if found else None
