"""Frames by motion, without learning: equal shares of the clip's motion instead of equal shares of
its time (MGSampler)."""

import chex
import jax
import jax.numpy as jnp

from fsar_jax.fields import setting
from fsar_jax.samplers.choice import AT_TEST, DENSE_FRAMES, FRAMES, check_dense_frames
from fsar_jax.samplers.sampler import Sampler
from fsar_jax.samplers.top_k import evenly_spaced_indicator


class MotionGuidedSampler(Sampler):
    """Chooses `frames` of the M frames of each video by their motion (Zhi et al. 2021, Sec. 3), as
    in the comparison of VIM (Table 11).

    Args:
      frames: T, number of frames to choose.
      dense_frames: M, number of frames that the loader reads.
      smoothing: μ, power of the motion; 0 samples uniformly, 1 follows the motion fully.
      at_test: False takes evenly spaced frames at test.
    """

    frames: int = setting(8, at_least=1, affects='model', same_as='episode.frames', help=FRAMES)
    dense_frames: int = setting(20, at_least=1, affects='model', help=DENSE_FRAMES)
    smoothing: float = setting(
        0.5,
        at_least=0,
        at_most=10,
        affects='model',
        help='exponent of the motion of each frame; 0: evenly spaced frames, 1: in proportion to '
        'the motion',
    )
    at_test: bool = setting(True, help=AT_TEST)

    def frames_read(self, frames: int) -> int:
        return self.dense_frames

    def check(self, frames: int | None = None) -> None:
        check_dense_frames(self)

    def __call__(self, videos: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """videos [B, M, H, W, 3] uint8 or float → {'frames': [B, T, H, W, 3], in order, 'indices':
        int32 [B, T] among the M}.

        In training each frame is drawn from its interval, with the rng stream 'sampler'; at test it
        is the interval's middle.
        """
        draws = (
            jax.random.uniform(self.make_rng('sampler'), (videos.shape[0], self.frames))
            if train
            else None
        )
        if train or self.at_test:
            indices = motion_indices(videos, self.frames, self.smoothing, draws)
        else:
            batch, dense = videos.shape[:2]
            indices = jnp.argmax(evenly_spaced_indicator(batch, dense, self.frames), -1)
        return {
            'frames': jnp.take_along_axis(videos, indices[:, :, None, None, None], axis=1),
            'indices': indices,
        }


def motion_indices(
    videos: jax.Array, count: int, mu: float, draws: jax.Array | None = None
) -> jax.Array:
    """The frames that lie at evenly spaced quantiles of the motion.

    S_t is the mean absolute difference of the frames t and t − 1 (of the first frame, to its
    successor); its share is (S_t / ΣS)^μ, divided by the sum of all; V_t = Σ_{s ≤ t} share_s. Frame
    i is the first t with V_t > (i + u_i) / T. A clip in which nothing moves has equal shares.

    A frame that holds more than 1 / T of the motion would be taken again: then the next frame is
    taken that has not been, and frames beyond the end move back as far as needed.

    Args:
      videos: [B, M, H, W, C] uint8 or float.
      count: T, at most M.
      mu: μ ≥ 0.
      draws: u in [0, 1), [B, T]; None for 1/2, the middle of each interval.

    Returns:
      int32 [B, T], ascending and distinct in 0..M-1.

    Raises:
      ValueError: more frames wanted than there are.
    """
    chex.assert_rank(videos, 5)
    batch, length = videos.shape[:2]
    if count > length:
        raise ValueError(
            f'cannot take {count} of {length} scanned frames by motion: '
            'lower config.episode.frames or scan more frames'
        )
    draws = jnp.full((batch, count), 0.5) if draws is None else draws
    chex.assert_shape(draws, (batch, count))

    frames = videos.astype(jnp.float32)
    motion = jnp.abs(frames[:, 1:] - frames[:, :-1]).mean((2, 3, 4))
    motion = (
        jnp.concatenate([motion[:, :1], motion], axis=1) if length > 1 else jnp.ones((batch, 1))
    )
    moves = motion.sum(1, keepdims=True) > 0
    # The powers are left unscaled, so that the equal shares of a still clip are whole numbers, and
    # its quantiles exact.
    cumulative = jnp.cumsum(jnp.where(moves, motion, 1.0) ** mu, axis=1)
    quantiles = (jnp.arange(count) + draws) * cumulative[:, -1:] / count
    indices = (cumulative[:, None, :] <= quantiles[:, :, None]).sum(-1)

    order = jnp.arange(count)
    indices = jax.lax.cummax(indices - order, axis=1) + order
    return jnp.minimum(indices, length - count + order).astype(jnp.int32)
