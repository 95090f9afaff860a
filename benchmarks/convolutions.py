"""Convolutions as the library has them and as `fsar_jax` computes them on a CPU:
python benchmarks/convolutions.py [--images=8] [--repeats=5]

First 1x1 convolutions as convolutions and as dot products: forward pass, and forward and backward
pass together. Then larger kernels: both passes with the library's gradients and with those of
`fsar_jax.convolution`, all images at once and half of them after the other half in a loop; those of
clips, of 8 frames each, too. Then depthwise ones, as grouped convolutions of the library and as
shifted products, in the same two ways. The layers are of ResNet-50 at 224 px, of the embedded
network, of the 3D ResNet-50 on small clips, and of the light networks. In ms of this machine's
default backend (the shortest of the repeats).
"""

import time

import jax
from absl import app, flags

from fsar_jax import convolution
from fsar_jax.backbones import depthwise, pointwise

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
# The same, with the taps of a side before the stride.
LARGER = (
    (224, 3, 64, 7, 2),
    (56, 64, 64, 3, 1),
    (56, 128, 128, 3, 2),
    (28, 128, 128, 3, 1),
    (14, 256, 256, 3, 1),
    (7, 512, 512, 3, 1),
    (64, 3, 32, 5, 4),
    (16, 32, 32, 3, 1),
    (16, 32, 64, 3, 2),
    (8, 64, 64, 3, 1),
    (4, 128, 128, 3, 1),
    (2, 128, 128, 3, 1),
)
# The same of clips; the stride is over space.
CLIPS = ((32, 3, 64, 7, 2), (14, 64, 64, 3, 1), (14, 128, 128, 3, 1), (7, 256, 256, 3, 1))
# The same of depthwise convolutions: of ShuffleNetV2, MobileNetV2 and EfficientNet-Lite0.
DEPTHWISE = (
    (16, 24, 24, 3, 1),
    (56, 24, 24, 3, 2),
    (28, 116, 116, 3, 1),
    (112, 32, 32, 3, 1),
    (112, 96, 96, 3, 2),
    (14, 576, 576, 3, 1),
    (28, 240, 240, 5, 1),
    (7, 960, 960, 3, 1),
)


def milliseconds(function, *arguments):
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def passes(form, x, kernel):
    """Forward pass, and forward and backward pass, of (x, kernel, weight of y)."""
    forward = lambda x, kernel, _: form(x, kernel)

    def both(x, kernel, weight):
        y, pull = jax.vjp(form, x, kernel)
        return y, pull(weight)

    shape = jax.eval_shape(form, x, kernel).shape
    return forward, both, (x, kernel, jax.random.normal(jax.random.key(2), shape))


def in_loop(both):
    """`both` of one half of the images after the other."""

    def run(x, kernel, weight):
        halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), (x, weight))
        return jax.lax.scan(lambda _, half: (None, both(half[0], kernel, half[1])), None, halves)

    return run


def random_layer(size, inputs, outputs, taps, frames=()):
    kernel = (taps,) * (2 + len(frames))
    return (
        jax.random.normal(jax.random.key(0), (IMAGES.value, *frames, size, size, inputs)),
        jax.random.normal(jax.random.key(1), (*kernel, inputs, outputs)),
    )


def main(_):
    device = jax.devices()[0]
    print(f'jax {jax.__version__}, {device.device_kind} ({device.platform}), {IMAGES.value} images')
    print(
        f"{'map':>4} {'in':>5} {'out':>5} {'stride':>6}   forward: conv    dot   both: conv    dot"
    )
    for size, inputs, outputs, stride in LAYERS:
        line = f'{size:>4} {inputs:>5} {outputs:>5} {stride:>6}  '
        for which in (0, 1):
            line += ' ' * (7 if which else 8)
            for form in (pointwise.convolution, pointwise.dot_product):
                *functions, arrays = passes(
                    lambda x, k, form=form: form(x, k, (stride, stride)),
                    *random_layer(size, inputs, outputs, 1),
                )
                line += f' {milliseconds(jax.jit(functions[which]), *arrays):>6.1f}'
        print(line, flush=True)
    forms = [
        lambda x, *how: jax.lax.conv_general_dilated(
            x, *how, dimension_numbers=convolution.layout(x)
        ),
        convolution.convolution,
    ]
    print_larger('library   ours', LARGER, forms)
    print_larger('library   ours', CLIPS, forms, frames=(8,))
    print_larger(
        'grouped  shifts',
        DEPTHWISE,
        [depthwise.grouped_convolution, depthwise.shifted_products],
        one_channel=True,
    )


def print_larger(title, layers, forms, one_channel=False, frames=()):
    """A table of both passes of each layer, by each form (x, kernel, strides, padding): all images
    (or clips of so many frames) at once, and in a loop. A depthwise kernel sees one channel."""
    print(
        f"\n{'map':>4} {'in':>5} {'out':>5} {'taps':>4} {'stride':>6}"
        f'   at once: {title}   in a loop: {title}'
    )
    for size, inputs, outputs, taps, stride in layers:
        line = f'{size:>4} {inputs:>5} {outputs:>5} {taps:>4} {stride:>6}  '
        seen = 1 if one_channel else inputs
        strides = (*(1 for _ in frames), stride, stride)
        padding = ((taps // 2, taps // 2),) * len(strides)
        for wrap, width in ((lambda both: both, 17), (in_loop, 19)):
            for form in forms:
                x, kernel = random_layer(size, inputs, outputs, taps, frames)
                _, both, arrays = passes(
                    lambda x, k, form=form: form(x, k, strides, padding), x, kernel[..., :seen, :]
                )
                line += f' {milliseconds(jax.jit(wrap(both)), *arrays):>{width}.1f}'
                width = 6
        print(line, flush=True)


if __name__ == '__main__':
    app.run(main)
