"""What the first step of the released codes changes: python benchmarks/first_step.py [--dir=data]
[--steps=60] [--rate=0.001] [--episodes=1000]

In those of TRX and STRM it comes after 15 episodes and divides by 16 all the same (row S14 of
docs/paper_vs_code.md). Of SGD without momentum that is a first step of 15/16 of its length. STRM is
trained so and as it is here, on the same episodes of the embedded data, and a third time with a
first step that is longer by a millionth: what rounding does. The table has the distance of the
parameters from those of the first run, as a part of the way that these have gone from the start;
then how many test queries are answered otherwise.
"""

import contextlib
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from fsar_jax import create_learner
from fsar_jax.data import loader
from fsar_jax.data.dataset import open_dataset
from fsar_jax.evaluation.evaluate import TrainedModel, episodes_of, evaluate_episodes
from fsar_jax.mesh import episode_mesh, replicate, shard
from fsar_jax.training.inputs import fit_accumulation
from fsar_jax.training.state import create_train_state, make_train_step

DIR = flags.DEFINE_string('dir', 'data', 'Where the dataset lies, as config.data.dir.')
STEPS = flags.DEFINE_integer('steps', 60, 'Steps of SGD.')
RATE = flags.DEFINE_float('rate', 1e-3, 'Learning rate; 0.001 is that of the published SSv2 runs.')
EPISODES = flags.DEFINE_integer('episodes', 1000, 'Test episodes of one query per class.')
FIRST_STEP = {'16 of 16': 1.0, '15 of 16': 15 / 16, 'rounding': 1 + 1e-6}
PUBLISHED = {'SSv2': 4688, 'the other datasets': 1251}  # steps of 16 episodes


def distance(a, b):
    """Euclidean, over all parameters."""
    squares = jax.tree.map(lambda x, y: np.sum((np.float64(x) - np.float64(y)) ** 2), a, b)
    return np.sqrt(sum(jax.tree.leaves(squares)))


def copied(tree):
    return jax.tree.map(jnp.array, tree)


def main(_):
    logging.set_verbosity(logging.WARNING)
    file = pathlib.Path(__file__).parents[1] / 'configs/strm.py'
    config = runpy.run_path(str(file))['get_config']()
    config.data.dir = DIR.value
    config.train.update(
        optimizer='sgd', learning_rate=RATE.value, schedule='constant', num_steps=STEPS.value
    )
    mesh = episode_mesh(config.train.episodes_per_step)
    config = fit_accumulation(config, mesh.size)
    learner = create_learner(config.model)
    dataset = open_dataset(config.data.dataset, config.data.dir, 'train')
    step = make_train_step(learner, config, mesh)
    start = create_train_state(config, learner)
    origin = jax.tree.map(np.array, start.params)
    states = {name: replicate(mesh, copied(start)) for name in FIRST_STEP}  # steps donate theirs
    print(f"{'step':>6} {'15 of 16':>10} {'rounding':>10}   (distance / way of the first run)")
    with contextlib.closing(loader.training_batches(dataset, config, 0)) as batches:
        for count in range(1, STEPS.value + 1):
            batch = shard(mesh, next(batches), axis=1)
            for name, length in FIRST_STEP.items():
                state, _ = step(states[name], batch)
                if count == 1:
                    params = jax.tree.map(
                        lambda x, y, f=length: x + f * (y - x), origin, state.params
                    )
                    state = replicate(mesh, state.replace(params=params))
                states[name] = state
            if count in (1, 3, 10, 30, 100, 300, STEPS.value):
                first = states['16 of 16'].params
                way = distance(first, origin)
                off = [
                    distance(states[name].params, first) / way for name in ('15 of 16', 'rounding')
                ]
                print(f'{count:>6} {off[0]:>10.3%} {off[1]:>10.3%}', flush=True)

    test = loader.usable(open_dataset(config.data.dataset, config.data.dir, 'test'), config)
    episodes = episodes_of(test, config, EPISODES.value)
    answers = {}
    for name, state in states.items():
        model = TrainedModel(learner, state.variables, config, mesh)
        answers[name] = evaluate_episodes(model, test, episodes).logits.argmax(-1)
    print(f"\n{'first step':<10} {'accuracy':>9} {'other answers':>14}")
    for name, answered in answers.items():
        other = (answered != answers['16 of 16']).mean()
        print(f'{name:<10} {(answered == episodes.labels).mean():>9.2%} {other:>14.2%}')
    print('\nA sixteenth of one step, as a part of all steps of a published run:')
    for name, steps in PUBLISHED.items():
        print(f'  {1 / 16 / steps:.4%} of the {steps:,} for {name}')


if __name__ == '__main__':
    app.run(main)
