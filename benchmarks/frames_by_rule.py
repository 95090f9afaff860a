"""What the choice of frames is worth to a trained run: python benchmarks/frames_by_rule.py
--workdir=runs/protonet [--num_episodes=3000]

Replaces the run's sampler at test by rules, most of which know when the action happens; episodes,
backbone and matcher stay as they are. A sampler that chooses among M frames (--dense_frames) and
looks at the content could gain what "of M: all of the action" gains. A sampler that takes the same
places in every clip gains what the rows after that gain. The last two have right frames in the
support or in the queries alone, evenly spaced ones in the others. Needs a dataset whose records say
when the action happens (synthetic_actions).
"""

import dataclasses

import numpy as np
from absl import app, flags, logging
from chosen_frames import doubled, with_frames

from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.evaluation.evaluate import TrainedModel, episodes_of, evaluate_episodes
from fsar_jax.evaluation.results import accuracy_with_interval
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.training.inputs import open_split
from fsar_jax.training.run_settings import run_config
from fsar_jax.training.selected import best_of_run

WORKDIR = flags.DEFINE_string('workdir', None, 'The workdir of a run.', required=True)
DATA = flags.DEFINE_string('dir', 'data', 'Where datasets are kept.')
DENSE = flags.DEFINE_integer('dense_frames', 20, 'M, frames that a sampler would choose among.')
EPISODES = flags.DEFINE_integer('num_episodes', 3000, 'Test episodes, the same for every rule.')
EVENLY, INSIDE = 'evenly over the clip', 'evenly inside the action'


def rules(length, dense=20):
    """{name: function of (stored frames n, first and last frame of the action) -> `length` of the n
    frames, in order}."""
    between = lambda first, last, count: np.rint(np.linspace(first, last, count)).astype(int)
    half = length // 2

    def around(n, start, end):
        """Of M frames those inside the action, or the middle ones of them; where they are too few,
        the nearest before and after it as well."""
        read = np.asarray(frame_indices(n, dense, 'trx'))
        away = np.maximum(np.maximum(start - read, read - end), 0)
        off_centre = np.abs(read - (start + end) / 2)
        return read[np.sort(np.lexsort((off_centre, away))[:length])]

    fixed = lambda chosen: lambda n, start, end: frame_indices(n, dense, 'trx')[chosen]
    late = 3 * length // 8
    return {
        EVENLY: lambda n, start, end: frame_indices(n, length, 'trx'),
        INSIDE: lambda n, start, end: between(start, end, length),
        f'of {dense}: all of the action': around,
        'from 2 before it to 2 after it': lambda n, start, end: between(
            max(start - 2, 0), min(end + 2, n - 1), length
        ),
        'half before, half after it': lambda n, start, end: np.r_[
            between(0, start, half), between(end, n - 1, length - half)
        ],
        'its first and its last frame': lambda n, start, end: np.r_[
            [start] * half, [end] * (length - half)
        ],
        f'first {length - late} and last {late} of {dense}': fixed(
            [*range(length - late), *range(dense - late, dense)]
        ),
        f'first {length} of {dense}': fixed([*range(length)]),
        f'middle {length} of {dense}': fixed(
            [*range((dense - length) // 2, (dense + length) // 2)]
        ),
    }


def by_rule(dataset, records, rule, length):
    """The dataset, whose clips are `records`, with the frames of the rule alone; and the share of
    these inside the action."""
    chosen = np.array(
        [rule(len(r['frames']), int(r['action_start']), int(r['action_end'])) for r in records]
    )
    assert chosen.shape == (len(records), length)
    return with_frames(dataset, records, chosen)


def main(_):
    logging.set_verbosity(logging.WARNING)
    config, mesh = run_config(WORKDIR.value), episode_mesh()
    variables = best_of_run(WORKDIR.value, mesh).state.variables
    config.data.dir, config.model.sampler.name = DATA.value, 'uniform'
    dataset = open_split(config, 'test', config.eval.query)
    episodes = episodes_of(dataset, config, EPISODES.value)
    model = TrainedModel(create_learner(config.model), variables, config, mesh)
    records, queries = (
        [dataset.read(position) for position in range(len(dataset))],
        episodes.labels.shape[1],
    )
    interval = lambda correct: '{:.2f} ± {:.2f}'.format(
        *(100 * x for x in accuracy_with_interval(correct, queries))
    )
    print(f"{'frames':<40} {'inside':>7} {'accuracy':>16} {'minus evenly spaced':>20}")

    def show(name, clips, episodes, inside, evenly=None):
        """Prints a row; returns which episodes were right."""
        correct = evaluate_episodes(model, clips, episodes).correct
        gain = interval(correct - (correct if evenly is None else evenly))
        print(f'{name:<40} {inside:>7} {interval(correct):>16} {gain:>20}', flush=True)
        return correct

    evenly, clips_of = None, {}
    for name, rule in rules(config.episode.frames, DENSE.value).items():
        clips_of[name], inside = by_rule(dataset, records, rule, config.episode.frames)
        correct = show(name, clips_of[name], episodes, f'{inside:.3f}', evenly)
        evenly = correct if evenly is None else evenly
    both, count = doubled(clips_of[EVENLY], clips_of[INSIDE]), len(dataset)
    for part in ('support', 'query'):
        of_part = dataclasses.replace(episodes, **{part: getattr(episodes, part) + count})
        show(f'{INSIDE}, {part} alone', both, of_part, '', evenly)


if __name__ == '__main__':
    app.run(main)
