"""Trains backbone and scan network to tell the training classes from single frames, as ImageNet
does for the papers: weights for methods that do not learn from random ones.

    python -m fsar_jax.pretrain --config=vim --workdir=runs/frames \\
        --config.data.dataset=synthetic_actions/misaligned --config.train.num_steps=300
    python main.py --config=vim --workdir=runs/vim \\
        --config.model.backbone.weights=runs/frames --config.model.sampler.scan_weights=runs/frames

Each network has a linear classifier of its own on its features of a frame. The config says which
backbone and, where its sampler scans, which scan network, on what data, and how they are trained:
config.train with its steps, rate and schedule. A step sees the config.episode.frames frames of
CLIPS clips. Real videos have better weights to start from: those of ImageNet, which both settings
load too. A backbone over whole clips learns from the mean answer of their frames, as TSN and TSM
do.

How misaligned the actions of a dataset are, by such a classifier (TA2N, Table 1 and Fig. 2):

    python -m fsar_jax.pretrain --config=protonet --workdir=runs/tsm --evolution \\
        --config.data.dataset=synthetic_actions/misaligned \\
        --config.model.backbone.temporal_shift=True --config.train.num_steps=600
"""

import sys

from fsar_jax.stopping import errors_in_one_line, finish_first, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('a finished training is kept, an unfinished one starts again')

import functools
import io
import json
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import flags, logging

from fsar_jax import train
from fsar_jax.analysis.evolution import as_text, measure
from fsar_jax.config import resolve_paths, validate
from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos
from fsar_jax.files import local_path, write_whole
from fsar_jax.learner import FewShotLearner, create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.messages import printable
from fsar_jax.named_arrays import by_name
from fsar_jax.programs import prepare
from fsar_jax.progress import MetricWriter, Progress
from fsar_jax.samplers.task_adaptive import TaskAdaptiveSampler
from fsar_jax.training.checkpoint_files import step_directories
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.inputs import open_training_split
from fsar_jax.training.run_settings import MAY_CHANGE_ON_RESUME, check_settings
from fsar_jax.training.start import with_pretrained_weights
from fsar_jax.training.state import TrainState, create_optimizer, create_train_state, flip_clips
from fsar_jax.training.train import wait_until_saved
from fsar_jax.training.workdir import CLASSIFIERS, METHOD, lock_workdir

CLIPS = 16  # in a step
RECENT = 20  # steps, of the accuracies that are printed at the end
EVOLUTION = 'evolution.json'
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
    accuracies, evolution = pretrain(given.config, workdir, given.evolution)
    for name, accuracy in accuracies.items():
        print(f'{name}: {accuracy:.1%} of what the last training steps saw')
    if evolution is not None:
        print(as_text(evolution))
    print(workdir)


FLAGS = ('config', 'workdir', 'evolution', 'help')


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The flags of this command, not parsed yet."""
    values = train.config_flag(argv)
    flags.DEFINE_string('workdir', None, 'Folder for the weights, a new one.', flag_values=values)
    flags.DEFINE_boolean(
        'evolution',
        False,
        'After training, measure how misaligned the actions of the training clips are (AEM).',
        flag_values=values,
    )
    flags.DEFINE_boolean('help', False, 'Print this text.', flag_values=values)
    return values


def pretrain(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, evolution: bool = False
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Trains, and writes a checkpoint into `workdir` that the settings for starts read. Its other
    parts are as a run of this config starts. The classifiers are beside it.

    The same config gives the same weights (bit for bit on a CPU).

    Args:
      evolution: also measure the training clips with the backbone's classifier (`measure`), and
        write that into evolution.json. A folder that holds a finished training is only measured.

    Returns:
      {'backbone': share of the frames of the last steps that it tells, or of the clips for a
      backbone over clips, 'scan network': share of the frames}, {} without training; and what
      `measure` found or None.

    Raises:
      ValueError, OSError: one line about what is wrong with the config, the data or the folder.
      FloatingPointError: the loss is not finite.
    """
    validate(config)
    config = resolve_paths(config)
    learner = create_learner(config.model)
    if learner.backbone.takes_maps or not learner.backbone_trained:
        raise ValueError(
            f'the backbone, {type(learner.backbone).__name__}, learns nothing here: choose one '
            'that sees frames and is trained'
        )
    dataset = open_training_split(config)
    state = create_train_state(config, learner)
    state = with_pretrained_weights(state, config, episode_mesh(1))
    shapes = shapes_of_features(learner, state.variables, config)
    steps_in_time = shapes['backbone'].shape[1]
    if evolution and steps_in_time != config.episode.frames:
        raise ValueError(
            f'--evolution needs an answer at every frame, and the backbone leaves {steps_in_time} '
            f'of {config.episode.frames}: choose one that keeps them all, such as a ResNet as TSM'
        )
    directory, found, accuracies = workdir / 'checkpoints', None, dict[str, float]()
    saving = threading.Lock()
    with (
        lock_workdir(workdir),
        Checkpoints(directory, config=config) as checkpoints,
        finish_first(lambda: wait_until_saved(checkpoints, saving)),
    ):
        step_of, answer_of, heads = make_step(config, learner, shapes, dataset)
        if not step_directories(directory) and not (workdir / METHOD).exists():
            state, heads, accuracies = train_on_clips(
                config, state, heads, step_of, dataset, workdir
            )
            stored = io.BytesIO()
            np.savez(stored, **by_name(heads))
            write_whole(workdir / CLASSIFIERS, stored.getvalue())
            with saving:
                checkpoints.save(config.train.num_steps, state, {})
        elif evolution and (workdir / CLASSIFIERS).is_file():
            check_settings(directory, config, lambda key: key not in MAY_CHANGE_ON_RESUME)
            state, _ = checkpoints.restore(state)
            heads = _read_heads(workdir / CLASSIFIERS, heads)
        else:
            raise ValueError(
                f'--workdir={printable(workdir, 1000)} holds a run already: name a new folder'
            )
        if evolution:
            trained = {'learner': state.params, 'heads': heads}
            answer = functools.partial(answer_of, trained, state.batch_stats)
            found = measure(answer, dataset, config, CLIPS)
            write_whole(workdir / EVOLUTION, json.dumps(found, indent=2) + '\n')
        checkpoints.wait_for_files()
    return accuracies, found


def train_on_clips(
    config: ml_collections.ConfigDict,
    state: TrainState,
    heads: dict,
    step_of: Callable,
    dataset: Videos,
    workdir: pathlib.Path,
) -> tuple[TrainState, dict, dict[str, float]]:
    """config.train.num_steps steps → (state, heads, the accuracies of the last steps)."""
    trained, steps = {'learner': state.params, 'heads': heads}, config.train.num_steps
    carried = trained, state.batch_stats, create_optimizer(config.train).init(trained)
    classes, reader = np.unique(dataset.labels), loader.reader(dataset, config)
    accuracies: list[dict[str, float]] = []
    with (
        MetricWriter(workdir, config.train.log_steps) as writer,
        Progress(steps, 'training on clips', 'step') as progress,
    ):
        for step in range(1, steps + 1):
            rng = np.random.default_rng([config.seed, step])
            positions = rng.choice(len(dataset), CLIPS, replace=len(dataset) < CLIPS)
            clips, flip = reader.read_all(positions, rng)
            labels = np.searchsorted(classes, dataset.labels[positions])
            carried, metrics = step_of(*carried, clips, flip, labels)
            numbers = {name: float(value) for name, value in metrics.items()}
            if not np.isfinite(numbers['loss']):
                raise _diverged(f'the loss of step {step}')
            writer.write(step, numbers)
            accuracies.append({name: numbers[name] for name in numbers if name != 'loss'})
            progress.advance()
    trained, batch_stats, _ = carried
    if not all(np.isfinite(x).all() for x in jax.tree.leaves((trained, batch_stats))):
        raise _diverged('what the last step has left')  # each loss is of the step before
    state = TrainState(
        step=jnp.asarray(steps, jnp.int32),
        params=trained['learner'],
        batch_stats=batch_stats,
        opt_state=state.opt_state,
    )
    last = accuracies[-RECENT:]
    means = {
        name.removesuffix(' accuracy'): float(np.mean([a[name] for a in last])) for name in last[0]
    }
    return state, trained['heads'], means


def _diverged(what):
    return FloatingPointError(
        f'{what} is not finite: lower config.train.learning_rate or set config.train.clip_norm'
    )


def _read_heads(path, heads):
    with np.load(path) as stored:
        found = {name: stored[name] for name in stored}
    expected = by_name(heads)
    if {name: x.shape for name, x in found.items()} != {n: x.shape for n, x in expected.items()}:
        raise ValueError(
            f'{printable(path, 1000)} has the classifiers of other classes or networks: give the '
            'config with which they were trained, or name a new folder'
        )
    return jax.tree.unflatten(jax.tree.structure(heads), [found[name] for name in expected])


def shapes_of_features(
    learner: FewShotLearner, variables: dict, config: ml_collections.ConfigDict
) -> dict[str, jax.ShapeDtypeStruct]:
    """Of `features_of_frames` of one clip."""
    size = config.episode.image_size
    clip = jax.ShapeDtypeStruct((1, config.episode.frames, size, size, 3), np.uint8)
    return jax.eval_shape(
        functools.partial(learner.apply, method=features_of_frames), variables, clip
    )


def make_step(
    config: ml_collections.ConfigDict,
    learner: FewShotLearner,
    shapes: dict[str, jax.ShapeDtypeStruct],
    dataset: Videos,
) -> tuple[Any, Any, dict]:
    """(the jitted step, the jitted answer, the classifiers they begin with); `shapes` are those of
    `shapes_of_features`.

    The step: (params, batch_stats, opt_state), clips uint8 [B, L, S, S, 3], flip bool [B], labels
    int [B] → the same three, {'loss', 'backbone accuracy', …}. The answer of the backbone's
    classifier: (params, batch_stats), clips, labels → as of `measure`.
    """
    optimizer = create_optimizer(config.train)
    look = functools.partial(
        learner.apply, train=True, mutable=['batch_stats'], method=features_of_frames
    )
    widths = {name: x.shape[-1] for name, x in shapes.items()}
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
            if name == 'backbone' and learner.backbone.takes_clips:
                logits = logits.mean(1, keepdims=True)  # one answer for the clip
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

    @jax.jit
    def answer(params, batch_stats, clips, labels):
        variables = {'params': params['learner'], 'batch_stats': batch_stats}
        features = learner.apply(variables, clips, method=features_of_frames)['backbone']
        logits = classifier.apply(params['heads']['backbone'], features)
        of_class = jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None, None], -1)
        return of_class[..., 0], logits.mean(1).argmax(-1) == labels

    return step, answer, heads


def features_of_frames(
    learner: FewShotLearner, clips: jax.Array, train: bool = False
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
    with errors_in_one_line():
        main(sys.argv)
