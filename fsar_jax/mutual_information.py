"""Estimates of mutual information, in nats, and VIM's two losses made of them (Sec. 3.5.2, Eq. 28
and 33).

The paper names VSD (Tian et al. 2021) for all terms and leaves the rest open; its code has only
helpers that nothing calls (row V18 of docs/paper_vs_code.md). Here:

- I(Y; F) ≥ H(Y) − CE: the variational lower bound of Barber and Agakov (2003), with the
  classifier's softmax for p(y|f). VSD's terms are this one up to H(Y), which does not depend on the
  network.
- I(F̄; F): the leave-one-out upper bound (Poole et al. 2019; CLUB of Cheng et al. 2020 is looser)
  with a Gaussian q(f̄|f), because this one is minimised, and a lower bound would be no promise
  about what it bounds.

All are pure functions, computed in float32, with finite gradients.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from fsar_jax.layers import frame_cosine

COSINE_SCALE = 10.0
# least residual variance, as a share of the feature's: bounds the estimate, and its gradient
RESIDUAL_FLOOR = 1e-2
CHANNELS_AT_ONCE = 64


def label_information(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Lower bound of I(Y; F): H(Y) of the labels at hand minus the mean cross entropy. logits [Q,
    way], labels int [Q] → scalar."""
    chex.assert_rank([logits, labels], [2, 1])
    share = jax.nn.one_hot(labels, logits.shape[1]).mean(0)
    return jax.scipy.special.entr(share).sum() - _cross_entropy(logits, labels)


def feature_information(x: jax.Array, y: jax.Array) -> jax.Array:
    """Upper bound of the mutual information of paired features x and y [n, C], in nats per channel.

    mean over samples i of log q(y_i|x_i) − log mean_{j≠i} q(y_i|x_j), for every channel alone,
    averaged over channels. q(y|x) = N(a x, s²) of standardised features: a is the batch's
    regression slope and s² its mean squared residual, the most likely q of this family. With a = 1,
    s² = mean (y − x)², the bound would not be near the truth even for Gaussian features. It is a
    bound where q is the true conditional.

    Channels are taken alone because for hundreds of channels and n samples of one episode any
    estimate of the joint information is its own upper limit; and they are averaged so that it
    compares to I(Y; F) ≤ log way. Standardising makes it blind to shift and scale, s² ≥ 0.01 keeps
    it finite for y = x: about 2.1 nats.

    Memory: [n, n] for 64 channels at once, computed again for the gradient.
    """
    chex.assert_equal_shape([x, y])
    chex.assert_rank(x, 2)
    x, y = _standardised(x), _standardised(y)
    slope = jnp.mean(x * y, 0)
    variance = jnp.maximum(jnp.mean(jnp.square(y - slope * x), 0), RESIDUAL_FLOOR)

    def one_channel(x, y, slope, variance):
        log_q = -jnp.square(y[:, None] - slope * x) / (
            2.0 * variance
        )  # up to a constant that cancels
        others = jnp.where(jnp.eye(len(x), dtype=bool), -jnp.inf, log_q)
        return jnp.mean(jnp.diagonal(log_q) - jax.nn.logsumexp(others, -1)) + jnp.log(len(x) - 1.0)

    channels = (x.T, y.T, slope, variance)
    return jax.lax.map(
        lambda c: jax.checkpoint(one_channel)(*c),
        channels,
        batch_size=min(CHANNELS_AT_ONCE, x.shape[1]),
    ).mean()


def intra_video_loss(
    dense_logits: jax.Array, selected_logits: jax.Array, labels: jax.Array, variant: str
) -> jax.Array:
    """|I(Y; f_X) − I(Y; f_XD)| (VIM, Eq. 28): what the chosen frames tell of the class should be
    what all frames tell.

    variant='paper': no gradient to the dense side. It is the target, and would otherwise meet the
    chosen frames by telling less. variant='code': `divergence` of dense from selected, its gradient
    to the dense side only (V18).

    Args:
      dense_logits, selected_logits: [Q, way], for instance `prototype_logits` of scan features over
        all and over chosen frames.
      labels: int [Q].
    """
    if variant == 'code':
        return divergence(dense_logits, selected_logits)
    dense = label_information(jax.lax.stop_gradient(dense_logits), labels)
    return jnp.abs(label_information(selected_logits, labels) - dense)


def inter_video_loss(
    logits: jax.Array,
    labels: jax.Array,
    raw_query: jax.Array,
    aligned_query: jax.Array,
    variant: str,
) -> jax.Array:
    """−(I(Y; F̄_q) − I(F̄_q; F_q)) (VIM, Eq. 33): alignment should add what tells of the class, and
    not repeat the query.

    Of the aligned queries only those to the true class enter: the others say how a video looks
    beside a class it does not belong to. Each frame is a sample, although those of one clip
    resemble each other: the estimate is of the batch's frames. variant='paper': no gradient to the
    raw query, which is what alignment starts from.
    variant='code': `label_loss` + `frame_divergence` (V18), the first without gradient.

    Args:
      logits: [Q, way], of the aligned queries.
      labels: int [Q].
      raw_query: [Q, L, C], frame features before alignment, averaged over space.
      aligned_query: [Q, way, L, C], after alignment to each class.
    """
    chex.assert_rank([raw_query, aligned_query], [3, 4])
    aligned = jnp.take_along_axis(aligned_query, labels[:, None, None, None], axis=1)[:, 0]
    if variant == 'code':
        return label_loss(logits, labels) + frame_divergence(raw_query, aligned)
    rows = lambda x: x.reshape(-1, x.shape[-1])
    return feature_information(
        rows(jax.lax.stop_gradient(raw_query)), rows(aligned)
    ) - label_information(logits, labels)


def prototype_logits(
    support: jax.Array, query: jax.Array, scale: float = COSINE_SCALE
) -> jax.Array:
    """Scaled cosine to class means: support [way, shot, c], query [Q, c] → float32 [Q, way].

    For the terms of `intra_video_loss`: scan features have no classifier. The scale makes a softmax
    over cosines able to be sure.
    """
    chex.assert_rank([support, query], [3, 2])
    return scale * frame_cosine('qd,wd->qw', query, support.astype(jnp.float32).mean(1))


def frame_divergence(before: jax.Array, after: jax.Array) -> jax.Array:
    """Σ_t KL(softmax_c(after) ‖ softmax_c(before)), averaged over videos: [..., L, C] each →
    scalar; `before` is constant (V18)."""
    return _kl(after, jax.lax.stop_gradient(before)).sum(-1).mean()


def label_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy without gradient (V18)."""
    return _cross_entropy(jax.lax.stop_gradient(logits), labels)


def divergence(dense_logits: jax.Array, selected_logits: jax.Array) -> jax.Array:
    """Mean KL(softmax(dense) ‖ softmax(selected)), [Q, way] each; `selected_logits` are constant
    (V18)."""
    return _kl(dense_logits, jax.lax.stop_gradient(selected_logits)).mean()


def _kl(p_logits, q_logits):
    """KL between softmaxes over the last axis, float32 [...]."""
    log_p, log_q = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (p_logits, q_logits))
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
    ).mean()


def _standardised(x):
    """Mean 0 and variance 1 over the first axis, float32; nearly constant channels stay near
    zero."""
    x = x.astype(jnp.float32)
    x = x - x.mean(0)
    return x * jax.lax.rsqrt(jnp.square(x).mean(0) + 1e-6)
