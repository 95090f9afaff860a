"""Compiles a method for TPUs that are not there: python benchmarks/compile_for.py
--topology=v5e:2x2 --config=strm:ssv2[,protonet:ssv2…] [--dtype=bfloat16] [--of=train,match]
[--level=O1]

Needs the extra tpu-compile (PyPI's libtpu). For each config, the training step and the matching of
a chunk of test episodes: seconds to trace and to compile, the latter in CPU time too, GiB of each
chip (arguments and outputs + temporaries) beside what it has, TFLOP and GB moved of each chip by
the compiler's count, the seconds that these take at the chip's peak (the larger of the two), and
the millions of cycles that the compiler estimates for its operations one after another. The loop
over the parts of a step (train.accumulation_steps) is counted once by the compiler, so the counts
are of one part. --level is the compiler's level of effort, which a run takes from
JAX_OPTIMIZATION_LEVEL; without it, XLA's default.
"""

import os

os.environ.update(
    JAX_PLATFORMS='cpu',
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_ACCELERATOR_TYPE='v5litepod-4',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',  # several compile at once: none has a TPU
)

import functools
import re
import time
from unittest import mock

import jax
import numpy as np
import train_step
from absl import app, flags, logging
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from fsar_jax import create_learner
from fsar_jax.evaluation.evaluate import _match_chunk
from fsar_jax.mesh import AXIS, along, replicated, round_up
from fsar_jax.messages import first_line
from fsar_jax.stages import frames_read
from fsar_jax.training.inputs import fit_accumulation
from fsar_jax.training.state import make_train_step, train_state_shapes

TOPOLOGY = flags.DEFINE_string('topology', 'v5e:2x2', 'Chip and shape, as libtpu names them.')
CONFIGS = flags.DEFINE_list('config', ['strm:ssv2'], 'Methods, with or without a preset.')
OF_STEP = flags.DEFINE_list('of', ['train', 'match'], 'Which steps to compile.')
LEVEL = flags.DEFINE_enum('level', None, ['O0', 'O1', 'O2', 'O3'], "XLA's level of effort.")
# GiB, bfloat16 TFLOP/s and GB/s of a chip (cloud.google.com/tpu/docs).
CHIPS = {'v5e': (16, 197, 819), 'v5p': (95, 459, 2765), 'v6e': (32, 918, 1640)}


def placed(tree, sharding):
    """The shapes of a tree, on the chips."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def lowered_train(config, learner, mesh):
    state = train_state_shapes(config, learner)
    batch = placed(train_step.batch_shapes(config), along(mesh, 1))
    return make_train_step(learner, config, mesh).lower(placed(state, replicated(mesh)), batch)


def lowered_match(config, learner, mesh):
    """One chunk of episodes of 5 queries among 1,000 embedded clips."""
    state = train_state_shapes(config, learner)
    size, episode = config.episode.image_size, config.episode
    videos = jax.ShapeDtypeStruct((1000, frames_read(config), size, size, 3), np.uint8)
    embed = functools.partial(learner.apply, train=False, method='embed')
    embeddings = jax.eval_shape(embed, state.variables, videos)
    count = config.eval.episodes_per_chunk
    if learner.encodes_in_match:  # as many clips as in embedding
        clips = episode.way * (episode.shot + config.eval.query)
        count = max(1, config.eval.videos_per_batch // clips)
    count = round_up(count, mesh)
    support = jax.ShapeDtypeStruct((count, episode.way, episode.shot), np.int32)
    query = jax.ShapeDtypeStruct((count, episode.way * config.eval.query), np.int32)
    whole, split = replicated(mesh), along(mesh, 0)
    return _match_chunk.lower(
        learner,
        placed(state.variables, whole),
        placed(embeddings, whole),
        [],
        placed(support, split),
        placed(query, split),
        mesh,
    )


def row(name, lower, chip, level):
    """Compiles what `lower()` gives and prints a line about it."""
    has, teraflops, gigabytes = CHIPS[chip]
    started = time.perf_counter()
    # Ours choose by backend, and must choose as on the chip.
    with mock.patch.object(jax, 'default_backend', lambda: 'tpu'):
        lowered = lower()
    traced, busy = time.perf_counter(), time.process_time()
    try:
        compiled = lowered.compile({'optimization_level': level} if level else None)
    except jax.errors.JaxRuntimeError as error:
        print(f'{name:<28} does not compile: {first_line(error)}', flush=True)
        return
    seconds, busy = time.perf_counter() - traced, time.process_time() - busy
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    fixed = memory.argument_size_in_bytes + memory.output_size_in_bytes
    fixed = (fixed - memory.alias_size_in_bytes) / 2**30
    temporary = memory.temp_size_in_bytes / 2**30
    tera, giga = cost['flops'] / 1e12, cost['bytes accessed'] / 1e9
    roofline = max(tera / teraflops, giga / gigabytes)
    text = compiled.as_text()
    double = ' FLOAT64' if 'f64[' in text else ''
    # a time that is not known is written as a huge number
    cycles = [int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', text) if len(n) < 16]
    print(
        f'{name:<28} {traced - started:>7.0f} {seconds:>9.0f} {busy:>6.0f} {fixed:>6.2f} '
        f'{temporary:>6.2f} {has:>4} {tera:>7.2f} {giga:>7.1f} {roofline:>10.3f} '
        f'{sum(cycles) / 1e6:>7.1f}'
        f'{double}{" TOO LARGE" if fixed + temporary > has else ""}',
        flush=True,
    )


def main(_):
    logging.set_verbosity(logging.WARNING)
    devices = topologies.get_topology_desc(TOPOLOGY.value, 'tpu').devices
    chip = TOPOLOGY.value.partition(':')[0]
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    effort = f', level {LEVEL.value}' if LEVEL.value else ''
    print(f'{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}{effort}')
    print(
        f"{'':<28} {'trace s':>7} {'compile s':>9} {'CPU s':>6} {'GiB':>6} {'temp.':>6} {'of':>4} "
        f"{'TFLOP':>7} {'GB':>7} {'roofline s':>10} "
        f"{'Mcycles':>7}"
    )
    for given in CONFIGS.value:
        method, _, preset = given.partition(':')
        config = train_step.load(method, preset)
        config.model.dtype = train_step.DTYPE.value or 'bfloat16'
        config.model.classifier.classes = config.model.classifier.classes or 64
        config = fit_accumulation(config, mesh.size)
        learner = create_learner(config.model)
        for name, lower in (('train', lowered_train), ('match', lowered_match)):
            if name in OF_STEP.value:
                start = functools.partial(lower, config, learner, mesh)
                row(f'{given} {name}', start, chip, LEVEL.value)


if __name__ == '__main__':
    app.run(main)
