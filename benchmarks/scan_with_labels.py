"""What a sampler could choose at best: python benchmarks/scan_with_labels.py --workdir=runs/looks
[--steps=300] [--num_episodes=2000]

Trains a scan network like that of a run, from random weights, with the labels that the run does not
have: which frames show the action. Then it evaluates the run with the frames that this network
rates best in the place of those that its sampler chooses. What is missing from there to frames
inside the action, no sampler with this scan network can be expected to find. Needs a dataset whose
records say when the action happens (synthetic_actions), and memory for all frames of a split.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from chosen_frames import clips_and_labels, with_frames

from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.evaluation.evaluate import TrainedModel, episodes_of, evaluate_episodes
from fsar_jax.evaluation.results import accuracy_with_interval
from fsar_jax.layers import frames_as_floats
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.progress import Progress
from fsar_jax.stages import frames_read
from fsar_jax.training.inputs import open_split
from fsar_jax.training.run_settings import run_config
from fsar_jax.training.selected import best_of_run

WORKDIR = flags.DEFINE_string(
    'workdir', None, 'The workdir of a run with the sampler of VIM.', required=True
)
DATA = flags.DEFINE_string('dir', 'data', 'Where datasets are kept.')
STEPS = flags.DEFINE_integer('steps', 300, 'Training steps of 16 clips each.')
EPISODES = flags.DEFINE_integer('num_episodes', 2000, 'Test episodes.')
CLIPS, RATE = 16, 1e-3


class FrameScorer(nn.Module):
    """Clips uint8 [B, M, s, s, 3] → scores [B, M], from what the sampler's scores are made of but
    the position: each frame's features beside their mean over the clip."""

    scan_network: nn.Module
    hidden: int
    size: int

    @nn.compact
    def __call__(self, clips, train):
        frames = frames_as_floats(clips.reshape(-1, *clips.shape[2:]))
        small = len(frames), self.size, self.size, frames.shape[-1]
        frames = frames if frames.shape == small else jax.image.resize(frames, small, 'bilinear')
        features = self.scan_network(frames, train).features.reshape(*clips.shape[:2], -1)
        features = nn.standardize(features)
        guide = jnp.broadcast_to(features.mean(1, keepdims=True), features.shape)
        hidden = nn.relu(nn.Dense(self.hidden)(jnp.concatenate([features, guide], -1)))
        return nn.Dense(1)(hidden)[..., 0]


def trained(scorer, clips, labels, steps, seed=0):
    """Variables of the scorer after `steps` steps of binary cross-entropy."""
    variables = scorer.init(jax.random.key(seed), clips[:1], False)
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, batch_stats, opt_state, clips, labels):
        def loss(params):
            variables = {'params': params, 'batch_stats': batch_stats}
            scores, updated = scorer.apply(variables, clips, True, mutable=['batch_stats'])
            loss = optax.sigmoid_binary_cross_entropy(scores, labels).mean()
            return loss, updated.get('batch_stats', {})

        gradients, batch_stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state

    rng = np.random.default_rng(seed)
    with Progress(steps, 'training with labels', 'step') as progress:
        for _ in range(steps):
            chosen = rng.integers(0, len(clips), CLIPS)
            batch = clips[chosen], labels[chosen].astype(np.float32)
            params, batch_stats, opt_state = step(params, batch_stats, opt_state, *batch)
            progress.advance()
    return {'params': params, 'batch_stats': batch_stats}


def best_frames(scorer, variables, clips, frames):
    """int [N, frames], the places among the M of the frames that are rated best, in order."""
    rate = jax.jit(lambda clips: scorer.apply(variables, clips, False))
    padded = np.pad(clips, [(0, -len(clips) % CLIPS)] + [(0, 0)] * 4, mode='edge')
    scores = [np.asarray(rate(padded[i : i + CLIPS])) for i in range(0, len(clips), CLIPS)]
    return np.sort(np.argsort(-np.concatenate(scores)[: len(clips)], 1)[:, :frames], 1)


def main(_):
    logging.set_verbosity(logging.WARNING)
    config, mesh = run_config(WORKDIR.value), episode_mesh()
    variables, config.data.dir = best_of_run(WORKDIR.value, mesh).state.variables, DATA.value
    sampler, frames, dense = (
        create_learner(config.model).sampler,
        config.episode.frames,
        frames_read(config),
    )
    scorer = FrameScorer(sampler.scan_network.clone(), sampler.hidden, sampler.scan_size)
    rule = config.data.sampling
    found = trained(scorer, *clips_and_labels(open_split(config, 'train', 1), config), STEPS.value)

    test_set = open_split(config, 'test', config.eval.query)
    clips, _ = clips_and_labels(test_set, config)
    records = [test_set.read(position) for position in range(len(test_set))]
    start, end = (np.array([int(r[f'action_{of}']) for r in records]) for of in ('start', 'end'))
    every = np.stack([frame_indices(len(r['frames']), dense, rule) for r in records])
    rated = best_frames(scorer, found, clips, frames)
    choices = {
        'evenly over the clip': np.stack(
            [frame_indices(len(r['frames']), frames, rule) for r in records]
        ),
        'of a scan network with labels': np.take_along_axis(every, rated, 1),
        'evenly inside the action': np.rint(np.linspace(start, end, frames).T).astype(int),
    }
    episodes = episodes_of(test_set, config, EPISODES.value)
    config.model.sampler.name = 'uniform'
    model = TrainedModel(create_learner(config.model), variables, config, mesh)
    print(f'{"frames":<32} {"inside":>7} {"accuracy":>16}')
    for name, chosen in choices.items():
        short, inside = with_frames(test_set, records, chosen)
        outcome = evaluate_episodes(model, short, episodes)
        accuracy = accuracy_with_interval(outcome.correct, episodes.labels.shape[1])
        interval = '{:.2f} ± {:.2f}'.format(*(100 * x for x in accuracy))
        print(f'{name:<32} {inside:>7.3f} {interval:>16}', flush=True)


if __name__ == '__main__':
    app.run(main)
