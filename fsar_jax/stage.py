"""The base class of all stages: what the learner may ask of one, besides its computation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fsar_jax.fields import Saving, setting

# A pytree of arrays. Only the code that makes it and the code that uses it know its structure.
ArrayTree = Any

# The losses of an episode are added in this order, and within a kind in the order of the stages.
# Float addition depends on the order, and a resumed run repeats every bit.
KINDS = ('episode', 'training classes', 'regulariser')

VARIANTS = ('code', 'paper')  # follow the authors' code, or the equations of the paper


@dataclasses.dataclass(frozen=True)
class Shared:
    """The settings of config.model that all stages share. A stage that reads one has a field of its
    name, with this default."""

    variant: str = setting(
        'code',
        choices=VARIANTS,
        affects='model',
        help="where they differ, follow the authors' code ('code') or the equations of the paper "
        "('paper')",
    )
    dtype: str = setting(
        'float32',
        choices=('float32', 'bfloat16'),
        saving=Saving(1, value='bfloat16'),
        help='number format of the computation; parameters, scores and losses stay float32',
    )
    align_at_test: bool = setting(
        True,
        help='False: evaluation skips the temporal transform and action coordination; training '
        'does not',
    )


class Loss(NamedTuple):
    """One loss of a stage.

    Attributes:
      weight: its factor in the total loss; a field of the stage.
      value: float32 [Q], one value per query; or a scalar, which counts once for each query.
      kind: one of KINDS: over the classes of the episode, over the training classes, or neither.
    """

    weight: float
    value: jax.Array
    kind: Literal['episode', 'training classes', 'regulariser'] = 'episode'


class Stage(nn.Module):
    """A sampler, scan network, backbone, enrichment, matcher or query similarity.

    A stage overrides the methods below that it needs. By default it has no loss and no schedule.
    The methods are called on the unbound module, so they may read its fields but no parameters.

    Settings of a stage are fields (fsar_jax.fields). Fields without `setting` get the values that
    all stages share (fsar_jax.stages.build_stages).
    """

    # Whether a sampler or a backbone takes feature maps [..., h, w, C] in place of frames.
    takes_maps = False
    published_start = ''  # pretrained weights that the authors start from; '' for random weights
    batch_norm_momentum = 0.9  # of its running statistics (fsar_jax/backbones/batch_norm.py)
    rate = 1.0  # its learning rate, times that of the rest
    looks_at = 0.5  # where in its square a cell of a map looks: 0 first pixel, 1 last; for pictures

    @property
    def takes_clips(self) -> bool:
        """Whether a backbone takes clips [B, L, H, W, 3] in place of frames."""
        return False

    @property
    def fixed_parts(self) -> tuple[str, ...]:
        """Its submodules that stay as they start: parameters and running statistics. Where it has
        some, no other has batch norm."""
        return ()

    @property
    def needs_maps(self) -> bool:
        """Whether it looks at places in a frame, so that features which are pooled over the frame
        will not do."""
        return False

    def input_scaling(self) -> dict[str, Any]:
        """How a backbone scales a pixel x of 0 … 1, for who runs it elsewhere: {'name', 'mean',
        'std'} of (x − mean) / std, per channel. By default it takes x."""
        return {'name': 'unit', 'mean': (0.0,) * 3, 'std': (1.0,) * 3}

    @nn.nowrap
    def in_parts(self, parts: tuple[int, ...]) -> Stage | None:
        """A bound backbone, with the same variables, for a batch of contiguous parts of these
        sizes (in any unit) that only share the pass: no statistics of the batch mix them. None, the
        default, where it has none: then it runs once for each part. Override it with `nn.nowrap`,
        as here: Linen must not take the answer for an output."""
        return None

    def check(self, frames: int | None = None) -> None:
        """Raises a one-line ValueError if settings of this stage do not fit each other, or do not
        fit clips of L = `frames` frames. None skips the check of the clips."""

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """The losses of this stage for one episode, by name. It may leave out losses of weight 0.

        Args:
          outputs: `Prediction.auxiliary`, {name: array}.
          labels: int [Q], 0 … way−1.
          classes: int [way], the training class of each class of the episode; None if they are
            not training classes.
        """
        return {}

    def schedules(self, num_steps: int) -> dict[str, optax.Schedule]:
        """{name: function of the step} of the values that change during a training of `num_steps`
        steps. The stage reads them as variables of the collection 'schedule'."""
        return {}

    def explain(self, support: ArrayTree, query: ArrayTree) -> dict[str, jax.Array]:
        """What this stage can show of one episode besides its outputs, {name: array}: how it came
        to them. Only `FewShotLearner.explain` asks for it, so it costs nothing elsewhere. Unlike
        the other methods, it is called on the bound module.

        Args:
          support, query: what the stage works on in an episode: for a sampler the outputs of
            `scan`, for a matcher those of `project`.
        """
        return {}


def check_shape(part: str, stage: nn.Module, what: str, output: Any, **axes: int | None) -> None:
    """Raises a one-line ValueError where an output of a stage is no array with these axes.

    Args:
      part, what: what the stage and the output are, in words: 'matcher', 'logits'.
      axes: the size of each axis by its letter; None where any will do.
    """
    found = getattr(output, 'shape', ())
    sizes = [size for size, wanted in zip(found, axes.values()) if wanted is not None]
    if len(found) != len(axes) or sizes != [n for n in axes.values() if n is not None]:
        shown = list(found) if hasattr(output, 'shape') else f'of {type(output)}'
        expected = ', '.join(str(letter if n is None else n) for letter, n in axes.items())
        raise ValueError(
            f'{part} {type(stage).__name__} returned {what} {shown}, expected '
            f'[{", ".join(axes)}] = [{expected}]'
        )


def check_tokens(part: str, stage: Stage, tokens: jax.Array, enriched: Any) -> None:
    """Raises a one-line ValueError where a token enrichment does not keep [B, …, N, D]."""
    letters = ('B', 'L', 'N', 'D') if tokens.ndim == 4 else ('B', 'N', 'D')
    check_shape(part, stage, 'tokens', enriched, **dict(zip(letters, tokens.shape, strict=True)))


def check_losses(part: str, stage: Stage, losses: Any, shape: tuple[int, ...]) -> None:
    """Raises a one-line ValueError where `Stage.losses` did not return {name: Loss}, each of one
    value for an episode or one for each of its [Q] queries."""
    if not isinstance(losses, Mapping) or not all(isinstance(x, Loss) for x in losses.values()):
        raise ValueError(
            f'{part} {type(stage).__name__}.losses returned no dict of Loss(weight, value)'
        )
    for name, loss in losses.items():
        if jnp.shape(loss.value) not in ((), shape):
            raise ValueError(
                f"{part} {type(stage).__name__}.losses returned '{name}' of shape "
                f'{list(jnp.shape(loss.value))}, expected [Q] = {list(shape)} or one number'
            )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """logits [..., classes], integer labels that broadcast to [...] → float32 [...]."""
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
