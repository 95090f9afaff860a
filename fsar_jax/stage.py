"""What the learner may ask of any stage beside its computation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

# A pytree of arrays, of a structure that only those who make and use it know.
ArrayTree = Any

# The losses of an episode are added in this order, and within a kind in the order of the stages.
# Float addition depends on the order, and a resumed run repeats every bit.
KINDS = ('episode', 'training classes', 'regulariser')

VARIANTS = ('code', 'paper')  # what produced the published numbers; the printed equations


class Loss(NamedTuple):
    """One loss of a stage.

    Attributes:
      weight: its factor in what training minimises, a field of the stage.
      value: float32 [Q], one per query; or a scalar, a mean that counts once per query.
      kind: one of KINDS: over the classes of the episode, over the training classes, or neither.
    """

    weight: float
    value: jax.Array
    kind: Literal['episode', 'training classes', 'regulariser'] = 'episode'


class Stage(nn.Module):
    """A sampler, backbone, enrichment, matcher or query similarity.

    A stage overrides what it needs of the methods below; by default it trains nothing by itself.
    They are called on the unbound module, so they read its fields and no parameters.

    Its settings are fields too (fsar_jax.fields); a field without a setting is what all stages
    share (fsar_jax.learner.create_learner).
    """

    # Whether a sampler or a backbone takes feature maps [..., h, w, C] in place of frames.
    takes_maps = False
    published_start = ''  # what the authors of a method start its weights from; '' for random ones

    def check(self, frames: int | None = None) -> None:
        """Raises ValueError, one line, where settings of this stage do not fit each other or clips
        of L = `frames` frames (None: of any length)."""

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """The losses of this stage for one episode, by name; those of weight 0 may be left out.

        Args:
          outputs: `Prediction.auxiliary`, {name: array}.
          labels: int [Q], 0 … way−1.
          classes: int [way], which training class each class of the episode is; None where they
            are not training classes.
        """
        return {}

    def schedules(self, num_steps: int) -> dict[str, optax.Schedule]:
        """Values that change during a training of `num_steps` steps, by name: functions of the
        step. The stage reads them as variables of the collection 'schedule'."""
        return {}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """logits [..., classes], integer labels that broadcast to [...] → float32 [...]."""
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
