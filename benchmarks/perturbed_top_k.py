"""Perturbed top-k, forward and backward: python benchmarks/perturbed_top_k.py [--repeats=7]

Sizes of one training episode of VIM: 5-way 5-shot and 25 queries, so 50 videos, 8 of 20 frames
each. For n noise samples, taken all at once or in chunks, it prints milliseconds and the temporary
memory that the compiler reports, and the same for Optax's estimator.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import optax
from absl import app, flags, logging

from fsar_jax.samplers.top_k import hard_top_k, perturbed_top_k

REPEATS = flags.DEFINE_integer(
    'repeats', 7, 'Timed calls, after one to compile and one to warm up.'
)
VIDEOS, DENSE, FRAMES, SIGMA = 50, 20, 8, 0.1


def ours(samples, chunk):
    return lambda key, scores, sigma: perturbed_top_k(
        key, scores, FRAMES, sigma, samples, chunk, 'paper'
    )


def by_optax(samples):
    """Video by video: over a batch it would weight each video by the noise of all."""

    def choose(key, scores, sigma):
        hard = lambda s: hard_top_k(s[None], FRAMES)[0]
        smooth = optax.perturbations.make_perturbed_fun(
            hard, samples, sigma, optax.perturbations.Normal()
        )
        return jax.vmap(smooth)(jax.random.split(key, VIDEOS), scores)

    return choose


def measure(choose, key, scores, sigma, weights):
    total = lambda scores: (choose(key, scores, sigma) * weights).sum()
    compiled = (
        jax.jit(lambda scores, sigma: jax.value_and_grad(total)(scores))
        .lower(scores, sigma)
        .compile()
    )
    seconds = []
    for _ in range(REPEATS.value + 2):
        start = time.perf_counter()
        jax.block_until_ready(compiled(scores, sigma))
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(
        seconds[2:]
    ), compiled.memory_analysis().temp_size_in_bytes / 2**20


def main(_):
    logging.set_verbosity(logging.WARNING)
    key = jax.random.key(0)
    arguments = (
        key,
        jax.random.uniform(key, (VIDEOS, DENSE)),
        jnp.float32(SIGMA),
        jax.random.normal(key, (VIDEOS, FRAMES, DENSE)),
    )
    print(
        f'{jax.devices()[0].device_kind}: {VIDEOS} videos, {FRAMES} of {DENSE} frames, forward and '
        'backward\n'
    )
    print(f"{'n':>4} {'at once':<8} {'ms':>8} {'MB':>8}")
    for samples in (50, 500):
        rows = [
            ('all', ours(samples, 0)),
            ('50', ours(samples, 50)),
            ('10', ours(samples, 10)),
            ('Optax', by_optax(samples)),
        ]
        for name, choose in rows[:1] + rows[2 if samples == 50 else 1 :]:
            milliseconds, memory = measure(choose, *arguments)
            print(f'{samples:>4} {name:<8} {milliseconds:>8.1f} {memory:>8.2f}', flush=True)


if __name__ == '__main__':
    app.run(main)
