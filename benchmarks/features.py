"""How fast a run on extracted features trains: python benchmarks/features.py
[--methods=protonet,trm,trx] [--channels=1280] [--backbone=resnet18] [--steps=50] [--clock=cpu]

5-way 1-shot with 3 queries per class, 8 of 64 stored frames. The first column is the whole training
step with its loader; the second the matrix products of that step alone: every dot_general in it, on
random arrays of the same shapes. Ten steps and ten times the products take turns. The last line
compares with the same step on 224 px frames through the frozen backbone, whose clips are random, so
that nothing is read or decoded.

On a busy machine, measure the CPU time of one core: taskset -c 0 python benchmarks/features.py
--clock=cpu
"""

import contextlib
import itertools
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from fsar_jax import create_learner
from fsar_jax.data import loader
from fsar_jax.data.features import Header, open_features
from fsar_jax.ingest.feature_files import cut_into_files, write_header, write_shard
from fsar_jax.mesh import episode_mesh, replicate, shard
from fsar_jax.train import CONFIGS
from fsar_jax.training.inputs import with_features
from fsar_jax.training.state import create_train_state, make_train_step

METHODS = flags.DEFINE_list('methods', ['protonet', 'trm', 'trx'], 'Files in configs/.')
CHANNELS = flags.DEFINE_integer('channels', 1280, 'C of the features.')
BACKBONE = flags.DEFINE_string(
    'backbone', 'resnet18', "That the features are compared with; '' for none."
)
STEPS = flags.DEFINE_integer('steps', 50, 'Timed steps.')
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}
CLOCK = flags.DEFINE_enum('clock', 'wall', list(CLOCKS), 'Whose seconds count.')
CLASSES, CLIPS, FRAMES = 20, 20, 64


def config_of(method, features):
    config = {}
    exec(compile((CONFIGS / f'{method}.py').read_text(), method, 'exec'), config)
    config = config['get_config']()
    with config.unlocked():
        config.model.backbone.name, config.data.features = 'features', str(features)
        config.data.dataset = 'random'
    return with_features(config)


def write_features(folder, channels):
    """Random features of CLASSES classes, in float16."""
    count = CLASSES * CLIPS
    header = Header(
        extractor={
            'backbone': {'name': 'random'},
            'params_hash': '0' * 64,
            'compute_dtype': 'float32',
            'frames': {
                'resize': 256,
                'image_size': 224,
                'crop': 'centre',
                'flip': False,
                'views': 1,
            },
            'features': {'kind': 'pooled', 'shape': [1, 1, channels], 'dtype': 'float16'},
        },
        dataset='random',
        version='1.0.0',
        class_names=[f'class {label:02d}' for label in range(CLASSES)],
        settings={},
        made_with={},
        splits={
            'train': {
                'video_id': [f'clip {number:04d}' for number in range(count)],
                'label': [number // CLIPS for number in range(count)],
                'num_frames': [FRAMES] * count,
                'expected': None,
                'content': '',
                'shards': cut_into_files([FRAMES] * count),
            }
        },
        done={},
        made_by={},
    )
    rng = np.random.default_rng(0)
    for part in header.shards('train'):
        values = rng.random((part.rows, channels), np.float32).astype(np.float16)
        header.done[part.file] = write_shard(folder, header, part, [(np.arange(part.rows), values)])
    write_header(folder, header)


def started(config):
    """(step, state) of a run."""
    mesh, learner = episode_mesh(1), create_learner(config.model)
    return make_train_step(learner, config, mesh), replicate(
        mesh, create_train_state(config, learner)
    )


def seconds_of_steps(config, dataset):
    """Seconds of each step with what the loader gives for it, as the training loop runs it."""
    step, state = started(config)
    mesh, clock, waiting = episode_mesh(1), CLOCKS[CLOCK.value], None
    with contextlib.closing(loader.training_batches(dataset, config, 0)) as batches:
        while True:
            start = clock()
            state, metrics = step(state, shard(mesh, next(batches), axis=1))
            if waiting is not None:  # one step behind, as the loop logs
                jax.block_until_ready(waiting)
            waiting = metrics
            yield clock() - start


def products_of(jaxpr):
    """(shapes and types of both operands, parameters) of every dot_general in a jaxpr, as often as
    it runs."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'dot_general':
            operands = tuple((x.aval.shape, x.aval.dtype) for x in equation.invars)
            keys = ('dimension_numbers', 'precision', 'preferred_element_type')
            yield operands, {key: equation.params[key] for key in keys}
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
        ):
            inner = getattr(value, 'jaxpr', value)
            if hasattr(inner, 'eqns'):
                yield from list(products_of(inner)) * equation.params.get('length', 1)


def products_of_step(config, dataset):
    """The matrix products of a step: (jitted function, its operands)."""
    step, state = started(config)
    with contextlib.closing(loader.training_batches(dataset, config, 0)) as batches:
        products = list(products_of(jax.make_jaxpr(step)(state, next(batches)).jaxpr))
    rng = np.random.default_rng(0)
    operands = [
        [jnp.asarray(rng.random(shape, np.float32), dtype) for shape, dtype in of]
        for of, _ in products
    ]

    @jax.jit
    def run(operands):
        return [jax.lax.dot_general(*of, **how) for of, (_, how) in zip(operands, products)]

    return run, operands


def seconds_of(function, operands):
    """Seconds of each call."""
    clock = CLOCKS[CLOCK.value]
    while True:
        start = clock()
        jax.block_until_ready(function(operands))
        yield clock() - start


def medians_in_turn(*timed, count, at_once=10):
    """Median of `count` numbers of each generator, after three: `at_once` of one, then of the
    next."""
    found = [[] for _ in timed]
    for each in timed:
        list(itertools.islice(each, 3))
    while len(found[0]) < count:
        for numbers, each in zip(found, timed):
            numbers += itertools.islice(each, at_once)
    return [statistics.median(numbers) for numbers in found]


def seconds_of_frames(config, backbone):
    """Seconds of an episode on frames through the frozen backbone."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.backbone.update(name=backbone, trained=False)
        config.data.feature_shape, config.data.features = (), None
        config.train.episodes_per_step = 1
    episode, rng = config.episode, np.random.default_rng(0)
    size = (1, 1, episode.way, episode.frames, episode.image_size, episode.image_size, 3)
    frames = lambda count: rng.integers(0, 256, (*size[:3], count, *size[3:]), np.uint8)
    support, query = frames(episode.shot), frames(episode.query)
    batch = {
        'support': support,
        'query': query.reshape(1, 1, -1, *query.shape[4:]),
        'labels': np.repeat(np.arange(episode.way, dtype=np.int32), episode.query)[None, None],
        'support_flip': np.zeros((1, 1, episode.way, episode.shot), bool),
        'query_flip': np.zeros((1, 1, episode.way * episode.query), bool),
        'classes': np.arange(episode.way, dtype=np.int32)[None, None],
        'episode': np.zeros((1, 1), np.int64),
    }
    step, state = started(config)
    clock, times = CLOCKS[CLOCK.value], []
    for _ in range(3):
        start = clock()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        times.append(clock() - start)
    return min(times[1:])


def main(_):
    logging.set_verbosity(logging.WARNING)
    device = jax.devices()[0]
    print(
        f'{jax.device_count()} x {device.device_kind} ({device.platform}), '
        f'{CHANNELS.value} channels, {CLOCK.value} time'
    )
    print(f'{"method":<10} {"episodes/s":>11} {"products alone":>15} {"share":>6} {"GFLOP":>7}')
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_features(folder, CHANNELS.value)
        dataset = open_features('random', folder, 'train')
        for method in METHODS.value:
            config = config_of(method, folder)
            episodes = config.train.episodes_per_step
            run, operands = products_of_step(config, dataset)
            flops = run.lower(operands).cost_analysis()['flops'] / 1e9
            seconds, alone = medians_in_turn(
                seconds_of_steps(config, dataset), seconds_of(run, operands), count=STEPS.value
            )
            print(
                f'{method:<10} {episodes / seconds:>11.1f} {episodes / alone:>15.1f} '
                f'{alone / seconds:>6.0%} {flops / episodes:>7.2f}',
                flush=True,
            )
        if BACKBONE.value:
            each = seconds / episodes
            frames = seconds_of_frames(config, BACKBONE.value)
            print(
                f'{METHODS.value[-1]} on frames through {BACKBONE.value}: {frames:.2f} s an '
                f'episode, {frames / each:.0f} times as long as on features'
            )


if __name__ == '__main__':
    app.run(main)
