"""1x1 convolutions as convolutions and as dot products: python benchmarks/convolutions.py
[--images=8] [--repeats=5]

Forward pass, and forward and backward pass together, of layers of ResNet-50 at 224 px and of the
embedded network, in ms of this machine's default backend (the shortest of the repeats).
"""

import time

import jax
from absl import app, flags

from fsar_jax.backbones.pointwise import convolution, dot_product

IMAGES = flags.DEFINE_integer('images', 8, 'Images of a batch.')
REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed calls; the shortest counts.')
# size of the map, channels in and out, stride: those of ResNet-50, then of the light networks.
LAYERS = (
    (56, 64, 64, 1),
    (56, 64, 256, 1),
    (56, 256, 64, 1),
    (56, 256, 512, 2),
    (28, 128, 512, 1),
    (28, 512, 128, 1),
    (28, 512, 1024, 2),
    (14, 256, 1024, 1),
    (14, 1024, 256, 1),
    (7, 512, 2048, 1),
    (7, 2048, 512, 1),
    (16, 32, 64, 2),
    (8, 64, 128, 2),
    (32, 24, 24, 1),
    (112, 16, 96, 1),
)


def milliseconds(function, *arguments):
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main(_):
    device = jax.devices()[0]
    print(f'jax {jax.__version__}, {device.device_kind} ({device.platform}), {IMAGES.value} images')
    print(
        f"{'map':>4} {'in':>5} {'out':>5} {'stride':>6}   forward: conv    dot   both: conv    dot"
    )
    for size, inputs, outputs, stride in LAYERS:
        x = jax.random.normal(jax.random.key(0), (IMAGES.value, size, size, inputs))
        kernel = jax.random.normal(jax.random.key(1), (1, 1, inputs, outputs))
        line = f'{size:>4} {inputs:>5} {outputs:>5} {stride:>6}  '
        for both in (False, True):
            line += ' ' * (7 if both else 8)
            for form in (convolution, dot_product):
                forward = lambda x, k, form=form: form(x, k, (stride, stride))
                y = jax.eval_shape(forward, x, kernel)
                weight = jax.random.normal(jax.random.key(2), y.shape)

                def gradients(x, k, weight, forward=forward):
                    y, pull = jax.vjp(forward, x, k)
                    return y, pull(weight)

                ms = (
                    milliseconds(jax.jit(gradients), x, kernel, weight)
                    if both
                    else milliseconds(jax.jit(forward), x, kernel)
                )
                line += f' {ms:>6.1f}'
        print(line, flush=True)


if __name__ == '__main__':
    app.run(main)
