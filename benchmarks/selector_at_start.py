"""Which frames VIM's selector takes before any training: python benchmarks/selector_at_start.py
[--seeds=4] [--clips=60]

For each seed: how many different choices of frames the untrained selector makes over the clips of
the test split, and the commonest one. One choice for all clips means that the scores depend on a
frame's place in the clip (its position code) and not on what it shows.
"""

import collections
import pathlib
import runpy

import jax
import numpy as np
from absl import app, flags, logging

from fsar_jax.data import loader
from fsar_jax.data.dataset import open_dataset
from fsar_jax.stages import build_stages, frames_read

DATA = flags.DEFINE_string('dir', 'data', 'Where datasets are kept.')
SEEDS = flags.DEFINE_integer('seeds', 4, 'Initialisations: seeds 0, 1, ...')
CLIPS = flags.DEFINE_integer('clips', 60, 'Clips of the test split, evenly spaced in it.')


def selector_config():
    """VIM with temporal selection alone, its choice a function of the clip alone."""
    configs = pathlib.Path(__file__).parents[1] / 'configs'
    config = runpy.run_path(str(configs / 'vim.py'))['get_config']()
    config.model.sampler.update(adaptive=False, spatial='none')
    return config


def choices(sampler, clips, seed):
    """The chosen frames [N, L] of clips uint8 [N, M, H, W, 3], by a selector of this seed."""
    variables = sampler.init(jax.random.key(seed), clips[:1])
    choose = jax.jit(lambda clips: sampler.apply(variables, clips)['indices'])
    return np.concatenate([choose(clips[i : i + 10]) for i in range(0, len(clips), 10)])


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = selector_config()
    config.data.dir = DATA.value
    dataset = loader.usable(open_dataset(config.data.dataset, DATA.value, 'test'), config)
    positions = np.linspace(0, len(dataset) - 1, CLIPS.value).astype(int)
    batches = loader.video_batches(dataset, config, positions, len(positions), frames_read(config))
    clips = np.asarray(next(iter(batches)))
    batches.close()
    sampler = build_stages(config.model)['sampler']
    print(f'{len(clips)} clips of {config.data.dataset}, {clips.shape[1]} frames each')
    print(f"{'seed':>4} {'different choices':>18}   commonest (share of the clips)")
    for seed in range(SEEDS.value):
        counts = collections.Counter(map(tuple, choices(sampler, clips, seed).tolist()))
        (commonest, times), *_ = counts.most_common(1)
        print(f'{seed:>4} {len(counts):>18}   {list(commonest)} ({times / len(clips):.0%})')


if __name__ == '__main__':
    app.run(main)
