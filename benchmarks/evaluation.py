"""How much embedding each clip once saves: python benchmarks/evaluation.py
[--methods=strm,protonet] [--shot=1] [--settings=model.sampler.name=task_adaptive,...]

Evaluates on the embedded dataset as main.py does, but with random weights. With the cache, every
clip is embedded once and episodes are matched from embeddings. Without it, all clips of every
episode are read and embedded again, as the published codes do. Each is run twice and the second run
counts, so compilation does not. The time of a whole evaluation is computed from the speeds. The
last line compares the numbers of clips to embed; the ratio of the times is smaller, because
matching and starting many small batches cost something too.
"""

import ast
import contextlib
import pathlib
import runpy

import jax
import numpy as np
from absl import app, flags, logging

from fsar_jax import create_learner
from fsar_jax.data import episodes, loader
from fsar_jax.data.dataset import open_dataset
from fsar_jax.evaluation.evaluate import TrainedModel, evaluate_episodes
from fsar_jax.mesh import episode_mesh
from fsar_jax.training.state import create_train_state

METHODS = flags.DEFINE_list('methods', ['protonet', 'strm'], 'Files in configs/.')
DIR = flags.DEFINE_string('dir', 'data', 'Where the dataset lies, as config.data.dir.')
SHOT = flags.DEFINE_integer('shot', 1, 'Support clips per class.')
CACHED = flags.DEFINE_integer('cached', 1000, 'Episodes to time with the cache.')
UNCACHED = flags.DEFINE_integer('uncached', 48, 'Episodes to time without.')
SETTINGS = flags.DEFINE_list('settings', [], 'Changed in each config: model.sampler.variant=code')
WHOLE = 10_000  # episodes of a published evaluation


def speeds(dataset, config, mesh):
    """(clips embedded per second, episodes matched per second, episodes per second without the
    cache, relative difference)."""
    learner = create_learner(config.model)
    model = TrainedModel(learner, create_train_state(config, learner).variables, config, mesh)
    count = max(CACHED.value, UNCACHED.value)
    drawn = episodes.draw_episodes(
        dataset, config.episode.way, SHOT.value, config.eval.query, config.eval.seed, count
    )
    several, few = first(drawn, CACHED.value), first(drawn, UNCACHED.value)
    for _ in range(2):
        cached = evaluate_episodes(model, dataset, several, cache=True)
        uncached = evaluate_episodes(model, dataset, few, cache=False)
    clips = len(np.unique(np.concatenate([several.support.ravel(), several.query.ravel()])))
    difference = np.abs(
        cached.logits[: len(uncached.logits)] - uncached.logits[: len(cached.logits)]
    ).max()
    return (
        clips / cached.seconds['embed'],
        len(several) / cached.seconds['match'],
        len(few) / uncached.seconds['episodes'],
        difference / np.abs(uncached.logits).max(),
    )


def changed(config):
    """The config with --settings."""
    for given in SETTINGS.value:
        key, _, value = given.partition('=')
        with contextlib.suppress(ValueError, SyntaxError):  # a text needs no quotes
            value = ast.literal_eval(value)
        config.update_from_flattened_dict({key: value})
    return config


def first(drawn, count):
    return episodes.Episodes(
        drawn.support[:count], drawn.query[:count], drawn.labels[:count], drawn.classes[:count]
    )


def main(_):
    logging.set_verbosity(logging.WARNING)
    mesh, rows = episode_mesh(), []
    for method in METHODS.value:
        file = pathlib.Path(__file__).parents[1] / 'configs' / f'{method}.py'
        config = changed(runpy.run_path(str(file))['get_config']())
        config.data.dir, config.episode.shot = DIR.value, SHOT.value
        dataset = loader.usable(
            open_dataset(config.data.dataset, config.data.dir, config.eval.split), config
        )
        rows.append((method, *speeds(dataset, config, mesh)))
    videos = config.episode.way * (SHOT.value + config.eval.query)
    print(
        f'{mesh.size} x {jax.devices()[0].device_kind}, {config.data.dataset} {config.eval.split}: '
        f'{len(dataset)} clips, '
        f'{config.episode.way}-way {SHOT.value}-shot, {videos} clips per episode'
    )
    print(
        f'\n{"":<10} {"cached:":>9} {"":>10} {"":>10} {"uncached:":>11} {"":>10} {"":>7} '
        f'{"logits":>8}'
    )
    print(
        f'{"method":<10} {"clips/s":>9} {"episodes/s":>10} {"10,000 s":>10} '
        f'{"episodes/s":>11} {"10,000 s":>10} {"ratio":>7} {"differ":>8}'
    )
    for method, embed, match, uncached_speed, difference in rows:
        cached, uncached = len(dataset) / embed + WHOLE / match, WHOLE / uncached_speed
        print(
            f'{method:<10} {embed:>9.0f} {match:>10.0f} {cached:>10.1f} {uncached_speed:>11.2f} '
            f'{uncached:>10.0f} '
            f'{uncached / cached:>6.0f}x {difference:>8.0e}',
            flush=True,
        )
    print(
        f'\nclips to embed in {WHOLE} episodes: {len(dataset)} with the cache, {WHOLE * videos} '
        'without '
        f'({WHOLE * videos / len(dataset):.0f} times as many)'
    )


if __name__ == '__main__':
    app.run(main)
