"""Linear maps of frame tuples: python benchmarks/tuple_projection.py [--videos=10]
[--dtype=bfloat16]

'concatenated' puts the frames of each tuple side by side and multiplies, as the published codes do.
'factored' (fsar_jax.layers.TupleLinear) maps each frame once per position in the tuple and adds.
The parameters are the same, and so is the result up to rounding. Sizes are those of the papers:
8 frames, D = 2048, D' = 1152.
"""

import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags, logging

from fsar_jax.layers import TupleLinear, frame_tuples

VIDEOS = flags.DEFINE_integer('videos', 10, 'Clips in a batch.')
DIM, FEATURES, LENGTH = 2048, 1152, 8
DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Compute dtype.')
REPEATS = flags.DEFINE_integer(
    'repeats', 7, 'Timed calls, after one to compile and one to warm up.'
)


def concatenated(params, frames, cardinality):
    tuples = frames[:, frame_tuples(LENGTH, cardinality)]  # [B, T, ω, D]
    tuples = tuples.reshape(*tuples.shape[:2], -1).astype(DTYPE.value)
    return tuples @ params['kernel'].astype(DTYPE.value) + params['bias'].astype(DTYPE.value)


def milliseconds(function, *arguments):
    seconds = []
    for _ in range(REPEATS.value + 2):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[2:])


def main(_):
    logging.set_verbosity(logging.WARNING)
    device = jax.devices()[0]
    print(
        f'{device.device_kind}, {VIDEOS.value} clips of {LENGTH} frames, D = {DIM}, D\' = '
        f'{FEATURES}, {DTYPE.value}\n'
    )
    print(f"{'tuples':<8} {'':<18} {'concatenated':>13} {'factored':>9} {'ratio':>7}")
    for cardinality in (2, 3):
        frames = jax.random.normal(jax.random.key(0), (VIDEOS.value, LENGTH, DIM))
        layer = TupleLinear(FEATURES, cardinality, dtype=jnp.dtype(DTYPE.value))
        params = layer.init(jax.random.key(1), frames)['params']
        one = lambda params, frames: concatenated(params, frames, cardinality)
        other = lambda params, frames: layer.apply({'params': params}, frames)
        total = lambda project: jax.grad(
            lambda *x: jnp.square(project(*x).astype(jnp.float32)).sum(), (0, 1)
        )
        for row, wrap, measure in (
            (
                'GFLOP forward',
                lambda f: f,
                lambda f, *x: jax.jit(f).lower(*x).cost_analysis()['flops'] / 1e9,
            ),
            ('ms forward', jax.jit, milliseconds),
            ('ms with backward', lambda f: jax.jit(total(f)), milliseconds),
        ):
            before, after = (measure(wrap(project), params, frames) for project in (one, other))
            name = {2: 'pairs', 3: 'triples'}[cardinality]
            print(
                f'{name:<8} {row:<18} {before:>13.2f} {after:>9.2f} {before / after:>6.1f}x',
                flush=True,
            )
        difference = jnp.abs(jax.jit(one)(params, frames) - jax.jit(other)(params, frames)).max()
        print(f'{"":<8} largest difference {difference:>12.0e}')


if __name__ == '__main__':
    app.run(main)
