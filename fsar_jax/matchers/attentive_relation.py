"""TARN: the support clip is aligned to each step of the query by attention, and a recurrent network
learns how alike they are."""

from collections.abc import Mapping
from typing import Any, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.fields import setting
from fsar_jax.layers import Linear, einsum_float32, norm, torch_start, unit
from fsar_jax.matchers.matcher import Matcher
from fsar_jax.stage import Loss


def distance_cosine(query: jax.Array, aligned: jax.Array) -> jax.Array:
    """[‖q − h‖, cos(q, h)]: [..., D] twice → [..., 2]."""
    cosine = jnp.sum(unit(query) * unit(aligned), -1)
    return jnp.stack([norm(query - aligned), cosine], -1)


COMPARISONS = {
    'distance_cosine': distance_cosine,
    'product': lambda query, aligned: query * aligned,
    'difference': lambda query, aligned: query - aligned,
}


class AttentiveRelation(Matcher):
    """logit = the mean over the shots s of a class of w·GRU(c_1 … c_L) + b, c_t = the comparison of
    q_t with h_t = Σ_u softmax_u(q_t · (W s_u + b)) s_u (TARN, Bishay et al. 2019).

    q_t and s_u are steps of a bidirectional GRU over the frame features of a clip. h is the support
    clip, resampled to the times of the query. The relation network is the GRU over the query's
    steps and a linear map of its last state; the sigmoid of a logit is the paper's relation score.
    Each score is trained by binary cross entropy. What the paper leaves open is in rows R1 to R5 of
    docs/paper_vs_code.md; there are no variants.

    Args:
      hidden: units of each GRU; a clip's features have twice as many.
      comparison: a key of COMPARISONS.
      dtype: compute dtype of the first GRU; attention, comparison and relation are float32.
    """

    hidden: int = setting(256, at_least=1, affects='model', help='number of units of each GRU')
    comparison: str = setting(
        'distance_cosine',
        choices=tuple(COMPARISONS),
        affects='model',
        help='how a step of the query is compared with the aligned step of a support clip: their '
        'Euclidean distance and cosine, or product or difference of each feature',
    )
    dtype: Any = jnp.float32

    def setup(self) -> None:
        start = torch_start(self.hidden)
        cell = lambda dtype: nn.GRUCell(
            self.hidden,
            kernel_init=start,
            recurrent_kernel_init=start,
            bias_init=start,
            dtype=dtype,
        )
        self.onward = nn.RNN(cell(self.dtype))
        self.backward = nn.RNN(cell(self.dtype), reverse=True, keep_order=True)
        self.weigh = Linear(None, dtype=jnp.float32)
        self.relate = nn.RNN(cell(jnp.float32), return_carry=True)
        self.score = Linear(1, dtype=jnp.float32)

    def project(self, features: VideoFeatures, train: bool = False) -> dict[str, jax.Array]:
        """Per video: frames [B, L, D] → {'steps': of the GRU, 'keys': W s + b}, each float32 [B, L,
        2 · hidden]."""
        frames = features.frames.astype(self.dtype)
        onward, backward = (cast(jax.Array, gru(frames)) for gru in (self.onward, self.backward))
        steps = jnp.concatenate([onward, backward], -1).astype(jnp.float32)
        return {'steps': steps, 'keys': self.weigh(steps)}

    def __call__(
        self, support: dict[str, jax.Array], query: dict[str, jax.Array], train: bool = False
    ) -> jax.Array:
        """Per episode: support leaves [way, shot, L, 2 · hidden], query leaves [Q, L, 2 · hidden] →
        logits float32 [Q, way]."""
        attention = self.attention(support['keys'], query['steps'])
        aligned = einsum_float32('qwkxy,wkye->qwkxe', attention, support['steps'])
        compared = COMPARISONS[self.comparison](query['steps'][:, None, None], aligned)
        last, _ = self.relate(compared.reshape(-1, *compared.shape[-2:]))
        logits = self.score(last).reshape(compared.shape[:3]).mean(-1)
        chex.assert_shape(logits, (len(query['steps']), len(support['steps'])))
        return logits

    def attention(self, keys: jax.Array, steps: jax.Array) -> jax.Array:
        """What each step of a query takes from each of a support clip: keys [way, shot, L, E] and
        steps [Q, L, E] → float32 [Q, way, shot, L, L], whose last axis sums to 1."""
        return jax.nn.softmax(einsum_float32('qxe,wkye->qwkxy', steps, keys), axis=-1)

    def explain(
        self, support: dict[str, jax.Array], query: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """{'attention' [Q, way, shot, L, L]}, the query's steps in the rows."""
        return {'attention': self.attention(support['keys'], query['steps'])}

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """Binary cross entropy: of the query's class, plus the mean over the other classes."""
        logits = outputs['temporal_matching']
        way = logits.shape[-1]
        true = jax.nn.one_hot(labels, way)
        others = jnp.sum((1 - true) * jax.nn.softplus(logits), -1) / (way - 1)
        own = jnp.sum(true * jax.nn.softplus(-logits), -1)
        return {'matching': Loss(self.loss_weight, own + others)}
