"""What a method costs by count: python benchmarks/flops.py [--preset=ssv2] [--shot=5] [--query=1]

Floating point operations (a multiply-add is two) of one evaluation episode, pixels to logits, and
parameters. XLA's cost analysis counts them in the traced program, so nothing is compiled or run.
'concatenated' is the same head as published, with the linear maps applied to concatenated tuples
instead of frame by frame (benchmarks/tuple_projection.py).
"""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from fsar_jax import create_learner
from fsar_jax.layers import frame_tuples

PRESET = flags.DEFINE_string('preset', 'ssv2', "'' for the embedded default.")
SHOT = flags.DEFINE_integer('shot', 0, 'Support clips per class; 0: of the preset.')
QUERY = flags.DEFINE_integer('query', 1, 'Query clips per class.')
METHODS = {  # row -> config, cardinalities (None: of the config)
    'ProtoNet': ('protonet', None),
    'TRM {2}': ('trm', None),
    'TRX {2, 3}': ('trx', None),
    'STRM {2}': ('strm', None),
    'STRM {2, 3}': ('strm', (2, 3)),
}


def load(method, cardinalities):
    """The config of a row."""
    file = pathlib.Path(__file__).parents[1] / 'configs' / f'{method}.py'
    config = runpy.run_path(str(file))['get_config'](PRESET.value)
    config.model.matcher.cardinalities = cardinalities or config.model.matcher.cardinalities
    config.episode.shot = SHOT.value or config.episode.shot
    return config


def operations(function, *arguments):
    """FLOPs of a traced function; arguments are arrays or shapes."""
    return jax.jit(function).lower(*arguments).cost_analysis()['flops']


def concatenation(config, videos, channels):
    """What the linear maps of tuples cost more when they are applied to concatenated frames."""
    model, length, more = config.model, config.episode.frames, 0
    if model.matcher.name != 'cross_transformer':
        return 0
    outputs = 2 * (model.matcher.dim or channels // 2)  # keys and values
    if model.query_similarity.weight:
        outputs += model.query_similarity.dim or channels // 2
    for cardinality in model.matcher.cardinalities:
        tuples = len(frame_tuples(length, cardinality))
        more += 2 * videos * (tuples - length) * cardinality * channels * outputs
    return more


def count(config):
    """(million parameters, GFLOP of the backbone, of the rest, of the rest with concatenated
    tuples)."""
    episode, learner = config.episode, create_learner(config.model)
    clip = (episode.frames, episode.image_size, episode.image_size, 3)
    support = jax.ShapeDtypeStruct((episode.way, episode.shot, *clip), jnp.uint8)
    query = jax.ShapeDtypeStruct((episode.way * QUERY.value, *clip), jnp.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(functools.partial(learner.init, train=False), key, support, query)
    parameters = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))

    videos = episode.way * (episode.shot + QUERY.value)
    maps = functools.partial(learner.apply, train=False, method='feature_maps')
    frames = jax.ShapeDtypeStruct((videos, *clip), jnp.uint8)
    channels = jax.eval_shape(maps, variables, frames).shape[-1]
    backbone = operations(maps, variables, frames)
    logits = lambda variables, *clips: learner.apply(variables, *clips, train=False).logits
    head = operations(logits, variables, support, query) - backbone
    return (
        parameters / 1e6,
        backbone / 1e9,
        head / 1e9,
        (head + concatenation(config, videos, channels)) / 1e9,
    )


def main(_):
    logging.set_verbosity(logging.WARNING)
    rows, episode = {}, None
    for name, (method, cardinalities) in METHODS.items():
        config = load(method, cardinalities)
        rows[name], episode = count(config), config.episode
    print(
        f'{config.model.backbone.name}, {episode.frames} frames of {episode.image_size} px, '
        f'{episode.way}-way {episode.shot}-shot, '
        f'{episode.way * QUERY.value} queries; GFLOP per episode\n'
    )
    print(
        f"{'method':<12} {'params M':>9} {'backbone':>9} {'head':>8} {'total':>9}   "
        f"{'concatenated: head':>18} {'total':>9}"
    )
    for name, (parameters, backbone, head, published) in rows.items():
        print(
            f'{name:<12} {parameters:>9.2f} {backbone:>9.1f} {head:>8.2f} '
            f'{backbone + head:>9.1f}   '
            f'{published:>18.2f} {backbone + published:>9.1f}'
        )
    print(f"\n{'STRM {2} costs more than':<26} {'here':>8} {'concatenated':>13}")
    _, backbone, head, published = rows['STRM {2}']
    for name in ('TRM {2}', 'TRX {2, 3}'):
        _, base, base_head, base_published = rows[name]
        print(
            f'{name:<26} {(backbone + head) / (base + base_head) - 1:>+8.1%} '
            f'{(backbone + published) / (base + base_published) - 1:>+13.1%}'
        )


if __name__ == '__main__':
    app.run(main)
