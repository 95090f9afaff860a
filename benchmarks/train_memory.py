"""What the backward pass of one training episode keeps: python benchmarks/train_memory.py
[--methods=strm] [--preset=ssv2] [--backbone=resnet50] [--image_size=224]

The compiler's count of temporary memory for the gradient of one episode, without and with
`model.backbone.remat`. The program is compiled and not run, so it needs minutes and little memory,
also on a CPU; other compilers count differently.
"""

import pathlib
import runpy

import jax
from absl import app, flags, logging

from fsar_jax import create_learner
from fsar_jax.stages import frames_read
from fsar_jax.training.losses import episode_loss
from fsar_jax.training.state import train_state_shapes

METHODS = flags.DEFINE_list('methods', ['strm'], 'Files in configs/.')
PRESET = flags.DEFINE_string('preset', '', "'' for the embedded default.")
BACKBONE = flags.DEFINE_string('backbone', 'resnet50', 'config.model.backbone.name.')
IMAGE_SIZE = flags.DEFINE_integer('image_size', 224, 'config.episode.image_size.')


def gibibytes(config, remat):
    """GiB of temporary memory of the gradient of one episode."""
    config = config.copy_and_resolve_references()
    config.model.backbone.remat = remat
    learner = create_learner(config.model)
    state = train_state_shapes(config, learner)
    episode = config.episode
    queries = episode.way * episode.query
    clip = (frames_read(config), episode.image_size, episode.image_size, 3)
    support = jax.ShapeDtypeStruct((episode.way, episode.shot, *clip), 'uint8')
    query = jax.ShapeDtypeStruct((queries, *clip), 'uint8')
    labels = jax.ShapeDtypeStruct((queries,), 'int32')
    classes = jax.ShapeDtypeStruct((episode.way,), 'int32')
    rngs = {name: jax.random.key(0) for name in ('dropout', 'sampler')}

    def loss(params, batch_stats, support, query, labels, classes):
        prediction, _ = learner.apply(
            {'params': params, 'batch_stats': batch_stats},
            support,
            query,
            train=True,
            rngs=rngs,
            mutable=['batch_stats'],
        )
        return episode_loss(prediction, labels, config, classes)

    arguments = (state.params, state.batch_stats, support, query, labels, classes)
    compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**30


def main(_):
    logging.set_verbosity(logging.WARNING)
    print(f'{jax.devices()[0].device_kind}: temporary memory of the gradient of one episode, GiB')
    print(f"{'method':<10} {'clips':>6} {'plain':>8} {'remat':>8}", flush=True)
    for method in METHODS.value:
        file = pathlib.Path(__file__).parents[1] / 'configs' / f'{method}.py'
        config = runpy.run_path(str(file))['get_config'](PRESET.value)
        config.model.classifier.classes = config.model.classifier.classes or 64
        config.model.backbone.name = BACKBONE.value or config.model.backbone.name
        config.episode.image_size = IMAGE_SIZE.value or config.episode.image_size
        episode = config.episode
        clips = episode.way * (episode.shot + episode.query)
        print(f'{method:<10} {clips:>6}', end='', flush=True)
        for remat in (False, True):
            print(f' {gibibytes(config, remat):>8.1f}', end='', flush=True)
        print()


if __name__ == '__main__':
    app.run(main)
