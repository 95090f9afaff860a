"""What aligning costs: python benchmarks/alignment.py [--shot=5] [--query=5] [--runs=100]

OTAM: time and operations of the alignment in both directions, beside the distances of all pairs of
frames, which are the rest of the match (8 frames of ResNet-50's 2048 features). TA2N: the memory
that the match of one episode needs beside its inputs, for several values of
`config.model.matcher.pairs_per_chunk`, by XLA's analysis of the compiled program, which is not run.
"""

import time

import jax
import jax.numpy as jnp
from absl import app, flags
from unrolled import loops_unrolled

from fsar_jax import create_learner, default_config
from fsar_jax.layers import frame_cosine
from fsar_jax.matchers.alignments import ALIGNMENTS
from fsar_jax.matchers.otam import COSINE_MARGIN

WAY, FRAMES, CHANNELS = 5, 8, 2048
SHOT = flags.DEFINE_integer('shot', 5, 'Support clips per class.')
QUERY = flags.DEFINE_integer('query', 5, 'Query clips per class.')
RUNS = flags.DEFINE_integer('runs', 100, 'Timed calls; the fastest counts.')
MAPS = flags.DEFINE_multi_integer('maps', [7, 14], 'Side lengths of the maps of TA2N.')
CHUNKS = flags.DEFINE_multi_integer('chunks', [0, 25, 5], 'Values of pairs_per_chunk.')


def fastest(function, *arguments):
    """Milliseconds of one call."""
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = []
    for _ in range(RUNS.value + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds[1:])


def megaflop(function, *arguments):
    """By XLA's cost analysis of the traced program."""
    with loops_unrolled():
        cost = jax.jit(lambda *x: function(*x)).lower(*arguments).cost_analysis()
    return (cost['flops'] + cost.get('transcendentals', 0.0)) / 1e6


def time_alignments():
    keys = jax.random.split(jax.random.key(0))
    support = jax.random.normal(keys[0], (WAY, SHOT.value, FRAMES, CHANNELS))
    query = jax.random.normal(keys[1], (WAY * QUERY.value, FRAMES, CHANNELS))
    rest = lambda support, query: (
        1.0 - frame_cosine('qxd,wsyd->qwsxy', query, support, COSINE_MARGIN)
    )
    distances = jax.jit(rest)(support, query)
    print(
        f'OTAM, {WAY}-way {SHOT.value}-shot, {len(query)} queries, {FRAMES} frames of {CHANNELS} '
        'features; transcendental functions count as one FLOP'
    )
    print(f"{'':<20} {'MFLOP':>8} {'ms':>8}")
    print(
        f"{'distances':<20} {megaflop(rest, support, query):>8.1f} "
        f"{fastest(rest, support, query):>8.2f}"
    )
    for name, (alignment, _) in ALIGNMENTS.items():
        both = lambda d: alignment(jnp.stack([d, d.swapaxes(-1, -2)])).sum(0)
        print(
            f'{name:<20} {megaflop(both, distances):>8.1f} {fastest(both, distances):>8.2f}',
            flush=True,
        )


def memory(chunk, side):
    """(GiB that an episode's match needs beside inputs and output, GiB of its inputs)."""
    config = default_config()
    config.model.backbone.name = 'features'
    config.model.matcher.update(name='action_coordination', pairs_per_chunk=chunk)
    learner = create_learner(config.model)
    clip = (FRAMES, side, side, CHANNELS)
    support = jax.ShapeDtypeStruct((WAY, SHOT.value, *clip), jnp.float32)
    query = jax.ShapeDtypeStruct((WAY * QUERY.value, *clip), jnp.float32)
    variables = jax.eval_shape(learner.init, jax.random.key(0), support, query)
    run = jax.jit(lambda *arguments: learner.apply(*arguments, train=False, method='match').logits)
    needed = (
        run.lower(variables, {'temporal_matching': support}, {'temporal_matching': query})
        .compile()
        .memory_analysis()
    )
    return needed.temp_size_in_bytes / 2**30, needed.argument_size_in_bytes / 2**30


def main(_):
    print(f'{jax.devices()[0].device_kind} ({jax.default_backend()})\n')
    time_alignments()
    print(
        f'\nTA2N, {WAY}-way {SHOT.value}-shot, {WAY * QUERY.value} queries, {CHANNELS} channels, '
        'float32: temporary memory, GiB'
    )
    print(
        f"{'pairs_per_chunk':<20} "
        + ' '.join(f'{chunk or "all":>8}' for chunk in CHUNKS.value)
        + f" {'inputs':>8}"
    )
    for side in MAPS.value:
        rows = [memory(chunk, side) for chunk in CHUNKS.value]
        print(
            f"{f'maps {side} x {side}':<20} "
            + ' '.join(f'{needed:>8.2f}' for needed, _ in rows)
            + f' {rows[0][1]:>8.2f}',
            flush=True,
        )


if __name__ == '__main__':
    app.run(main)
