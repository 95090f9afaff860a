"""The measured columns of docs/backbones.md: python benchmarks/backbones.py [--only=resnet50]

For every backbone, at the frame size that its row names: parameters, floating point operations of
one frame (a multiply-add is two; XLA's cost analysis of the traced program), and the frames that
one core encodes in a second, in float32, by processor time, which other work on the machine hardly
changes.
"""

import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags, logging

from fsar_jax import backbones
from fsar_jax.backbones import BACKBONES

ONLY = flags.DEFINE_list('only', [], 'Backbones to measure; all if left out.')
FRAMES = flags.DEFINE_integer('frames', 8, 'Frames of a call, for backbones that take frames.')
# Sides of a frame in pixels where it is not 224.
SIDES = {
    'resnet_small': 64,
    'resnet3d50': 112,
    'efficientnet_lite1': 240,
    'efficientnet_lite2': 260,
}
CLIP = 16  # frames, for backbones that take clips


def network_of(name):
    """A backbone with the settings of its defaults."""
    return backbones.create(ml_collections.ConfigDict(dict(name=name, batch_norm='split')))


def input_shape(name, network, frames):
    """Shape of what one call takes."""
    side = SIDES.get(name, 224)
    return (1, CLIP, side, side, 3) if network.takes_clips else (frames, side, side, 3)


def row(name):
    """{column: value} of one backbone."""
    network = network_of(name)
    shape = input_shape(name, network, FRAMES.value)
    frames = shape[0] * (CLIP if network.takes_clips else 1)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    maps, shapes = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x), x)
    encode = jax.jit(lambda variables, x: network.apply(variables, x))
    lowered = encode.lower(shapes, x)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.uniform(0.01, 0.02, s.shape).astype(s.dtype), shapes)
    program, pixels = lowered.compile(), rng.random(shape, np.float32)
    seconds = []
    for _ in range(4):
        start = time.process_time()
        jax.block_until_ready(program(variables, pixels))
        seconds.append(time.process_time() - start)
    return {
        'input': '×'.join(map(str, shape[1:-1])),
        'maps': '×'.join(map(str, maps.shape[1:])),
        'parameters': f'{sum(p.size for p in jax.tree.leaves(shapes["params"])) / 1e6:.2f} M',
        'GFLOP': f'{lowered.cost_analysis()["flops"] / frames / 1e9:.2f}',
        'frames/s': f'{frames / min(seconds[1:]):.2g}',
    }


def main(_):
    logging.set_verbosity(logging.WARNING)
    for name in ONLY.value or [name for name in BACKBONES if name != 'features']:
        print(f'| `{name}` | {" | ".join(row(name).values())} |', flush=True)


if __name__ == '__main__':
    app.run(main)
