"""Trains backbone and scan network to tell the training classes from single frames, as ImageNet
does for the papers: weights for methods that do not learn from random ones.

    python -m fsar_jax.pretrain --config=vim --workdir=runs/frames \\
        --config.data.dataset=synthetic_actions/misaligned --config.train.num_steps=300
    python main.py --config=vim --workdir=runs/vim \\
        --config.model.backbone.weights=runs/frames --config.model.sampler.scan_weights=runs/frames

Each network has a linear classifier of its own on its features of a frame, which is not kept. The
config says which backbone and, where its sampler scans, which scan network, on what data, and how
they are trained: config.train with its steps, rate and schedule. A step sees the
config.episode.frames frames of CLIPS clips. Real videos have better weights to start from: those of
ImageNet, which both settings load too.
"""

import sys

from fsar_jax.stopping import on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('weights are written at the end: the same command starts again')

import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import flags, logging

from fsar_jax import train
from fsar_jax.config import resolve_paths, validate
from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos
from fsar_jax.files import local_path
from fsar_jax.learner import FewShotLearner, create_learner
from fsar_jax.messages import one_line, printable
from fsar_jax.programs import prepare
from fsar_jax.progress import MetricWriter, Progress
from fsar_jax.samplers.task_adaptive import TaskAdaptiveSampler
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.inputs import open_training_split
from fsar_jax.training.state import TrainState, create_optimizer, create_train_state, flip_clips
from fsar_jax.training.workdir import lock_workdir

CLIPS = 16  # in a step
RECENT = 20  # steps, of the accuracies that are printed at the end
NAMES = {'backbone': 'backbone', 'sampler': 'scan network'}


def main(argv: list[str]) -> None:
    """Does what the command line asks for.

    Raises:
      ValueError, OSError, FloatingPointError: one line about what is wrong with the input.
      SystemExit: the same, for flags that cannot be parsed.
    """
    given = train.parse(argv, define_flags)
    if given.help:
        print('\n'.join([__doc__, 'Flags:', *(f'  --{n:<9} {given[n].help}' for n in FLAGS)]))
        return
    if given.config is None or given.workdir is None:
        missing = '--config' if given.config is None else '--workdir'
        raise ValueError(
            f'no {missing} given: python -m fsar_jax.pretrain --config=vim --workdir=FOLDER '
            '--config.data.dataset=NAME'
        )
    workdir = local_path(given.workdir, '--workdir')
    prepare(given.config.keep_programs)
    for name, accuracy in pretrain(given.config, workdir).items():
        print(f'{name}: {accuracy:.1%} of the last training frames')
    print(workdir)


FLAGS = ('config', 'workdir', 'help')


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The flags of this command, not parsed yet."""
    values = train.config_flag(argv)
    flags.DEFINE_string('workdir', None, 'Folder for the weights, a new one.', flag_values=values)
    flags.DEFINE_boolean('help', False, 'Print this text.', flag_values=values)
    return values


def pretrain(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, float]:
    """Trains, and writes a checkpoint into `workdir` that the settings for starts read. Its other
    parts are as a run of this config starts.

    The same config gives the same weights (bit for bit on a CPU).

    Returns:
      {'backbone': share of the frames of the last steps that it tells, 'scan network': the same}.

    Raises:
      ValueError, OSError: one line about what is wrong with the config, the data or the folder.
      FloatingPointError: the loss is not finite.
    """
    validate(config)
    config = resolve_paths(config)
    learner, steps = create_learner(config.model), config.train.num_steps
    if learner.backbone.takes_clips or learner.backbone.takes_maps or not learner.backbone_trained:
        raise ValueError(
            f'the backbone, {type(learner.backbone).__name__}, learns nothing from single frames '
            'here: choose a 2D backbone that is trained'
        )
    dataset = open_training_split(config)
    directory = workdir / 'checkpoints'
    if directory.exists():
        raise ValueError(
            f'--workdir={printable(workdir, 1000)} holds a run already: name a new folder'
        )
    state = create_train_state(config, learner)
    with (
        lock_workdir(workdir),
        Checkpoints(directory, config=config) as checkpoints,
        MetricWriter(workdir, config.train.log_steps) as writer,
        Progress(steps, 'training on frames', 'step') as progress,
    ):
        step_of, heads = make_step(config, learner, state.variables, dataset)
        trained = {'learner': state.params, 'heads': heads}
        carried = trained, state.batch_stats, create_optimizer(config.train).init(trained)
        classes = np.unique(dataset.labels)
        reader = loader.reader(dataset, config)
        accuracies: list[dict[str, float]] = []
        for step in range(1, steps + 1):
            rng = np.random.default_rng([config.seed, step])
            positions = rng.choice(len(dataset), CLIPS, replace=len(dataset) < CLIPS)
            clips, flip = reader.read_all(positions, rng)
            labels = np.searchsorted(classes, dataset.labels[positions])
            carried, metrics = step_of(*carried, clips, flip, labels)
            numbers = {name: float(value) for name, value in metrics.items()}
            if not np.isfinite(numbers['loss']):
                raise FloatingPointError(
                    f'the loss of step {step} is not finite: lower config.train.learning_rate or '
                    'set config.train.clip_norm'
                )
            writer.write(step, numbers)
            accuracies.append({name: numbers[name] for name in numbers if name != 'loss'})
            progress.advance()
        (trained, batch_stats, _) = carried
        state = TrainState(
            step=jnp.asarray(steps, jnp.int32),
            params=trained['learner'],
            batch_stats=batch_stats,
            opt_state=state.opt_state,
        )
        checkpoints.save(steps, state, {})
    last = accuracies[-RECENT:]
    return {
        name.removesuffix(' accuracy'): float(np.mean([a[name] for a in last])) for name in last[0]
    }


def make_step(
    config: ml_collections.ConfigDict, learner: FewShotLearner, variables: dict, dataset: Videos
) -> tuple[Any, dict]:
    """(the jitted step, the classifiers it begins with).

    The step: (params, batch_stats, opt_state), clips uint8 [B, L, S, S, 3], flip bool [B], labels
    int [B] → the same three, {'loss', 'backbone accuracy', …}.
    """
    optimizer = create_optimizer(config.train)
    size, length = config.episode.image_size, config.episode.frames
    example = jax.ShapeDtypeStruct((1, length, size, size, 3), np.uint8)
    look = functools.partial(
        learner.apply, train=True, mutable=['batch_stats'], method=features_of_frames
    )
    widths = {name: x.shape[-1] for name, x in jax.eval_shape(look, variables, example)[0].items()}
    classifier = nn.Dense(len(np.unique(dataset.labels)))
    keys = jax.random.split(jax.random.key(config.seed), len(widths))
    heads = {
        name: classifier.init(key, jnp.zeros((1, width)))
        for key, (name, width) in zip(keys, widths.items(), strict=True)
    }

    def loss_of(params, batch_stats, clips, labels):
        features, updated = look({'params': params['learner'], 'batch_stats': batch_stats}, clips)
        loss, accuracies = jnp.zeros(()), {}
        for name, of_frames in features.items():
            logits = classifier.apply(params['heads'][name], of_frames)
            each = jnp.broadcast_to(labels[:, None], logits.shape[:2])
            loss += optax.softmax_cross_entropy_with_integer_labels(logits, each).mean()
            accuracies[f'{NAMES[name]} accuracy'] = (logits.argmax(-1) == each).mean()
        return loss, (accuracies, updated.get('batch_stats', {}))

    @jax.jit
    def step(params, batch_stats, opt_state, clips, flip, labels):
        clips = flip_clips(clips, flip)
        (loss, (accuracies, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params, batch_stats, clips, labels
        )
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, batch_stats, opt_state), {'loss': loss, **accuracies}

    return step, heads


def features_of_frames(
    learner: FewShotLearner, clips: jax.Array, train: bool
) -> dict[str, jax.Array]:
    """{'backbone': [B, L, C], and 'sampler': [B, L, c] where it scans}, float32, of clips [B, L, H,
    W, 3]. To be called through `apply`."""
    found = {'backbone': learner.feature_maps(clips, train).astype(jnp.float32).mean((-3, -2))}
    if isinstance(learner.sampler, TaskAdaptiveSampler):
        found['sampler'] = learner.sampler.scan(clips, train)['features']
    return found


if __name__ == '__main__':
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    flags.FLAGS.mark_as_parsed()
    try:
        main(sys.argv)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f'error: {one_line(error)}')
