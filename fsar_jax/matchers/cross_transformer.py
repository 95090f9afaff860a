"""Tuple cross-transformer: TRX, and with Ω = {2} the TRM of STRM."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.fields import setting
from fsar_jax.layers import (
    POSITION_AMPLITUDE,
    TupleLinear,
    combine_cardinalities,
    einsum_float32,
    kept_tuples,
    norm,
    sinusoidal_positions,
)
from fsar_jax.matchers.matcher import Matcher, of_pairs
from fsar_jax.stage import Shared


def check_cardinalities(omega: tuple[int, ...], frames: int | None = None) -> None:
    """ValueError, one line, where Ω does not suit clips of `frames` frames (None: of any clip)."""
    distinct = len(set(omega)) == len(omega) > 0 and min(omega) >= 1
    if not distinct or frames is not None and max(omega) > frames:
        span = (
            'at least 1' if frames is None else f'lie between 1 and config.episode.frames={frames}'
        )
        raise ValueError(
            f'config.model.matcher.cardinalities={omega} must be distinct and {span}, and there '
            'must be one'
        )


def compared_tuples(stage: Any, length: int, cardinality: int, train: bool = False) -> np.ndarray:
    """The frame tuples of one cardinality that a stage with the settings `tuples_…` compares in
    clips of `length` frames: int32 [T, cardinality]."""
    drawn = stage.tuples_share_in_training or not train
    share = stage.tuples_share if drawn else 1.0
    return kept_tuples(length, cardinality, share, stage.tuples_seed)


class TupleProjection(nn.Module):
    """Keys (with LayerNorm) and values of frame tuples [T, ω] of one cardinality; the same maps for
    query and support (TRX, Sec. 3)."""

    cardinality: int
    dim: int
    dtype: Any

    def setup(self) -> None:
        self.key = TupleLinear(self.dim, self.cardinality, dtype=self.dtype)
        self.value = TupleLinear(self.dim, self.cardinality, dtype=self.dtype)
        self.key_norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)

    def __call__(self, frames: jax.Array, tuples: np.ndarray) -> dict[str, jax.Array]:
        keys = self.key_norm(self.key(frames, tuples))
        return {'keys': keys, 'values': self.value(frames, tuples)}


class CrossTransformer(Matcher):
    """Distance of a query to a query-specific prototype of each class, over tuples of frames (TRX;
    STRM Eq. 1).

    For a query tuple t and class c, a = softmax over the class's K·T support tuples of k_t·k_s/√D′
    and p = Σ a v_s. variant='code': −(1/T) Σ_t ‖v_t − p‖², mean over Ω. variant='paper': −(1/T) Σ_t
    ‖v_t − p‖, sum over Ω (rows S7 to S9, T1, T2 of docs/paper_vs_code.md).

    Args:
      cardinalities: Ω, the tuple lengths.
      dim: D′; None for half of the feature dimension (the published setting is 1152 for D = 2048).
      variant: 'code' or 'paper'.
      cardinality_reduction: 'mean' or 'sum' over Ω; None as the variant says.
      dropout: rate on the frames (after the position code) while training.
      dtype: compute dtype of the projections; scores, softmax and distances are float32.
      tuples_share: r, the share of the tuples of each cardinality that is compared (STRM, Fig. 6
        right: SSv2 65.4 with 20%, 68.1 with all; row S26).
      tuples_seed: draws them. They are the same for all videos, so a trial is a seed.
      tuples_share_in_training: False compares all tuples in training.
    """

    cardinalities: tuple[int, ...] = setting(
        (2,),
        affects='model',
        factor='C',
        help='Omega: tuples of so many frames are compared; (2, 3): pairs and triples',
    )
    dim: int | None = setting(
        128,
        at_least=1,
        affects='model',
        help="D', width of keys and values; None: half the feature dimension; published: 1152",
    )
    variant: str = Shared.variant
    cardinality_reduction: str | None = setting(
        None,
        choices=('mean', 'sum'),
        affects='model',
        factor='C',
        help='how the scores of the cardinalities are combined; None: the mean for variant '
        "'code', the sum for 'paper'",
    )
    dropout: float = setting(
        0.1, at_least=0, below=1, affects='model', help='dropout rate in training'
    )
    dtype: Any = jnp.float32
    tuples_share: float = setting(
        1.0,
        above=0,
        at_most=1,
        factor='C',
        help='share of the frame tuples that are compared, drawn by tuples_seed; 1: all',
    )
    tuples_seed: int = setting(
        0,
        at_least=0,
        at_most=2**63 - 1,
        factor='C',
        help='random seed of the tuples that are compared where tuples_share is below 1; a trial '
        'is a seed',
    )
    tuples_share_in_training: bool = setting(
        False,
        affects='training',
        factor='C',
        help='True: training compares the same share of the tuples; False: all of them, and '
        'tuples_share counts in evaluation alone',
    )

    def check(self, frames: int | None = None) -> None:
        check_cardinalities(self.cardinalities, frames)

    @nn.compact
    def project(
        self, features: VideoFeatures, train: bool = False
    ) -> dict[str, dict[str, jax.Array]]:
        """Per video: frames [B, L, D] → {cardinality_ω: {'keys', 'values'}}, each [B, T, D′]."""
        frames = features.frames.astype(self.dtype)
        length, width = frames.shape[-2:]
        frames = frames + POSITION_AMPLITUDE * jnp.asarray(
            sinusoidal_positions(length, width), self.dtype
        )
        frames = nn.Dropout(self.dropout)(frames, deterministic=not train)
        return {
            f'cardinality_{w}': TupleProjection(
                w, self.dim or width // 2, self.dtype, name=f'cardinality_{w}'
            )(frames, compared_tuples(self, length, w, train))
            for w in self.cardinalities
        }

    def __call__(
        self,
        support: dict[str, dict[str, jax.Array]],
        query: dict[str, dict[str, jax.Array]],
        train: bool = False,
    ) -> jax.Array:
        """Per episode: support leaves [way, shot, T, D′], query leaves [Q, T, D′] → logits float32
        [Q, way]."""
        logits = []
        for name in support:
            logits.append(-self.distance(support[name], query[name]))
        chex.assert_rank(logits, 2)
        return combine_cardinalities(logits, self.cardinality_reduction, self.variant)

    def compare_pairs(self, support: jax.Array, query: jax.Array, train: bool = False) -> jax.Array:
        """Of aligned pairs: support and query frames [Q, way, L, D] → logits float32 [Q, way]."""
        s, q = (of_pairs(lambda x: self.project(x, train), frames) for frames in (support, query))

        def of_one(s, q):  # a class of one clip, and one query
            s = jax.tree.map(lambda x: x[None, None], s)
            return self.distance(s, jax.tree.map(lambda x: x[None], q))[0, 0]

        logits = [-jax.vmap(jax.vmap(of_one))(s[name], q[name]) for name in s]
        return combine_cardinalities(logits, self.cardinality_reduction, self.variant)

    def distance(self, support: dict[str, jax.Array], query: dict[str, jax.Array]) -> jax.Array:
        """To the classes, by the tuples of one cardinality: support leaves [way, shot, T, D′],
        query leaves [Q, T, D′] → float32 [Q, way]."""
        q, s = query, jax.tree.map(lambda x: x.reshape(x.shape[0], -1, x.shape[-1]), support)
        queries, tuples, width = q['values'].shape
        attention = self.attention(s['keys'], q['keys'])
        prototypes = einsum_float32(
            'xws,wsd->wxd', attention.astype(s['values'].dtype), s['values']
        )
        difference = q['values'].reshape(-1, width).astype(jnp.float32) - prototypes
        code = self.variant == 'code'
        distance = jnp.sum(jnp.square(difference), -1) if code else norm(difference)
        return distance.reshape(-1, queries, tuples).mean(-1).T

    def attention(self, support: jax.Array, query: jax.Array) -> jax.Array:
        """a of each pair of tuples: keys [way, shot·T, D′] and [Q, T, D′] → float32 [Q·T, way,
        shot·T], whose last axis sums to 1.

        The scores are one product of rows (query, tuple) and columns (class, tuple). With an axis
        for each of the four, XLA copies the scores into another order, and the gradient takes half
        as long again on a CPU.
        """
        way, width = support.shape[0], query.shape[-1]
        scores = einsum_float32('xd,yd->xy', query.reshape(-1, width), support.reshape(-1, width))
        return jax.nn.softmax(scores.reshape(len(scores), way, -1) / jnp.sqrt(width), axis=-1)

    def explain(
        self, support: dict[str, dict[str, jax.Array]], query: dict[str, dict[str, jax.Array]]
    ) -> dict[str, jax.Array]:
        """{'attention_cardinality_ω' [Q, way, T, shot, T]}: what each tuple of a query takes from
        each tuple of a class; `compared_tuples` are their frames."""
        found = {}
        for name in support:
            keys = support[name]['keys']
            way, shot, tuples, width = keys.shape
            attention = self.attention(keys.reshape(way, shot * tuples, width), query[name]['keys'])
            found[f'attention_{name}'] = jnp.moveaxis(
                attention.reshape(-1, tuples, way, shot, tuples), 2, 1
            )
        return found
