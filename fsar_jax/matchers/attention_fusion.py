"""MASTAF: self- and cross-attention between the maps of query and class, each scored by cosine, and
their sum."""

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.enrichment import VideoFeatures
from fsar_jax.fields import setting
from fsar_jax.layers import Linear, einsum_float32, torch_start, unit
from fsar_jax.matchers.classifier import Classifier
from fsar_jax.matchers.matcher import Matcher
from fsar_jax.stage import Loss, Shared, cross_entropy

TEMPERATURE = 0.025  # row M4 of docs/paper_vs_code.md
SCORE_SCALE = 7.0
KERNELS = ('meta_learner', 'mean')


class MetaLearner(nn.Module):
    """Kernel of an attention map from the mean relation of each position: k = W₂ σ(BN(W₁ r + b₁)) +
    b₂, P → 6 → P.

    Input r [..., P], output [..., P]. The batch norm has 6 channels and everything else for a
    batch.
    """

    frozen: bool
    dtype: Any

    @nn.compact
    def __call__(self, relation: jax.Array, normalize: bool, train: bool) -> jax.Array:
        positions = relation.shape[-1]
        x = Linear(6, dtype=self.dtype, name='squeeze')(relation)
        flat = x.reshape(-1, 6)
        normal = BatchNorm(frozen=self.frozen, dtype=self.dtype, name='bn')
        if normalize or self.is_initializing():
            flat = normal(flat, train)
        return Linear(positions, dtype=self.dtype, name='expand')(nn.relu(flat.reshape(x.shape)))


class AttentionFusion(Matcher):
    """logit = s·(cos(q̄_cross, c̄_cross) + α·cos(q̄_self, c̄_self)), bars for means over positions
    (MASTAF, Liu et al.).

    A position is a cell of a frame (of a clip's 3D map), u = f/‖f‖ there. R[x, y] = u_x·u_y relates
    two maps, or a map to itself; r = mean over x, k = kernel(r), a_x = 1 + softmax over x of (mean
    over y of R[x, y]·k_y)/0.025; the attended map is a·f. A prototype is the mean of its shots.
    `alpha`, `kernel` and `residual` are the ablations of the paper and its appendix.

    variant='code' leaves the batch norm of the kernel's network out where its input has a last axis
    of 1, as the released code does (row M2): the self-attention of a lone query, and everything but
    it of a lone class. variant='paper' never does.

    Args:
      alpha: α, weight of the self-attention score; 0 is cross-attention alone.
      kernel: 'meta_learner', or 'mean' for r itself (appendix C).
      residual: the 1 in a (appendix D).
      classes: training classes of the global classifier; None for none (appendix B).
      classifier_weight: of that classifier's loss.
      variant, frozen, dtype: as in other matchers. Relations, softmax and scores are float32.
    """

    needs_maps = True

    alpha: float = setting(
        1.0,
        at_least=0,
        affects='model',
        help='weight of the self-attention score; 0: cross-attention alone',
    )
    kernel: str = setting(
        'meta_learner',
        choices=KERNELS,
        affects='model',
        help='what makes the kernel of an attention map: a small network, or the mean relation '
        'without one',
    )
    residual: bool = setting(
        True, affects='model', help='residual attention, 1 + softmax; False: softmax alone'
    )
    classes: int | None = Classifier.classes
    variant: str = Shared.variant
    frozen: bool = False
    dtype: Any = jnp.float32
    classifier_weight: float = Classifier.weight

    def setup(self) -> None:
        if self.kernel == 'meta_learner':
            self.kernel_net = MetaLearner(self.frozen, jnp.float32, name='kernel')
        if self.classes:
            self.classifier = PositionClassifier(self.classes, self.dtype)

    def batch_norm_passes(self, queries: int) -> int:
        """How often an episode updates the running statistics of batch norm."""
        return 4 if queries > 1 or self.variant == 'paper' else 3

    def project(self, features: VideoFeatures, train: bool = False) -> jax.Array:
        """Per video: maps as positions, [B, P, C] with P = L·h·w."""
        maps = features.maps
        return maps.reshape(maps.shape[0], -1, maps.shape[-1]).astype(self.dtype)

    def __call__(
        self, support: jax.Array, query: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Per episode: support [way, shot, P, C], query [Q, P, C] → (logits float32 [Q, way],
        auxiliary).

        auxiliary: 'position_matching' [Q, P, way], the score of every position of the query's map
        (what training minimises in place of the logits, row M5); with a classifier 'global_classes'
        [Q, way, P, classes], of the query attended by each class.
        """
        prototypes = self.prototypes(support)
        attention = self.attention(prototypes, query, train)
        class_self, query_self, class_cross, query_cross = self.attended(
            attention, prototypes, query
        )
        by_self = jnp.einsum('qc,wc->qw', query_self, class_self)
        by_cross = jnp.einsum('qwc,qwc->qw', query_cross, class_cross)
        logits = SCORE_SCALE * (by_cross + self.alpha * by_self)
        chex.assert_shape(logits, (query.shape[0], support.shape[0]))

        # Attention scales a position by a positive number, which a cosine does not see; so no
        # attended map is built.
        places = unit(query)
        at_cross = jnp.einsum('qpc,qwc->qpw', places, class_cross)
        at_self = jnp.einsum('qpc,wc->qpw', places, class_self)
        auxiliary = {'position_matching': SCORE_SCALE * (at_cross + self.alpha * at_self)}
        if self.classes:
            auxiliary['global_classes'] = self.classifier(query, attention['query_cross'])
        return logits, auxiliary

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """The mean cross entropy over the positions of a query, in place of that of its logits
        (row M5); and over the positions as the true class attends to them, the classifier's."""
        at_positions = cross_entropy(outputs['position_matching'], labels[:, None]).mean(-1)
        found = {'matching': Loss(self.loss_weight, at_positions)}
        if classes is None or 'global_classes' not in outputs:
            return found
        by_true_class = outputs['global_classes'][jnp.arange(len(labels)), labels]
        mean = cross_entropy(by_true_class, classes[labels][:, None]).mean()
        return found | {'classifier': Loss(self.classifier_weight, mean, 'training classes')}

    def prototypes(self, support: jax.Array) -> jax.Array:
        """support [way, shot, P, C] → the mean over the shots [way, P, C]."""
        return support.astype(jnp.float32).mean(1).astype(self.dtype)

    def attended(
        self, attention: dict[str, jax.Array], prototypes: jax.Array, query: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Unit means over positions of the attended maps: of the classes by themselves [way, C], of
        the queries by themselves [Q, C], of both by one another [Q, way, C] each."""
        pooled = lambda a, f, axes: unit(
            einsum_float32(axes, a.astype(self.dtype), f) / f.shape[-2]
        )
        return (
            pooled(attention['class_self'], prototypes, 'wp,wpc->wc'),
            pooled(attention['query_self'], query, 'qp,qpc->qc'),
            pooled(attention['class_cross'], prototypes, 'qwp,wpc->qwc'),
            pooled(attention['query_cross'], query, 'qwp,qpc->qwc'),
        )

    def explain(self, support: jax.Array, query: jax.Array) -> dict[str, jax.Array]:
        """Cosines of query and prototype, [Q, way] each: 'cosine_plain' of their plain means,
        'cosine_self' and 'cosine_cross' after self- and cross-attention, 'cosine_fused' of the
        score, which is their weighted mean."""
        prototypes = self.prototypes(support)
        class_self, query_self, class_cross, query_cross = self.attended(
            self.attention(prototypes, query), prototypes, query
        )
        plain = jnp.einsum('qc,wc->qw', *(unit(x.mean(1)) for x in (query, prototypes)))
        by_self = jnp.einsum('qc,wc->qw', query_self, class_self)
        by_cross = jnp.einsum('qwc,qwc->qw', query_cross, class_cross)
        return {
            'cosine_plain': plain,
            'cosine_self': by_self,
            'cosine_cross': by_cross,
            'cosine_fused': (by_cross + self.alpha * by_self) / (1.0 + self.alpha),
        }

    def attention(
        self, prototypes: jax.Array, query: jax.Array, train: bool = False
    ) -> dict[str, jax.Array]:
        """prototypes [way, P, C], query [Q, P, C] → a, float32: 'class_self' [way, P], 'query_self'
        [Q, P], 'class_cross' and 'query_cross' [Q, way, P]."""
        c, q = unit(prototypes), unit(query)
        many_classes, many_queries = (self.variant == 'paper' or len(x) > 1 for x in (c, q))
        cross = jnp.einsum('wxc,qyc->qwxy', c, q)
        return {
            'class_self': self._attend(jnp.einsum('wxc,wyc->wxy', c, c), many_classes, train),
            'query_self': self._attend(jnp.einsum('qxc,qyc->qxy', q, q), many_queries, train),
            'class_cross': self._attend(cross, many_classes, train),
            'query_cross': self._attend(cross.swapaxes(-1, -2), many_classes, train),
        }

    def _attend(self, relation, normalize, train):
        mean = relation.mean(-2)
        kernel = mean if self.kernel == 'mean' else self.kernel_net(mean, normalize, train)
        scores = jnp.einsum('...xy,...y->...x', relation, kernel) / relation.shape[-1]
        return jax.nn.softmax(scores / TEMPERATURE, axis=-1) + float(self.residual)


class PositionClassifier(nn.Module):
    """Logits of the training classes at every position of a map scaled by attention: W (a·f) + b =
    a·(W f) + b (row M6).

    Inputs maps [Q, P, C], attention [Q, way, P]; output [Q, way, P, classes].
    """

    classes: int
    dtype: Any

    @nn.compact
    def __call__(self, maps: jax.Array, attention: jax.Array) -> jax.Array:
        dim = maps.shape[-1]
        kernel = self.param('kernel', torch_start(dim), (dim, self.classes), jnp.float32).astype(
            self.dtype
        )
        bias = self.param('bias', torch_start(dim), (self.classes,), jnp.float32)
        return attention[..., None] * einsum_float32('qpc,cn->qpn', maps, kernel)[:, None] + bias
