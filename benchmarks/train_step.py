"""How long one optimiser step takes: python benchmarks/train_step.py [--methods=strm,trx]
[--preset=ssv2] [--dtype=bfloat16]

The clips are random, so the loader is not measured (benchmarks/loading.py does that). At paper size
the step is compiled and timed on an accelerator: seconds to compile, median of a step, frames read
and teraFLOP in a second (operations of the step as it would be without `remat`, which computes some
of them twice), GiB of a device as the compiler counts them. On a CPU it is only traced, for one
episode: that shows that it builds, and counts its operations. A method with a sampler (vim) gets a
second row with evenly spaced frames, and the sampler's share of the step.
"""

import math
import pathlib
import runpy
import statistics
import time
import warnings

import jax
import numpy as np
from absl import app, flags, logging
from unrolled import loops_unrolled

from fsar_jax import create_learner
from fsar_jax.memory import counted_memory
from fsar_jax.mesh import episode_mesh, replicate, shard
from fsar_jax.stages import frames_read
from fsar_jax.training.inputs import fit_accumulation
from fsar_jax.training.state import create_train_state, make_train_step, train_state_shapes

METHODS = flags.DEFINE_list('methods', ['protonet', 'trm', 'trx', 'strm'], 'Files in configs/.')
PRESET = flags.DEFINE_string(
    'preset',
    '',
    "'' for the embedded default, or ssv2, kinetics, hmdb51, ucf101, as configs/ has them.",
)
DTYPE = flags.DEFINE_enum(
    'dtype', None, ['float32', 'bfloat16'], 'config.model.dtype; default as the config says.'
)
PARTS = flags.DEFINE_integer(
    'accumulation_steps', None, 'config.train.accumulation_steps; default as the config says.'
)
EPISODES = flags.DEFINE_integer(
    'episodes', None, 'config.train.episodes_per_step, one in a part; default as the config says.'
)
REMAT = flags.DEFINE_boolean(
    'remat', None, 'config.model.backbone.remat; default as the config says.'
)
STEPS = flags.DEFINE_integer('steps', 10, 'Timed steps, after two to warm up.')


def load(method, preset):
    file = pathlib.Path(__file__).parents[1] / 'configs' / f'{method}.py'
    config = runpy.run_path(str(file))['get_config'](preset)
    config.model.dtype = DTYPE.value or config.model.dtype
    if EPISODES.value:
        config.train.episodes_per_step = config.train.accumulation_steps = EPISODES.value
    config.train.accumulation_steps = PARTS.value or config.train.accumulation_steps
    if REMAT.value is not None:
        config.model.backbone.remat = REMAT.value
    return config


def batch_shapes(config):
    """What the loader gives for one step (fsar_jax.data.loader.training_batches)."""
    episode, train = config.episode, config.train
    leading = (train.accumulation_steps, train.episodes_per_step // train.accumulation_steps)
    clip, queries = (
        (frames_read(config), episode.image_size, episode.image_size, 3),
        (episode.query_classes or episode.way) * episode.query,
    )
    shapes = {
        'support': (np.uint8, (episode.way, episode.shot, *clip)),
        'query': (np.uint8, (queries, *clip)),
        'labels': (np.int32, (queries,)),
        'support_flip': (bool, (episode.way, episode.shot)),
        'query_flip': (bool, (queries,)),
        'classes': (np.int32, (episode.way,)),
        'episode': (np.int64, ()),
    }
    return {
        key: jax.ShapeDtypeStruct((*leading, *shape), dtype)
        for key, (dtype, shape) in shapes.items()
    }


def random_batch(config):
    rng, episode = np.random.default_rng(0), config.episode
    batch = {
        key: rng.integers(0, 256 if x.dtype == np.uint8 else 2, x.shape, x.dtype)
        if x.dtype != bool
        else rng.random(x.shape) < 0.5
        for key, x in batch_shapes(config).items()
    }
    asked = episode.query_classes or episode.way
    labels = np.repeat(np.arange(asked, dtype=np.int32), episode.query)
    return batch | {'labels': np.broadcast_to(labels, batch['labels'].shape)}


def measure(config, mesh):
    """(seconds to trace and compile, median seconds of a step, GiB of a device by the compiler's
    count)."""
    learner = create_learner(config.model)
    state = replicate(mesh, create_train_state(config, learner))
    batch = shard(mesh, random_batch(config), axis=1)
    start = time.perf_counter()
    step = make_train_step(learner, config, mesh).lower(state, batch).compile()
    compiled, seconds = time.perf_counter() - start, []
    for _ in range(STEPS.value + 2):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return compiled, statistics.median(seconds[2:]), sum(counted_memory(step) or ()) / 2**30


def trace(config):
    """(seconds to trace and lower a step of one episode, without remat; teraFLOP of the whole step
    by XLA's cost analysis)."""
    config = config.copy_and_resolve_references()
    episodes = config.train.episodes_per_step
    config.train.episodes_per_step = config.train.accumulation_steps = 1
    config.model.backbone.remat = False
    learner = create_learner(config.model)
    state = train_state_shapes(config, learner)
    start = time.perf_counter()
    with loops_unrolled():
        step = make_train_step(learner, config, episode_mesh(1))
        lowered = step.lower(state, batch_shapes(config))
    seconds = time.perf_counter() - start
    return seconds, episodes * lowered.cost_analysis()['flops'] / 1e12


def row(name, config, mesh, only_traced):
    """Prints a line of the table and returns what the step costs: TFLOP where it is only traced,
    else seconds."""
    train = config.train
    print(
        f'{name:<10} {train.episodes_per_step:>8} {train.accumulation_steps:>6} '
        f'{config.model.dtype:>9} ',
        end='',
        flush=True,
    )
    seconds, operations = trace(config)
    if only_traced:
        print(f'{seconds:>8.1f} {operations:>11.1f}', flush=True)
        return operations
    compiled, median, memory = measure(config, mesh)
    frames = sum(math.prod(batch_shapes(config)[key].shape[:-3]) for key in ('support', 'query'))
    print(
        f'{compiled:>9.1f} {1e3 * median:>8.1f} {train.episodes_per_step / median:>10.1f} '
        f'{frames / median:>8.0f} {operations / median:>8.1f} {memory:>6.2f}',
        flush=True,
    )
    return median


def main(_):
    logging.set_verbosity(logging.WARNING)
    # the loader's int64, which jax reads as int32
    warnings.filterwarnings('ignore', 'Explicitly requested dtype int64')
    mesh = episode_mesh()
    device = mesh.devices.flat[0]
    only_traced = bool(PRESET.value) and device.platform == 'cpu'
    print(
        f"{mesh.size} x {device.device_kind} ({device.platform}), preset "
        f"'{PRESET.value or 'embedded'}'"
        + (': traced, not run, because a CPU would take minutes' if only_traced else '')
    )
    print(
        f"{'method':<10} {'episodes':>8} {'parts':>6} {'dtype':>9} "
        + (
            f"{'trace s':>8} {'TFLOP/step':>11}"
            if only_traced
            else f"{'compile s':>9} {'step ms':>8} {'episodes/s':>10} {'frames/s':>8} "
            f"{'TFLOP/s':>8} {'GiB':>6}"
        )
    )
    for method in METHODS.value:
        config = load(method, PRESET.value)
        mesh = episode_mesh(config.train.episodes_per_step)
        config = fit_accumulation(config, mesh.size)
        cost = row(method, config, mesh, only_traced)
        if config.model.sampler.name != 'uniform':
            config.model.sampler.name = 'uniform'
            print(
                f"{'':<10} the sampler: "
                f"{1 - row('  without', config, mesh, only_traced) / cost:.0%} of the step",
                flush=True,
            )
    memory = device.memory_stats() or {}
    if 'peak_bytes_in_use' in memory:
        print(
            f"peak memory of a device, largest row: {memory['peak_bytes_in_use'] / 2**30:.1f} GiB"
        )


if __name__ == '__main__':
    app.run(main)
