"""How far bfloat16 moves the logits: python benchmarks/bfloat16.py [--methods=strm,trx] [--seeds=3]

Each head with random weights on random feature maps of ResNet-50's size (8 frames, 7 x 7 x 2048),
5-way 1-shot, computed with `config.model.dtype` 'float32' and 'bfloat16'. Prints the largest
difference of a logit, relative to the largest logit; the worst seed counts. The backbone is left
out.
"""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from fsar_jax import create_learner

METHODS = flags.DEFINE_list(
    'methods', ['protonet', 'otam', 'mastaf', 'hyrsm', 'ta2n', 'trx', 'strm'], 'Files in configs/.'
)
SEEDS = flags.DEFINE_integer('seeds', 3, 'Random weights and features: seeds 0, 1, ...')
CHANNELS = flags.DEFINE_integer('channels', 2048, 'C of the maps.')
WAY, FRAMES, SIDE = 5, 8, 7


def relative_difference(method, variant, seed):
    """max |bfloat16 - float32| / max |float32| of the logits [5, 5] of one episode."""
    configs = pathlib.Path(__file__).parents[1] / 'configs'
    model = runpy.run_path(str(configs / f'{method}.py'))['get_config']().model
    model.backbone.name, model.variant = 'features', variant
    if model.classifier.classes is None:
        model.classifier.classes = 64
    clip, keys = (FRAMES, SIDE, SIDE, CHANNELS.value), jax.random.split(jax.random.key(seed), 3)
    support = jnp.maximum(jax.random.normal(keys[0], (WAY, 1, *clip)), 0)
    query = jnp.maximum(jax.random.normal(keys[1], (WAY, *clip)), 0)
    learner = create_learner(model)
    variables = jax.jit(learner.init)(keys[2], support, query)
    logits = {}
    for dtype in ('float32', 'bfloat16'):
        model.dtype = dtype
        learner = create_learner(model)
        logits[dtype] = np.asarray(
            jax.jit(lambda *given, apply=learner.apply: apply(*given).logits)(
                variables, support, query
            )
        )
    difference = np.abs(logits['bfloat16'] - logits['float32']).max()
    return difference / np.abs(logits['float32']).max()


def main(_):
    logging.set_verbosity(logging.WARNING)
    print(f'{jax.devices()[0].device_kind}, largest difference relative to the largest logit')
    print(f"{'method':<10} {'code':>9} {'paper':>9}")
    for method in METHODS.value:
        worst = [
            max(relative_difference(method, variant, seed) for seed in range(SEEDS.value))
            for variant in ('code', 'paper')
        ]
        print(f'{method:<10} {worst[0]:>9.3%} {worst[1]:>9.3%}', flush=True)


if __name__ == '__main__':
    app.run(main)
