"""Top-k frames in temporal order: the hard choice, and its smoothed, differentiable version (VIM,
Eq. 4 to 6)."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

NOISE = ('independent', 'antithetic', 'leave_one_out')


def hard_top_k(scores: jax.Array, k: int) -> jax.Array:
    """The k best frames of each video, in temporal order; of equal scores the earlier frame is
    taken.

    Args:
      scores: [B, M].
      k: frames wanted, 1 to M.

    Returns:
      float32 [B, k, M], one-hot rows: row t marks the t-th of the chosen frames. No gradient.
    """
    chex.assert_rank(scores, 2)
    _check_frames(scores, k)
    return _one_hot(places(scores, k), k)


def perturbed_top_k(
    key_or_noise: jax.Array,
    scores: jax.Array,
    k: int,
    sigma: jax.Array | float,
    num_samples: int,
    chunk: int,
    variant: str,
    sampling: str = 'independent',
) -> jax.Array:
    """I_σ = E_Z[hard_top_k(scores + σZ)], Z normal, one number per frame (VIM, Eq. 5; rows V2 to V4
    of docs/paper_vs_code.md).

    The gradient is Eq. 6 with its full Jacobian E[I Zᵀ/σ]: for the cotangent y of I_σ, entry j is
    E[⟨I, y⟩ Z_j/σ], cross terms between frames included. variant='paper' takes I −
    hard_top_k(scores) for I: the same expectation, since E[Z] = 0, without the noise of what all
    frames have in common. variant='code' takes I, and k times the result (row V3). There is no
    gradient for σ and the noise.

    At σ = 0 the result is exactly hard_top_k(scores), with zero gradient; σ may be traced, so a
    schedule can end there.

    Samples are drawn, and drawn again for the gradient, `chunk` at a time: only key, scores and σ
    are kept, and no indicator of a single sample is. Sample s depends on (key, s), so the chunk
    changes rounding at most.

    Not optax.perturbations.make_perturbed_fun: from 0.2.5 on it estimates the same gradient (a test
    compares), but it maps over all samples at once and keeps them for the backward pass
    (benchmarks/perturbed_top_k.py), its noise is divided by σ and so is NaN at σ = 0, over a batch
    it weights each video by the noise of all, and it has no factor k.

    Args:
      key_or_noise: a PRNG key, or the noise itself: float [B, num_samples, M].
      scores: [B, M].
      k: frames wanted, 1 to M.
      sigma: float scalar ≥ 0.
      num_samples: n.
      chunk: samples at a time, 0 for all.
      variant: 'code' or 'paper'.
      sampling: of the noise that is drawn here, one of NOISE: 'independent'; 'antithetic', samples
        2s and 2s + 1 are Z and −Z; 'leave_one_out', independent, and the gradient takes I minus its
        mean over the other samples for I.

    Returns:
      float32 [B, k, M], each row a distribution over frames.

    Raises:
      ValueError: k is not in 1 … M, or the noise is of another shape.
    """
    chex.assert_rank([scores, sigma], [2, 0])
    _check_frames(scores, k)
    given = jnp.issubdtype(key_or_noise.dtype, jnp.floating)
    expected = (scores.shape[0], num_samples, scores.shape[1])
    if given and key_or_noise.shape != expected:
        raise ValueError(
            f'the noise of perturbed_top_k is {key_or_noise.shape}, expected [B, num_samples, M] = '
            f'{expected}'
        )
    scores, sigma = scores.astype(jnp.float32), jnp.asarray(sigma, jnp.float32)
    samples = _Samples(num_samples, min(chunk or num_samples, num_samples), sampling)
    return _smoothed(k, samples, variant, key_or_noise, scores, sigma)


def evenly_spaced_indicator(videos: int, frames: int, k: int) -> np.ndarray:
    """One-hot rows float32 [videos, k, frames] of k evenly spaced frames from the first to the
    last, truncated: a constant."""
    chosen = np.linspace(0, frames - 1, k).astype(
        np.int32
    )  # in float64: float32 falls below whole numbers
    return np.broadcast_to(np.eye(frames, dtype=np.float32)[chosen], (videos, k, frames))


def places(scores: jax.Array, k: int) -> jax.Array:
    """Which row of the indicator each frame has: int32 [..., M], 0 … k−1, and k for frames that are
    not chosen.

    lax.top_k, then each frame counts the chosen ones before it, which saves sorting the indices.
    Comparing all M² pairs is two to three times faster on a CPU for M = 20, but not safe: the
    compiler may compute a score twice, once fused into either side of the comparison and rounded
    differently, and then a frame beats itself and fewer than k are chosen.
    """
    chosen = jax.lax.top_k(scores, k)[1][..., None]
    frame = jnp.arange(scores.shape[-1])
    return jnp.where(jnp.any(chosen == frame, -2), jnp.sum(chosen < frame, -2), k)


def _one_hot(place, k):
    """places [..., M] → float32 [..., k, M]."""
    return (place[..., None, :] == jnp.arange(k)[:, None]).astype(jnp.float32)


class _Samples(NamedTuple):
    number: int
    chunk: int
    sampling: str


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _smoothed(k, samples, variant, source, scores, sigma):
    def add(total, samples):
        noise, counted = samples
        hard = _one_hot(
            places(scores[:, None] + sigma * noise, k), k
        )  # [B, chunk, k, M], fused away
        return total + jnp.sum(hard * counted[:, None, None], 1)

    zeros = jnp.zeros((scores.shape[0], k, scores.shape[1]))
    return _over_samples(add, zeros, source, scores, samples) / samples.number


def _forward(k, samples, variant, source, scores, sigma):
    return _smoothed(k, samples, variant, source, scores, sigma), (source, scores, sigma)


def _backward(k, samples, variant, residuals, cotangent):
    source, scores, sigma = residuals
    agreement = lambda scores: jnp.sum(
        _one_hot(places(scores, k), k) * cotangent[:, None], (-2, -1)
    )  # ⟨I, y⟩, [B, samples]
    baseline = agreement(scores[:, None]) if variant == 'paper' else 0.0

    leave_one_out = samples.sampling == 'leave_one_out' and samples.number > 1

    def add(sums, samples):
        noise, counted = samples
        weight = (agreement(scores[:, None] + sigma * noise) - baseline) * counted
        of_chunk = [jnp.sum(weight[..., None] * noise, 1)]
        if leave_one_out:
            of_chunk += [weight.sum(1), jnp.sum(noise * counted[:, None], 1)]
        return [total + more for total, more in zip(sums, of_chunk, strict=True)]

    zeros = jnp.zeros_like(scores)
    start = [zeros, zeros[:, 0], zeros] if leave_one_out else [zeros]
    total, *others = _over_samples(add, start, source, scores, samples)
    if leave_one_out:
        # Of n samples: Σ (a_s − mean of the others) Z_s = n/(n − 1) (Σ a_s Z_s − Σ a_s Σ Z_s / n).
        agreed, drawn = others
        total = total - agreed[:, None] * drawn / samples.number
        total = total * (samples.number / (samples.number - 1))
    inverse = jnp.where(sigma > 0, 1.0 / jnp.where(sigma > 0, sigma, 1.0), 0.0)
    return None, total * inverse * ((1 if variant == 'paper' else k) / samples.number), None


_smoothed.defvjp(_forward, _backward)


def _over_samples(add, total, source, scores, samples):
    """Folds `add(total, (noise [B, chunk, M], counted [chunk]))` over all samples; those that only
    fill the last chunk count 0."""
    videos, frames = scores.shape
    num_samples, chunk, sampling = samples
    chunks = -(-num_samples // chunk)

    def draw(s):
        if sampling != 'antithetic':
            return jax.random.normal(jax.random.fold_in(source, s), (videos, frames))
        pair = jax.random.normal(jax.random.fold_in(source, s // 2), (videos, frames))
        return jnp.where(s % 2, -pair, pair)

    def step(total, samples):
        if jnp.issubdtype(source.dtype, jnp.floating):
            noise = jnp.take(source, jnp.minimum(samples, num_samples - 1), axis=1).astype(
                jnp.float32
            )
        else:
            noise = jax.vmap(draw, out_axes=1)(samples)
        return add(total, (noise, (samples < num_samples).astype(jnp.float32))), None

    return jax.lax.scan(step, total, jnp.arange(chunks * chunk).reshape(chunks, chunk))[0]


def _check_frames(scores, k):
    if not 1 <= k <= scores.shape[-1]:
        raise ValueError(
            f'cannot choose {k} of {scores.shape[-1]} frames: k must be 1 to {scores.shape[-1]}'
        )
