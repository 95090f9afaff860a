"""Pieces shared by enrichments and matchers: the linear map, the position code, norms with finite
gradients, tuples."""

import itertools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fsar_jax.convolution import convolution

# How the layers of a matcher start: `torch_start`, or as the published code has it.
STARTS = ('torch', 'published')


class Linear(nn.Module):
    """y = x W + b with the initialisation of torch.nn.Linear: W and b uniform in ±1/√fan_in.

    Heads trained from scratch at a published learning rate depend on that start; Flax's default
    differs.

    Args:
      features: output width; None for that of the input.
      use_bias: the printed equations of STRM have none, its code has one everywhere.
      dtype: compute dtype; parameters are float32.
      start: of W; None for that of torch.

    Input [..., D], output [..., features].
    """

    features: int | None
    use_bias: bool = True
    dtype: Any = jnp.float32
    start: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.features or x.shape[-1]
        start = torch_start(x.shape[-1])
        shape = x.shape[-1], features
        kernel = self.param('kernel', self.start or start, shape, jnp.float32)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            y = y + self.param('bias', start, (features,), jnp.float32).astype(self.dtype)
        return y


def torch_start(inputs: int) -> nn.initializers.Initializer:
    """Uniform in ±1/√inputs: how torch starts the weights and biases of linear maps and
    convolutions."""
    bound = 1.0 / np.sqrt(inputs)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def torch_conv3d(x: jax.Array, features: int, dtype: DTypeLike, name: str) -> jax.Array:
    """In a compact module: a 3 × 3 × 3 convolution `name` with bias, as torch starts it, [B, L, h,
    w, C] → [B, L, h, w, features]."""
    start = torch_start(27 * x.shape[-1])
    return nn.Conv(
        features,
        (3, 3, 3),
        padding=1,
        kernel_init=start,
        bias_init=start,
        dtype=dtype,
        conv_general_dilated=convolution,
        name=name,
    )(x)


def frames_as_floats(frames: jax.Array) -> jax.Array:
    """uint8 frames → float32 in [0, 1]; floats as they are; ValueError for anything else."""
    if frames.dtype == jnp.uint8:
        return frames.astype(jnp.float32) / 255.0
    if not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(f'frames are {frames.dtype}: pass uint8, or floats in [0, 1]')
    return frames


def sinusoidal_positions(length: int, dim: int) -> np.ndarray:
    """S[t, 2i] = sin(t / 10000^(2i/D)), S[t, 2i+1] = cos(t / 10000^(2i/D)): float32 [length, dim]
    (Vaswani et al. 2017, Sec. 3.5)."""
    rate = np.exp(-np.log(10000.0) * np.arange(0, dim, 2) / dim)
    angle = np.arange(length)[:, None] * rate
    table = np.zeros((length, dim), np.float32)
    table[:, 0::2] = np.sin(angle)
    table[:, 1::2] = np.cos(angle)[:, : dim // 2]
    return table


def linear_interpolation(position: jax.Array, length: int) -> jax.Array:
    """Weights [..., n, length] that read a sequence at `position` [..., n], in steps: max(0, 1 −
    |position − i|), zero beyond it."""
    return jnp.maximum(0.0, 1.0 - jnp.abs(position[..., None] - jnp.arange(length)))


POSITION_AMPLITUDE = 0.1  # of the sinusoid in the codes of TRX and STRM


def norm(x: jax.Array, axis: int = -1) -> jax.Array:
    """Euclidean norm in float32 along `axis`; its gradient at zero is zero, where jnp.linalg.norm
    gives NaN."""
    squared = jnp.sum(jnp.square(x.astype(jnp.float32)), axis)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def unit(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """x / max(‖x‖, eps) along the last axis, float32, with finite gradients at zero."""
    return x.astype(jnp.float32) / jnp.maximum(norm(x), eps)[..., None]


def einsum_float32(
    subscripts: str, x: jax.Array | np.ndarray, y: jax.Array | np.ndarray
) -> jax.Array:
    """einsum of two arrays with products summed in float32, whatever their dtype: scores and
    distances are float32.

    Accelerators multiply bfloat16 natively and accumulate in float32; XLA's CPU backend cannot, so
    there the operands are cast. Float32 operands are multiplied as such (precision HIGHEST): by
    default a GPU would round them to TF32, a TPU to bfloat16.
    """
    if jax.default_backend() == 'cpu':
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum(
        subscripts, x, y, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def combine_cardinalities(
    logits: list[jax.Array], reduction: str | None, variant: str
) -> jax.Array:
    """One logits array from one per cardinality: 'mean' or 'sum' over Ω; None is the variant's,
    code mean and paper sum (row S8)."""
    return cast(jax.Array, sum(logits)) / (
        len(logits) if (reduction or ('mean' if variant == 'code' else 'sum')) == 'mean' else 1
    )


def frame_tuples(length: int, cardinality: int) -> np.ndarray:
    """All increasing frame index lists in lexicographic order: int32 [T, cardinality], T =
    C(length, cardinality) (TRX, Π_ω).

    Raises:
      ValueError: a clip of `length` time steps has no such tuple.
    """
    if length < cardinality:
        raise ValueError(
            f'tuples of {cardinality} frames need as many time steps, but the backbone leaves '
            f'{length} of a clip: raise config.episode.frames (a backbone over clips may leave one '
            'time step of 16 frames; a smaller temporal_stride of resnet3d50 leaves more), or '
            'choose shorter tuples or another backbone'
        )
    return np.array(list(itertools.combinations(range(length), cardinality)), np.int32).reshape(
        -1, cardinality
    )


def kept_tuples(length: int, cardinality: int, share: float, seed: int) -> np.ndarray:
    """The `share` of all `frame_tuples` that a seed draws: round(share · T), at least one, in
    lexicographic order (STRM, Fig. 6 right).

    A smaller share of the same seed is a part of a larger one. A share of 1 is all of them.

    Returns:
      int32 [kept, cardinality].
    """
    tuples = frame_tuples(length, cardinality)
    kept = max(1, int(share * len(tuples) + 0.5))
    if kept >= len(tuples):
        return tuples
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, cardinality], np.uint64)))
    return tuples[np.sort(np.argsort(generator.random(len(tuples)))[:kept])]


class TupleLinear(nn.Module):
    """A linear map of concatenated frame tuples, [e_t1; …; e_tω] W + b, computed per frame and then
    added.

    W is [ω·D, features]; its ω blocks map each frame once per place in the tuple, so L·ω products
    replace T·ω (3.5 times fewer for pairs of 8 frames, 7 times for triples) and the result is the
    same sum.

    Input frames [..., L, D] and tuples [T, cardinality], None for all `frame_tuples(L,
    cardinality)`; output [..., T, features]. ValueError where L is too small for a tuple.
    """

    features: int
    cardinality: int
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, tuples: np.ndarray | None = None) -> jax.Array:
        length, dim = frames.shape[-2:]
        tuples = frame_tuples(length, self.cardinality) if tuples is None else tuples
        start = torch_start(self.cardinality * dim)
        kernel = self.param('kernel', start, (self.cardinality * dim, self.features), jnp.float32)
        blocks = kernel.reshape(self.cardinality, dim, self.features).astype(self.dtype)
        frames = frames.astype(self.dtype)
        products = (
            jnp.take(frames @ blocks[w], tuples[:, w], axis=-2) for w in range(self.cardinality)
        )
        y = cast(jax.Array, sum(products))
        if self.use_bias:
            y = y + self.param('bias', start, (self.features,), jnp.float32).astype(self.dtype)
        return y


def frame_cosine(subscripts: str, x: jax.Array, y: jax.Array, margin: float = 0.0) -> jax.Array:
    """cos(x, y) = x·y / (‖x‖‖y‖ + margin) for all pairs of frames, float32, with finite gradients
    at zero.

    `subscripts` is the einsum of the products, the last axis of both operands being the features:
    'qxd,wsyd->qwsxy'.
    """
    operands, pairs = subscripts.split('->')
    left, right = (axes[:-1] for axes in operands.split(','))
    lengths = einsum_float32(f'{left},{right}->{pairs}', norm(x), norm(y))
    return einsum_float32(subscripts, x, y) / jnp.maximum(lengths + margin, 1e-12)


def computed(x: jax.Array) -> jax.Array:
    """`x`, computed as it is before what follows: JAX 0.12 on CPUs fuses a residual sum in bfloat16
    with the mean over it, and gives NaN. Other types are left to the compiler."""
    return jax.lax.optimization_barrier(x) if x.dtype == jnp.bfloat16 else x
