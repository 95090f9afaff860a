"""HyRSM: hybrid relation of frames and of videos, then videos matched as sets of frames."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.fields import SMALLEST, setting
from fsar_jax.layers import (
    STARTS,
    Linear,
    einsum_float32,
    frame_cosine,
    norm,
    sinusoidal_positions,
    torch_start,
)
from fsar_jax.matchers.classifier import Classifier
from fsar_jax.matchers.matcher import Matcher, of_pairs
from fsar_jax.stage import Loss, Shared, cross_entropy

POSITION_SCALE = (10.0, 1.0)  # A and B: features times √(D/A), position code times B


def channel_positions(length: int, dim: int) -> np.ndarray:
    """R[t, i] = sin for even and cos for odd i of t / 10000^(2i/D), i the channel itself: float32
    [length, dim] (row H2)."""
    channel = np.arange(dim)
    angle = np.arange(length)[:, None] / 10000.0 ** (2.0 * channel / dim)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    heads: int,
    drop: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
    """softmax(q kᵀ/√(D/heads)) v with heads of consecutive channels: [..., N, D] each → [..., N,
    D]. Scores are float32. `drop`: what becomes of the softmax in training."""
    split = lambda x: x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
    query, key, value = split(query), split(key), split(value)
    scores = einsum_float32('...nhd,...mhd->...hnm', query, key) / jnp.sqrt(query.shape[-1])
    weights = drop(jax.nn.softmax(scores, -1)).astype(value.dtype)
    out = jnp.einsum('...hnm,...mhd->...nhd', weights, value)
    return out.reshape(*out.shape[:-2], -1)


class WithinVideo(nn.Module):
    """x + W_o·MHSA(LN(x)) + b_o among the frames of a video: [B, L, D] → the same shape. In
    training, dropout on what is added."""

    heads: int
    dtype: Any
    dropout: float

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool) -> jax.Array:
        dim = frames.shape[-1]
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='norm')(frames)
        query, key, value = jnp.split(
            Linear(3 * dim, use_bias=False, dtype=self.dtype, name='qkv')(x), 3, -1
        )
        added = Linear(dim, dtype=self.dtype, name='out')(attend(query, key, value, self.heads))
        added = nn.Dropout(self.dropout)(added, deterministic=not train)
        return frames + added.astype(jnp.float32)


class AcrossVideos(nn.Module):
    """LN(x + W_f·MHSA(x) + b_f) among the videos of an episode, one token each: [..., tokens, D] →
    the same shape. In training, dropout on the weights of the attention and on what is added.

    start 'published': the three projections from N(0, √(2 / (D + D/heads))), W_f from N(0, 1/√D).
    """

    heads: int
    dtype: Any
    dropout: tuple[float, float]
    start: str

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        dim, drawn = tokens.shape[-1], nn.initializers.normal
        of_projections = of_sum = None
        if self.start == 'published':
            of_projections = drawn(np.sqrt(2 / (dim + dim / self.heads)))
            of_sum = drawn(1 / np.sqrt(dim))
        drop_weights, drop = (
            functools.partial(nn.Dropout(rate), deterministic=not train) for rate in self.dropout
        )
        query, key, value = (
            Linear(None, use_bias=False, dtype=self.dtype, start=of_projections, name=name)(tokens)
            for name in ('query', 'key', 'value')
        )
        attended = attend(query, key, value, self.heads, drop_weights)
        added = drop(Linear(None, dtype=self.dtype, start=of_sum, name='out')(attended))
        x = tokens + added.astype(jnp.float32)
        return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name='norm')(x)


class Fusion(nn.Module):
    """W [g; z] + b per frame, W 2D → D, each half computed once, in float32: frames [..., L, D] and
    the videos' tokens [..., D] broadcast."""

    @nn.compact
    def __call__(self, frames: jax.Array, token: jax.Array) -> jax.Array:
        dim = frames.shape[-1]
        kernel = self.param('kernel', torch_start(2 * dim), (2 * dim, dim), jnp.float32)
        bias = self.param('bias', torch_start(2 * dim), (dim,), jnp.float32)
        project = lambda x, half: einsum_float32('...d,df->...f', x, half)
        return project(frames, kernel[:dim]) + project(token, kernel[dim:])[..., None, :] + bias


class SetMatching(Matcher):
    """logit = −(Σ_x min_y d(q_x, s_y) + Σ_y min_x d(q_x, s_y)), d = 1 − cos, after hybrid relation
    (HyRSM, Wang et al. 2022, Sec. 3).

    Frames attend to the frames of their video; then, for each query apart, the query and the
    support attend to each other with one token per video, the mean of its frames, and every frame
    is mapped together with the token of its video.

    variant='code' (rows H1 to H4 of docs/paper_vs_code.md): the shots of a class are averaged
    before videos are related, position code and features are rescaled, ReLU follows each relation,
    distances are sums over frames. variant='paper': every support video is a token and is matched
    by itself (mean over the shots), a plain sinusoid, no ReLU, Euclidean distances, means over
    frames.

    Args:
      heads: of both attentions; the feature dimension must be a multiple.
      position: (A, B), 'code' only: features are multiplied by √(D/A), the position code by B.
      relation_dropout: rates in training (row H9): of the frames with their position code, of what
        the attention within a video adds, of the weights of that across videos, and of what it
        adds.
      relation_start: of the attention across videos, see `AcrossVideos` (row H9).
      classes: training classes of the classifier on related frames; None for none.
      classifier_weight: of that classifier's loss.
      variant: 'code' or 'paper'.
      dtype: compute dtype of the attentions. Frames and tokens stay float32, as scores, softmax and
        distances do: the relations make the frames of an episode alike, and a distance between two
        of them is small beside what bfloat16 rounds off them.
    """

    heads: int = setting(8, at_least=1, affects='model', help='number of heads of both attentions')
    position: tuple[float, float] = setting(
        POSITION_SCALE,
        at_least=0,
        affects='model',
        help="(A, B), for variant 'code': features are multiplied by sqrt(D / A), the position "
        'code by B',
    )
    relation_dropout: tuple[float, float, float, float] = setting(
        (0.0, 0.0, 0.0, 0.0),
        at_least=0,
        below=1,
        affects='training',
        help='dropout rates of HyRSM in training: of frames with their position code, of what the '
        'attention within a video adds, of the weights of that across videos, and of what it '
        'adds; published: (0.1, 0.2, 0.1, 0.05)',
    )
    relation_start: str = setting(
        STARTS[0],
        choices=STARTS,
        affects='training',
        help="how the attention across videos starts: as PyTorch's linear maps do, or from the "
        'normal distributions of the published code',
    )
    classes: int | None = Classifier.classes
    variant: str = Shared.variant
    dtype: Any = jnp.float32
    classifier_weight: float = Classifier.weight

    def check(self, frames: int | None = None) -> None:
        if self.position[0] < SMALLEST:
            raise ValueError(
                f'config.model.matcher.position={tuple(self.position)}: the first, by which '
                'features are divided, must be greater than 0'
            )

    def setup(self) -> None:
        of_frames, within, of_weights, across = self.relation_dropout
        self.drop = nn.Dropout(of_frames)
        self.within = WithinVideo(self.heads, self.dtype, within)
        self.across = AcrossVideos(
            self.heads, self.dtype, (of_weights, across), self.relation_start
        )
        self.fuse = Fusion()
        if self.classes:
            self.classifier = Linear(self.classes, dtype=self.dtype)

    def project(self, features: VideoFeatures, train: bool = False) -> jax.Array:
        """Per video: frames [B, L, D], related to each other."""
        frames = features.frames.astype(jnp.float32)
        length, dim = frames.shape[-2:]
        if dim % self.heads:
            raise ValueError(
                f'config.model.matcher.heads={self.heads} must divide the feature dimension, {dim}'
            )
        if self.variant == 'paper':
            frames = frames + sinusoidal_positions(length, dim)
        else:
            scale, amplitude = self.position
            frames = np.sqrt(dim / scale).astype(np.float32) * frames + np.float32(
                amplitude
            ) * channel_positions(length, dim)
        related = self.within(self.drop(frames, deterministic=not train), train)
        return related if self.variant == 'paper' else nn.relu(related)

    def __call__(
        self, support: jax.Array, query: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Per episode: support [way, shot, L, D], query [Q, L, D] → (logits float32 [Q, way],
        auxiliary).

        auxiliary, with a classifier: 'support_classes' [way, shot, L, classes] and 'query_classes'
        [Q, L, classes], logits.
        """
        auxiliary = {}
        if self.classes:
            auxiliary = {
                'support_classes': self.classifier(support),
                'query_classes': self.classifier(query),
            }
        logits = self.logits(self.distances(support, query, train))
        chex.assert_shape(logits, (query.shape[0], support.shape[0]))
        return logits, auxiliary

    def compare_pairs(
        self, support: jax.Array, query: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Of aligned pairs: support and query frames [Q, way, L, D] → as `__call__`.

        A pair of a query and a class is related to the clips of the other classes, as the query is
        aligned with them. With a classifier, 'support_classes' and 'query_classes' are [Q, way, L,
        classes].
        """
        s, q = (of_pairs(lambda x: self.project(x, train), frames) for frames in (support, query))
        auxiliary = {}
        if self.classes:
            auxiliary = {'support_classes': self.classifier(s), 'query_classes': self.classifier(q)}
        way, tokens = s.shape[1], s.mean(-2)
        clips = jnp.broadcast_to(tokens[:, None], (len(s), way, *tokens.shape[1:]))
        z = self.across(jnp.concatenate([clips, q.mean(-2)[:, :, None]], 2), train)
        z = nn.relu(z) if self.variant == 'code' else z
        of_class = z[:, jnp.arange(way), jnp.arange(way)]
        distances = self.between(self.fuse(s, of_class)[:, :, None], self.fuse(q, z[:, :, -1]))
        return self.logits(distances), auxiliary

    def logits(self, distances: jax.Array) -> jax.Array:
        """d [Q, way, shot, L, L] → [Q, way]."""
        reduce = jnp.sum if self.variant == 'code' else jnp.mean
        both = reduce(distances.min(-1), -1) + reduce(distances.min(-2), -1)
        return -both.mean(-1)

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """Beside the matching, the classifier's mean cross entropy over every frame of support and
        query."""
        found = super().losses(outputs, labels, classes)
        if classes is None or 'query_classes' not in outputs:
            return found
        of_pairs = outputs['query_classes'].ndim == 4  # [Q, way, L, classes]
        of_support = classes[:, None] if of_pairs else classes[:, None, None]
        of_query = classes[labels][:, None, None] if of_pairs else classes[labels][:, None]
        support = cross_entropy(outputs['support_classes'], of_support)
        query = cross_entropy(outputs['query_classes'], of_query)
        mean = jnp.concatenate([support.ravel(), query.ravel()]).mean()
        return found | {'classifier': Loss(self.classifier_weight, mean, 'training classes')}

    def distances(self, support: jax.Array, query: jax.Array, train: bool = False) -> jax.Array:
        """d of all pairs of related frames, float32 [Q, way, 1 or shot, L, L], the query's in the
        rows."""
        s, q = self.relate(support, query, train)
        return self.between(s, q)

    def between(self, support: jax.Array, query: jax.Array) -> jax.Array:
        """d of related frames: support [Q, way, shot, L, D]; query [Q, L, D], or [Q, way, L, D]
        where it is another one for each class."""
        if self.variant == 'code':
            axes = 'qxd' if query.ndim == 3 else 'qwxd'
            return 1.0 - frame_cosine(f'{axes},qwkyd->qwkxy', query, support)
        query = query[:, None, None, :, None] if query.ndim == 3 else query[:, :, None, :, None]
        return norm(query.astype(jnp.float32) - support[:, :, :, None])

    def explain(self, support: jax.Array, query: jax.Array) -> dict[str, jax.Array]:
        """{'distances' [Q, way, 1 or shot, L, L]} of related frames, the query's in the rows."""
        return {'distances': self.distances(support, query)}

    def relate(
        self, support: jax.Array, query: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """Relation across videos, for each query apart: support [Q, way, 1 or shot, L, D] and query
        [Q, L, D]."""
        if self.variant == 'code':
            support = support.mean(1, keepdims=True)
        tokens = support.mean(-2)
        count, dim = len(query), query.shape[-1]
        shared = jnp.broadcast_to(
            tokens.reshape(1, -1, dim), (count, tokens.shape[0] * tokens.shape[1], dim)
        )
        z = self.across(jnp.concatenate([shared, query.mean(-2)[:, None]], 1), train)
        z = nn.relu(z) if self.variant == 'code' else z
        return self.fuse(support[None], z[:, :-1].reshape(count, *tokens.shape)), self.fuse(
            query, z[:, -1]
        )
