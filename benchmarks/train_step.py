"""How long one optimiser step takes: python benchmarks/train_step.py [--methods=strm,trx]
[--preset=ssv2] [--dtype=bfloat16]

The clips are random, so the loader is not measured (benchmarks/loading.py does that). At paper size
the step is compiled and timed on an accelerator. On a CPU it is only traced, as one part: that
shows that it builds, and counts its operations. A method with a sampler (vim) gets a second row
with evenly spaced frames, and the sampler's share of the step.
"""

import pathlib
import runpy
import statistics
import time

import jax
import numpy as np
from absl import app, flags, logging
from unrolled import loops_unrolled

from fsar_jax import create_learner
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
STEPS = flags.DEFINE_integer('steps', 10, 'Timed steps, after two to warm up.')


def load(method, preset):
    file = pathlib.Path(__file__).parents[1] / 'configs' / f'{method}.py'
    config = runpy.run_path(str(file))['get_config'](preset)
    config.model.dtype = DTYPE.value or config.model.dtype
    config.train.accumulation_steps = PARTS.value or config.train.accumulation_steps
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
    """(seconds to compile and run the first step, median seconds of a step)."""
    learner = create_learner(config.model)
    state = replicate(mesh, create_train_state(config, learner))
    batch = shard(mesh, random_batch(config), axis=1)
    step = make_train_step(learner, config, mesh)
    seconds = []
    for _ in range(STEPS.value + 2):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return seconds[0], statistics.median(seconds[2:])


def trace(config, mesh):
    """(seconds to trace and lower the step, its teraFLOP by XLA's cost analysis)."""
    learner = create_learner(config.model)
    state = train_state_shapes(config, learner)
    start = time.perf_counter()
    with loops_unrolled():
        lowered = make_train_step(learner, config, mesh).lower(state, batch_shapes(config))
    return time.perf_counter() - start, lowered.cost_analysis()['flops'] / 1e12


def row(name, config, mesh, only_traced):
    """Prints a line of the table and returns what the step costs: TFLOP where it is only traced,
    else seconds."""
    episodes, parts = config.train.episodes_per_step, config.train.accumulation_steps
    print(f'{name:<10} {episodes:>8} {parts:>6} {config.model.dtype:>9} ', end='', flush=True)
    if only_traced:
        seconds, operations = trace(config, mesh)
        print(f'{seconds:>8.1f} {operations:>11.1f}', flush=True)
        return operations
    first, median = measure(config, mesh)
    print(f'{first:>8.1f} {1e3 * median:>8.1f} {episodes / median:>11.1f}', flush=True)
    return median


def main(_):
    logging.set_verbosity(logging.WARNING)
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
            else f"{'first s':>8} {'step ms':>8} {'episodes/s':>11}"
        )
    )
    for method in METHODS.value:
        config = load(method, PRESET.value)
        mesh = episode_mesh(config.train.episodes_per_step)
        config = fit_accumulation(config, mesh.size)
        if only_traced:
            config.train.accumulation_steps = (
                1  # on a CPU the parts are unrolled, and each would be traced
            )
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
