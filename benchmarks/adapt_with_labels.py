"""What adaptation to the task can learn at best: python benchmarks/adapt_with_labels.py
--dataset=synthetic_actions/two_objects [--dir=data] [--shots=1,5] [--steps=600] [--size=64]

Scores frames as VIM's sampler does with adaptation (Eq. 1 and 12 to 14), from the ImageNet features
of EfficientNet-Lite0, but learns with the labels that a run does not have: which frames of a query
show the action of its class. Beside it, two forms that compare frames with the support set. Prints
the share of the eight chosen frames inside that action, on training and on new classes; evenly
spaced frames have the first number. Needs a dataset whose records say when the action happens, and
memory for all frames of a split (twice: at 224 px, 40 clips of 64 classes and M = 20 take 15 GB).
"""

import itertools
import pathlib
import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from chosen_frames import clips_and_labels

from fsar_jax import weights
from fsar_jax.backbones.scan import create_scan_network
from fsar_jax.data.episodes import draw_episodes
from fsar_jax.layers import frames_as_floats, unit
from fsar_jax.samplers.task_adaptive import TaskGenerator
from fsar_jax.training.inputs import open_split

DATASET = flags.DEFINE_string('dataset', 'synthetic_actions/two_objects', 'What to choose in.')
DATA = flags.DEFINE_string('dir', 'data', 'Where datasets are kept.')
SHOTS = flags.DEFINE_list('shots', ['1', '5'], 'Support clips per class.')
STEPS = flags.DEFINE_integer('steps', 600, 'Training steps of 16 episodes each.')
DENSE = flags.DEFINE_integer('dense_frames', 16, 'M, frames of a clip.')
SIZE = flags.DEFINE_integer('size', 64, 'Pixels per side of the frames that are scanned.')
NETWORK, AT_ONCE = 'efficientnet_lite0', 64  # AT_ONCE in frames
CHOSEN, EPISODES, RATE, TESTS = 8, 16, 1e-3, 200
FORMS = {
    'generated': 'w2 from the mean of the support (Eq. 12 to 14)',
    'mean': 'product with the mean support frame',
    'nearest': 'likeness to the nearest frame of each support clip',
}


class Scorer(nn.Module):
    """Features [videos, M, c] of an episode's clips, the support first → scores [videos, M]."""

    form: str
    support: int
    hidden: int = 64

    @nn.compact
    def __call__(self, features):
        features = nn.standardize(features)
        guide = features.mean(1)
        embed = nn.Dense(self.hidden)
        if self.form == 'generated':
            both = [features, jnp.broadcast_to(guide[:, None], features.shape)]
            generate = TaskGenerator(self.hidden, self.hidden, 'paper')
            w2 = unit(generate(guide[: self.support])['frames'])
            scores = nn.relu(embed(jnp.concatenate(both, -1))) @ w2
        elif self.form == 'mean':
            keys = embed(features)
            scores = keys @ keys[: self.support].mean((0, 1))
        else:
            keys = unit(embed(features))
            likeness = jnp.einsum('vmd,snd->vmsn', keys, keys[: self.support]).max(-1)
            scores = nn.logsumexp(20 * likeness, -1)  # of the clips, nearly the most alike
        scores -= scores.mean(1, keepdims=True)
        return scores * self.param('scale', nn.initializers.constant(3.0), ())


def features_of(clips):
    """Clips uint8 [N, M, H, W, 3] → float32 [N, M, c]."""
    network, variables = (
        create_scan_network(NETWORK),
        weights.load_scan_network(weights.PRETRAINED, NETWORK),
    )

    scan = jax.jit(lambda frames: network.apply(variables, frames_as_floats(frames)).features)
    frames = clips.reshape(-1, *clips.shape[2:])
    parts = [scan(frames[i : i + AT_ONCE]) for i in range(0, len(frames), AT_ONCE)]
    return np.concatenate(parts).reshape(*clips.shape[:2], -1)


def split_with_features(config, split):
    """The dataset, and of all its clips the features and labels of each frame."""
    dataset = open_split(config, split, 1)
    clips, labels = clips_and_labels(dataset, config)
    return dataset, features_of(clips), labels


def episodes_of(dataset, features, labels, seed, count, shot):
    """Features [count, videos, M, c] and labels bool [count, videos, M], the support first."""
    drawn = draw_episodes(dataset, 5, shot, 1, seed, count)
    videos = np.concatenate([drawn.support.reshape(count, -1), drawn.query.reshape(count, -1)], 1)
    return features[videos], labels[videos]


def trained(scorer, episodes, steps):
    """Parameters after `steps` steps of binary cross-entropy on the queries; `episodes(step)` are
    those of a step."""
    params = scorer.init(jax.random.key(0), episodes(0)[0][0])
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, opt_state, features, labels):
        def loss(params):
            scores = jax.vmap(lambda x: scorer.apply(params, x))(features)[:, scorer.support :]
            target = labels[:, scorer.support :].astype(jnp.float32)
            return optax.sigmoid_binary_cross_entropy(scores, target).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for i in range(steps):
        params, opt_state = step(params, opt_state, *episodes(i))
    return params


def inside(scorer, params, features, labels):
    """'0.512 ± 0.010': share of the chosen frames of the queries inside the action, 95%."""
    scores = jax.jit(jax.vmap(lambda x: scorer.apply(params, x)))(features)[:, scorer.support :]
    chosen = np.argsort(-np.asarray(scores), -1)[..., :CHOSEN]
    right = np.take_along_axis(labels[:, scorer.support :], chosen, -1).mean((1, 2))
    return f'{right.mean():.3f} ± {1.96 * right.std() / len(right) ** 0.5:.3f}'


def main(_):
    logging.set_verbosity(logging.WARNING)
    configs = pathlib.Path(__file__).parents[1] / 'configs'
    config = runpy.run_path(str(configs / 'vim.py'))['get_config']()
    config.data.dataset, config.data.dir = DATASET.value, DATA.value
    config.episode.image_size = config.data.resize = SIZE.value
    config.model.sampler.dense_frames = DENSE.value
    sets = {split: split_with_features(config, split) for split in ('train', 'test')}
    print(f'evenly spaced: {sets["test"][2].mean():.3f}')
    print(f'{"":<50} {"shot":>4} {"training classes":>16} {"new classes":>16}')
    for shot, form in itertools.product(map(int, SHOTS.value), FORMS):
        scorer = Scorer(form, 5 * shot)
        of_step = lambda i, split='train', count=EPISODES: episodes_of(*sets[split], i, count, shot)
        params = trained(scorer, of_step, STEPS.value)
        shares = [inside(scorer, params, *of_step(STEPS.value, split, TESTS)) for split in sets]
        print(f'{FORMS[form]:<50} {shot:>4} {shares[0]:>16} {shares[1]:>16}', flush=True)


if __name__ == '__main__':
    app.run(main)
