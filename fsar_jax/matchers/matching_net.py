"""MatchingNet: a query takes the labels of the support clips that it attends to."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.fields import setting
from fsar_jax.layers import frame_cosine
from fsar_jax.matchers.matcher import Matcher
from fsar_jax.stage import Loss


class MatchingNet(Matcher):
    """logit = log Σ a(q, s) over the support clips s of the class, a = softmax of c·cos(f_q, f_s)
    over all support clips (Vinyals et al. 2016, Eq. 1).

    f is the mean of a clip's frame features, so the order of frames does not count. There are no
    parameters, and no variants: full context embeddings (an LSTM over the support set, Sec. 2.1.2)
    are left out. The paper has c = 1; the code of Chen et al. 2019 (A Closer Look at Few-shot
    Classification) has 100, as cosines alone cannot make a softmax sure. Its ReLU of the cosine is
    left out: behind a ResNet, which ends with a ReLU, no cosine is negative.

    Args:
      scale: c.
    """

    scale: float = setting(
        100.0,
        above=0,
        affects='model',
        help='c, factor of the cosine before the softmax over support clips; the paper has 1',
    )

    def project(self, features: VideoFeatures, train: bool = False) -> jax.Array:
        """Per video: the mean of its frames, [B, D]."""
        return features.frames.mean(1)

    def __call__(self, support: jax.Array, query: jax.Array, train: bool = False) -> jax.Array:
        """Per episode: support [way, shot, D], query [Q, D] → logits float32 [Q, way], log
        probabilities."""
        scores = self.scale * frame_cosine('qd,wsd->qws', query, support)
        logits = jax.nn.logsumexp(jax.nn.log_softmax(scores, axis=(-2, -1)), axis=-1)
        chex.assert_shape(logits, (query.shape[0], support.shape[0]))
        return logits

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """−log of the attention that a query pays to its class. The logits are log probabilities
        already, so this is their cross entropy without another softmax."""
        of_class = jnp.take_along_axis(outputs['temporal_matching'], labels[:, None], axis=1)
        return {'matching': Loss(self.loss_weight, -of_class[:, 0])}
