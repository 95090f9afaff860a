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
from fsar_jax.layers import STARTS, Linear, einsum_float32, torch_start, unit
from fsar_jax.matchers.classifier import Classifier
from fsar_jax.matchers.matcher import Matcher
from fsar_jax.stage import Loss, Shared, cross_entropy

KERNELS = ('meta_learner', 'mean')
FUSIONS = ('both', 'self', 'none')


class MetaLearner(nn.Module):
    """Kernel of an attention map from the mean relation of each position: k = W₂ σ(BN(W₁ r + b₁)) +
    b₂, P → 6 → P.

    Input r [..., P], output [..., P]. The batch norm has 6 channels and everything else for a
    batch. start 'published': W₁ and W₂ from N(0, √(2 / outputs)) (row M12).
    """

    frozen: bool
    dtype: Any
    start: str = 'torch'

    @nn.compact
    def __call__(self, relation: jax.Array, normalize: bool, train: bool) -> jax.Array:
        def linear(outputs: int, name: str) -> Linear:
            drawn = nn.initializers.normal((2 / outputs) ** 0.5)
            start = drawn if self.start == 'published' else None
            return Linear(outputs, dtype=self.dtype, start=start, name=name)

        x = linear(6, 'squeeze')(relation)
        flat = x.reshape(-1, 6)
        normal = BatchNorm(frozen=self.frozen, dtype=self.dtype, name='bn')
        if normalize or self.is_initializing():
            flat = normal(flat, train)
        return linear(relation.shape[-1], 'expand')(nn.relu(flat.reshape(x.shape)))


class AttentionFusion(Matcher):
    """logit = s·(cos(q̄_cross, c̄_cross) + α·cos(q̄_self, c̄_self)), bars for means over positions
    (MASTAF, Liu et al.).

    A position is a cell of a frame (of a clip's 3D map), u = f/‖f‖ there. R[x, y] = u_x·u_y relates
    two maps, or a map to itself; r = mean over x, k = kernel(r), a_x = 1 + softmax over x of (mean
    over y of R[x, y]·k_y)/τ; the attended map is a·f. A prototype is the mean of its shots.
    `fusion`, `alpha`, `kernel` and `residual` are the ablations of the paper and its appendix, s
    and τ the constants of the released code (row M4).

    variant='code' leaves the batch norm of the kernel's network out where its input has a last axis
    of 1, as the released code does (row M2): the self-attention of a lone query, and everything but
    it of a lone class. variant='paper' never does.

    Args:
      fusion: 'both'; 'self', s·cos(q̄_self, c̄_self); or 'none', the same with a = 1 everywhere: the
        nearest prototype by the cosine of plain means (Fig. 1 of the appendix, row M10). The
        classifier then sees the query as it attends to itself.
      alpha: α, weight of the self-attention score; 0 is cross-attention alone.
      kernel: 'meta_learner', or 'mean' for r itself (appendix C).
      kernel_start: of the network that makes the kernel, see `MetaLearner`.
      residual: the 1 in a (appendix D).
      attention_temperature, score_scale: τ and s.
      classes: training classes of the global classifier; None for none (appendix B).
      classifier_weight: of that classifier's loss.
      variant, frozen, dtype: as in other matchers. Relations, softmax and scores are float32.
    """

    needs_maps = True

    fusion: str = setting(
        'both',
        choices=FUSIONS,
        affects='model',
        help="what is compared: maps after self- and cross-attention ('both'), after "
        "self-attention ('self'), or as they are ('none'); cross-attention alone: alpha=0",
    )
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
    kernel_start: str = setting(
        STARTS[0],
        choices=STARTS,
        affects='training',
        help="how that network starts: as PyTorch's convolutions do, or from the normal "
        'distribution of the published code',
    )
    residual: bool = setting(
        True, affects='model', help='residual attention, 1 + softmax; False: softmax alone'
    )
    attention_temperature: float = setting(
        0.025,
        above=0,
        affects='model',
        help='temperature of the softmax that makes an attention map',
    )
    score_scale: float = setting(
        7.0, above=0, affects='model', help='factor of the cosines that are the scores'
    )
    classes: int | None = Classifier.classes
    variant: str = Shared.variant
    frozen: bool = False
    dtype: Any = jnp.float32
    classifier_weight: float = Classifier.weight

    def setup(self) -> None:
        if self.kernel == 'meta_learner' and self.fusion != 'none':
            self.kernel_net = MetaLearner(
                self.frozen, jnp.float32, self.kernel_start, name='kernel'
            )
        if self.classes:
            self.classifier = PositionClassifier(self.classes, self.dtype)

    def batch_norm_passes(self, queries: int) -> int:
        """How often an episode updates the running statistics of batch norm."""
        maps = {'both': 4, 'self': 2, 'none': 0}[self.fusion]
        left_out = self.variant == 'code' and queries == 1 and maps
        return maps - bool(left_out)

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
        pooled = self.attended(attention, prototypes, query)
        by_self, by_cross = self.cosines(pooled)
        logits = self.score_scale * self.fused(by_self, by_cross)
        chex.assert_shape(logits, (query.shape[0], support.shape[0]))

        # Attention scales a position by a positive number, which a cosine does not see; so no
        # attended map is built.
        places, at_cross = unit(query), None
        if self.fusion == 'both':
            at_cross = einsum_float32('qpc,qwc->qpw', places, pooled['class_cross'])
        at_self = einsum_float32('qpc,wc->qpw', places, pooled['class_self'])
        auxiliary = {'position_matching': self.score_scale * self.fused(at_self, at_cross)}
        if self.classes:
            if self.fusion == 'both':
                seen = attention['query_cross']
            else:
                seen = attention['query_self'][:, None].repeat(len(support), 1)
            auxiliary['global_classes'] = self.classifier(query, seen)
        return logits, auxiliary

    def fused(self, by_self: jax.Array, by_cross: jax.Array | None) -> jax.Array:
        """The sum of both scores, cross + α·self; without a cross score, that of self-attention."""
        return by_self if by_cross is None else by_cross + self.alpha * by_self

    def cosines(self, pooled: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        """Of `attended`: the cosines [Q, way] after self-attention and, where there is one, after
        cross-attention."""
        by_self = einsum_float32('qc,wc->qw', pooled['query_self'], pooled['class_self'])
        if self.fusion != 'both':
            return by_self, None
        return by_self, einsum_float32('qwc,qwc->qw', pooled['query_cross'], pooled['class_cross'])

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
    ) -> dict[str, jax.Array]:
        """Unit means over positions of the attended maps, by the names of `attention`: of the
        classes by themselves [way, C], of the queries by themselves [Q, C], of both by one another
        [Q, way, C] each."""
        maps = {
            'class_self': (prototypes, 'wp,wpc->wc'),
            'query_self': (query, 'qp,qpc->qc'),
            'class_cross': (prototypes, 'qwp,wpc->qwc'),
            'query_cross': (query, 'qwp,qpc->qwc'),
        }
        return {
            name: unit(einsum_float32(axes, attention[name].astype(self.dtype), f) / f.shape[-2])
            for name, (f, axes) in maps.items()
            if name in attention
        }

    def explain(self, support: jax.Array, query: jax.Array) -> dict[str, jax.Array]:
        """Cosines of query and prototype, [Q, way] each: 'cosine_plain' of their plain means,
        'cosine_self' and 'cosine_cross' after self- and cross-attention, 'cosine_fused' of the
        score, which is their weighted mean. Those that `fusion` leaves out are not there."""
        prototypes = self.prototypes(support)
        pooled = self.attended(self.attention(prototypes, query), prototypes, query)
        plain = einsum_float32('qc,wc->qw', *(unit(x.mean(1)) for x in (query, prototypes)))
        by_self, by_cross = self.cosines(pooled)
        shown = {'cosine_plain': plain}
        if self.fusion != 'none':
            shown['cosine_self'] = by_self
        if by_cross is not None:
            shown['cosine_cross'] = by_cross
            shown['cosine_fused'] = self.fused(by_self, by_cross) / (1.0 + self.alpha)
        return shown

    def attention(
        self, prototypes: jax.Array, query: jax.Array, train: bool = False
    ) -> dict[str, jax.Array]:
        """prototypes [way, P, C], query [Q, P, C] → a, float32: 'class_self' [way, P], 'query_self'
        [Q, P], 'class_cross' and 'query_cross' [Q, way, P]; the latter two with fusion='both'
        alone."""
        if self.fusion == 'none':
            ones = lambda x: jnp.ones(x.shape[:2], jnp.float32)
            return {'class_self': ones(prototypes), 'query_self': ones(query)}
        c, q = unit(prototypes), unit(query)
        many_classes, many_queries = (self.variant == 'paper' or len(x) > 1 for x in (c, q))
        within = lambda x: einsum_float32('nxc,nyc->nxy', x, x)
        if self.fusion == 'self':
            return {
                'class_self': self._attend(within(c), many_classes, train),
                'query_self': self._attend(within(q), many_queries, train),
            }
        cross = einsum_float32('wxc,qyc->qwxy', c, q)
        return {
            'class_self': self._attend(within(c), many_classes, train),
            'query_self': self._attend(within(q), many_queries, train),
            'class_cross': self._attend(cross, many_classes, train),
            'query_cross': self._attend(cross.swapaxes(-1, -2), many_classes, train),
        }

    def _attend(self, relation, normalize, train):
        mean = relation.mean(-2)
        kernel = mean if self.kernel == 'mean' else self.kernel_net(mean, normalize, train)
        scores = einsum_float32('...xy,...y->...x', relation, kernel) / relation.shape[-1]
        return jax.nn.softmax(scores / self.attention_temperature, axis=-1) + float(self.residual)


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
