"""What a method costs by count: python benchmarks/flops.py [--preset=ssv2] [--shot=5] [--query=1]

Floating point operations (a multiply-add is two) of one evaluation episode, pixels to logits, and
parameters. XLA's cost analysis counts them in the traced program, so nothing is compiled or run.
'concatenated' is the same head as published, with the linear maps applied to concatenated tuples
instead of frame by frame (benchmarks/tuple_projection.py).

    python benchmarks/flops.py --figure22 [--only=vim]

prints what VIM's Figure 22 has: parameters of every method, and seconds per task, 5-way 1-shot on
UCF101 (1 query per class), pixels to logits. This compiles and runs each method at the paper's
size, with random weights and frames.
"""

import functools
import pathlib
import runpy
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from fsar_jax import create_learner
from fsar_jax.layers import frame_tuples
from fsar_jax.stages import frames_read

PRESET = flags.DEFINE_string('preset', 'ssv2', "'' for the embedded default.")
SHOT = flags.DEFINE_integer('shot', 0, 'Support clips per class; 0: of the preset.')
QUERY = flags.DEFINE_integer('query', 1, 'Query clips per class.')
FIGURE_22 = flags.DEFINE_boolean('figure22', False, 'Parameters and seconds per task instead.')
ONLY = flags.DEFINE_string('only', '', 'With --figure22: this method alone.')
# VIM, Fig. 22: parameters in millions, seconds per task on a V100.
PUBLISHED = {
    'protonet': (25.8, 0.67),
    'otam': (25.8, 1.29),
    'trx': (47.1, 0.92),
    'hyrsm': (65.6, 0.89),
    'vim': (58.2, 0.85),
}
RUNS = 3  # of a task; the fastest counts
METHODS = {  # row -> config (after a colon: what comes before --preset), cardinalities or None
    'ProtoNet': ('protonet', None),
    'TRM {2}': ('trm', None),
    'TRX {2, 3}': ('trx', None),
    'STRM {2}': ('strm', None),
    'STRM {2, 3}': ('strm', (2, 3)),
    'Jnt-ST 1 layer': ('strm:joint1', None),
    'Jnt-ST 2 layers': ('strm:joint2', None),
}


def load(method, cardinalities):
    """The config of a row."""
    method, _, before = method.partition(':')
    file = pathlib.Path(__file__).parents[1] / 'configs' / f'{method}.py'
    preset = '-'.join(filter(None, (before, PRESET.value)))
    config = runpy.run_path(str(file))['get_config'](preset)
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


def of_task(method):
    """(million parameters, seconds of a task) of a method with its settings for UCF101, 1-shot."""
    file = pathlib.Path(__file__).parents[1] / 'configs' / f'{method}.py'
    config = runpy.run_path(str(file))['get_config']('ucf101-1shot')
    episode, learner, rng = config.episode, create_learner(config.model), np.random.default_rng(0)
    clip = (frames_read(config), episode.image_size, episode.image_size, 3)
    support = rng.integers(0, 256, (episode.way, episode.shot, *clip), np.uint8)
    query = rng.integers(0, 256, (episode.way, *clip), np.uint8)
    init = functools.partial(learner.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), support, query)
    draw = lambda x: jnp.asarray(rng.uniform(0.01, 0.02, x.shape), x.dtype)
    variables = jax.tree.map(draw, shapes)
    run = jax.jit(lambda variables, *clips: learner.apply(variables, *clips).logits)
    seconds = []
    for _ in range(1 + RUNS):  # the first compiles
        start = time.perf_counter()
        run(variables, support, query).block_until_ready()
        seconds.append(time.perf_counter() - start)
    parameters = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables['params']))
    return parameters / 1e6, min(seconds[1:])


def figure_22():
    """Prints the table, a method at a time."""
    files = sorted((pathlib.Path(__file__).parents[1] / 'configs').glob('*.py'))
    methods = [ONLY.value] if ONLY.value else [file.stem for file in files]
    device = jax.devices()[0]
    print(f'{device.device_kind} ({device.platform}); 5-way 1-shot, 1 query per class\n')
    print(f"{'method':<14} {'params M':>9} {'s/task':>8} {'paper: M':>10} {'s/task':>8}")
    for method in methods:
        parameters, seconds = of_task(method)
        paper = PUBLISHED.get(method)
        there = f'{paper[0]:>10.1f} {paper[1]:>8.2f}' if paper else ''
        print(f'{method:<14} {parameters:>9.2f} {seconds:>8.3f} {there}'.rstrip(), flush=True)


def main(_):
    logging.set_verbosity(logging.WARNING)
    if FIGURE_22.value:
        figure_22()
        return
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
        f"{'method':<15} {'params M':>9} {'backbone':>9} {'head':>8} {'total':>9}   "
        f"{'concatenated: head':>18} {'total':>9}"
    )
    for name, (parameters, backbone, head, published) in rows.items():
        print(
            f'{name:<15} {parameters:>9.2f} {backbone:>9.1f} {head:>8.2f} '
            f'{backbone + head:>9.1f}   '
            f'{published:>18.2f} {backbone + published:>9.1f}'
        )
    print(f"\n{'costs more':<26} {'here':>8} {'concatenated':>13}")
    for name, than in (
        ('STRM {2}', 'TRX {2, 3}'),
        ('STRM {2}', 'TRM {2}'),
        ('Jnt-ST 1 layer', 'TRM {2}'),
        ('Jnt-ST 2 layers', 'TRM {2}'),
    ):
        _, backbone, head, published = rows[name]
        _, base, base_head, base_published = rows[than]
        print(
            f'{f"{name} than {than}":<26} {(backbone + head) / (base + base_head) - 1:>+8.1%} '
            f'{(backbone + published) / (base + base_published) - 1:>+13.1%}'
        )


if __name__ == '__main__':
    app.run(main)
