"""A whole run, in the order in which it happens: data, model, resume, the loop, selection on val,
one look at test."""

import contextlib
import os
import pathlib
import threading

import jax
import ml_collections
import numpy as np

from fsar_jax import weights
from fsar_jax.analysis.episode_report import measure
from fsar_jax.config import flatten, resolve_paths, validate, with_newer_settings
from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos
from fsar_jax.data.features import open_header
from fsar_jax.evaluation import results
from fsar_jax.evaluation.evaluate import Description, TrainedModel, episodes_of, evaluate
from fsar_jax.files import local_path
from fsar_jax.learner import create_learner
from fsar_jax.memory import announced, named_out_of_memory
from fsar_jax.mesh import episode_mesh, replicate, shard
from fsar_jax.messages import listed, printable
from fsar_jax.plan import resolved_plan
from fsar_jax.processes import print_once
from fsar_jax.progress import MetricWriter, Progress
from fsar_jax.recipe import note_on_shots
from fsar_jax.stages import frames_read
from fsar_jax.stopping import finish_first
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.departures import departures, departures_of_published, hash_of_list
from fsar_jax.training.export import exported_variables, read_about
from fsar_jax.training.finite import check_logits
from fsar_jax.training.inputs import (
    fit_accumulation,
    open_split,
    open_training_split,
    runtime_summary,
    with_features,
    with_training_classes,
)
from fsar_jax.training.orbax_files import check_directory
from fsar_jax.training.run_settings import (
    check_resumable,
    check_settings,
    must_agree,
    run_config,
    with_classes_of_run,
)
from fsar_jax.training.selected import best_of_run, select
from fsar_jax.training.start import note_random_starts, with_pretrained_weights
from fsar_jax.training.state import create_train_state, make_train_step
from fsar_jax.training.workdir import (
    TRAINED_ON,
    check_extractor,
    config_name,
    lock_workdir,
    make_workdir,
    note_method,
    note_test,
    note_videos,
    read_note,
    refuse_classifiers,
)


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    method: str,
    preset: str = '',
) -> dict:
    """Trains, or continues the run in `workdir`; selects a checkpoint on val; evaluates it on
    config.eval.split once.

    If it is killed at any moment and called again with the same arguments, it ends with the same
    parameters (bit for bit on a CPU) and the same results.json: episodes and augmentation depend
    only on (seed, split, index), and a checkpoint holds the rest. A finished run continues to a
    larger config.train.num_steps if no schedule depends on it.

    Args:
      config: as from configs/*.py.
      workdir: checkpoints/, metrics.jsonl, TensorBoard events and results.json go here.
      method: name for results.json.
      preset: of the config file; the run is evaluated with the same.

    Returns:
      The content of results.json.

    Raises:
      ValueError, FileNotFoundError: one line about what is wrong with the config, the data or the
        workdir.
      FloatingPointError: a loss that is not finite, with the step, the episodes and the last good
        checkpoint.
      MemoryError: one line with the settings that need less of a device's memory.
    """
    # ── What runs, on what ────────────────────────────────────────────────────────────────────────
    validate(config)
    config = resolve_paths(config)
    train = config.train
    workdir = local_path(workdir, '--workdir')
    directory = workdir / 'checkpoints'
    check_directory(directory)
    mesh = episode_mesh(train.episodes_per_step)
    config = fit_accumulation(with_features(config), mesh.size)

    # ── Data: every split is opened now, so that a missing one fails before hours of training ─────
    train_set = open_training_split(config)
    val_set = open_split(config, 'val', config.eval.query) if config.eval.val_episodes else None
    test_set = open_split(config, config.eval.split, config.eval.query)
    list_hash = hash_of_list(test_set, config)  # also checks the file, if there is one
    datasets = [dataset for dataset in (train_set, val_set, test_set) if dataset is not None]
    print_once(resolved_plan(config, 'train', runtime_summary(config, mesh, datasets)))
    if note := note_on_shots(preset, config.episode.shot):
        print_once(note)

    # ── Model and state ───────────────────────────────────────────────────────────────────────────
    config = with_training_classes(config, train_set)
    check_resumable(directory, config, config_name(method, preset))  # before seconds of compiling
    learner = create_learner(config.model)
    state = replicate(mesh, create_train_state(config, learner))
    note_random_starts(config, state.params)
    if not state.params:
        print_once('note: the model has no parameters, so training changes nothing')

    # ── Resume: from the checkpoint with the highest step, or start ───────────────────────────────
    saving = threading.Lock()
    with (
        lock_workdir(workdir),
        Checkpoints(directory, keep=train.keep_checkpoints, config=config) as checkpoints,
        finish_first(lambda: wait_until_saved(checkpoints, saving)),
    ):
        refuse_classifiers(workdir)
        resumed, start = checkpoints.resume(state)
        note_videos(workdir, start, [d for d in (train_set, val_set) if d is not None])
        if start < train.num_steps:
            note_test(workdir, test_set, list_hash)
        note_method(workdir, method, preset)
        if start:
            state = resumed
            print_once(f'resumed from step {start}')
        else:
            state = with_pretrained_weights(state, config, mesh)
            check_logits(learner, state.variables, config)

        # ── The loop ──────────────────────────────────────────────────────────────────────────────
        train_step = announced(make_train_step(learner, config, mesh), mesh)
        batches = loader.training_batches(
            train_set,
            config,
            start,
            jax.process_index(),
            jax.process_count(),
            frames_read(config),
            mesh.size,
        )
        episodes, first_episode = (n * train.episodes_per_step for n in (train.num_steps, start))
        not_logged = None
        with (
            named_out_of_memory(config, 'training'),
            contextlib.closing(batches),
            MetricWriter(workdir, train.log_steps, resume_step=start) as writer,
            Progress(episodes, 'training', 'episode', first_episode) as progress,
        ):
            model = lambda: TrainedModel(learner, state.variables, config, mesh)
            if start and val_set is not None and checkpoints.is_unscored(start):
                scores = look_at_val(model(), val_set, writer, start)
                with saving:
                    checkpoints.save(start, state, scores)
            for step in range(start + 1, train.num_steps + 1):
                state, metrics = train_step(state, shard(mesh, next(batches), axis=1))
                # Logging is one step behind, so that the device never waits for the host.
                if not_logged is not None:
                    log_step(writer, *not_logged, checkpoints)
                not_logged = step, metrics
                progress.advance(train.episodes_per_step)
                if step % train.checkpoint_steps and step < train.num_steps:
                    continue

                log_step(writer, *not_logged, checkpoints)
                not_logged, scores = None, {}
                if val_set is not None:
                    try:
                        scores = look_at_val(model(), val_set, writer, step)
                    except Exception:
                        if jax.process_count() == 1:  # else the others save nothing
                            with saving:
                                checkpoints.save(step, state, {})
                            print_once(f'note: step {step} is saved without its val accuracy')
                        raise
                writer.flush()
                with saving:
                    checkpoints.save(step, state, scores)

        # ── Selection on val, then the only look at test ──────────────────────────────────────────
        selected = select(checkpoints, state)
        changed = {}
        if start == train.num_steps:  # nothing was trained: the run may have its results already
            changed = departures(workdir, config, test_set) | selected.changed
        return evaluate_and_write(
            TrainedModel(learner, selected.state.variables, config, mesh),
            test_set,
            workdir,
            Description(method, selected.how, changed),
            read_note(workdir / TRAINED_ON),
        )


def evaluate_only(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    method: str,
    published: str | os.PathLike[str] | None = None,
    given: dict | None = None,
) -> dict:
    """Evaluates the best checkpoint of `workdir`, or published weights, on config.eval.split.

    results.json stays that of the run. If `config` differs from the run in a way that can change a
    number, or if the weights are published ones, the results go to another file, whose name says
    so.

    Args:
      config: for a checkpoint of `workdir` as from `evaluation_config`, else as from configs/*.py.
      workdir: of a run; with `published` any directory.
      method: name for the results.
      published: path of a .pth or .safetensors file, the latter also of `fsar_jax.export`; None for
        the workdir's own checkpoint.
      given: {'episode.shot': 2}, settings that the results file of published weights is named
        after.

    Returns:
      The content of the results file.

    Raises:
      ValueError, FileNotFoundError: one line about what is wrong with the config, the data, the
        workdir or the file.
    """
    # ── What runs, on what ────────────────────────────────────────────────────────────────────────
    validate(config)
    config = resolve_paths(config)
    workdir, mesh = local_path(workdir, '--workdir'), episode_mesh()
    exported = read_about(published) if published else None
    trained_on = exported['trained_on'] if exported else {}
    if not published:
        config = with_classes_of_run(config, run_config(workdir))
        check_settings(workdir / 'checkpoints', config, must_agree)
        trained_on = read_note(workdir / TRAINED_ON)

    # ── Data ──────────────────────────────────────────────────────────────────────────────────────
    if config.data.features:
        extractor = open_header(config.data.features).extractor
        check_extractor(trained_on, extractor, published or workdir)
        config = with_features(config)
    dataset = open_split(config, config.eval.split, config.eval.query)
    changed = {} if published else departures(workdir, config, dataset)
    if jax.process_index() == 0:
        make_workdir(workdir)  # before the work, in case results cannot be written there
    summary = runtime_summary(config, mesh, [dataset])
    if changed:
        summary['not as the run'] = ', '.join(
            f'{key}={here!r} ({in_run!r} in the run)' for key, (in_run, here) in changed.items()
        )
    print_once(resolved_plan(config, 'evaluate', summary))

    # ── Model ─────────────────────────────────────────────────────────────────────────────────────
    learner = create_learner(config.model)
    if published:
        if exported:
            variables, how = exported_variables(published, config), exported['selected_on']
        else:
            variables = weights.load(published, config.model)
            how = results.PUBLISHED + pathlib.Path(published).name
        check_logits(learner, variables, config)
        before = with_newer_settings(flatten(exported['config'])) if exported else {}
        changed = departures_of_published(config, given or {}, dataset, published, before)
    else:
        selected = best_of_run(workdir, mesh)
        variables, how = selected.state.variables, selected.how
        changed |= selected.changed
    model = TrainedModel(learner, variables, config, mesh)
    description = Description(method, how, changed)
    return evaluate_and_write(model, dataset, workdir, description, trained_on)


def evaluate_and_write(
    model: TrainedModel,
    dataset: Videos,
    workdir: pathlib.Path,
    description: Description,
    trained_on: dict,
) -> dict:
    """Evaluates config.eval.num_episodes episodes, writes the results and prints the accuracy.

    The results go to results.json, or to a file beside it that is named after what has changed.
    Those of a checkpoint that need not be the best of the whole run have its step as 'checkpoint'.

    trained_on: which videos the model is trained on, as in trained_on.json; {} if that is unknown.

    Returns:
      The content of the file.
    """
    config, changed = model.config, description.changed
    found = evaluate(model, dataset, config.eval.num_episodes, description)
    print_once(  # before what may fail, or the disk may have no room for
        f"{found['method']}, {printable(found['dataset'])}, {found['split']}, {found['way']}-way "
        f"{found['shot']}-shot: {found['accuracy']:.2%} ± {found['ci95']:.2%} (95% interval over "
        f"{found['num_episodes']} episodes; chance {found['chance']:.0%}; selected on "
        f'{printable(found["selected_on"])})'
    )
    if config.eval.measured_episodes:
        episodes = episodes_of(dataset, config, config.eval.num_episodes)
        measured, undefined = results.with_nulls(measure(model, dataset, episodes))
        found |= measured
        if undefined:
            print_once(f'note: not finite, so null in the results: {listed(undefined)}')
    if trained_on:
        found['trained_on'] = trained_on
    if 'checkpoint' in changed:
        found['checkpoint'] = changed['checkpoint'][1]
    path = results.write_results(workdir, found, {key: here for key, (_, here) in changed.items()})
    print_once(f'{path}')
    return found


def log_step(writer: MetricWriter, step: int, metrics: dict, checkpoints: Checkpoints) -> None:
    """Writes the metrics of a finished step.

    Raises:
      FloatingPointError: its loss, or the state that it leaves, is not finite.
    """
    losses = np.asarray(metrics['losses']).ravel()
    broken = ~np.isfinite(losses)
    if broken.any() or not metrics['finite']:
        what = 'loss' if broken.any() else 'update'  # of the update, any episode may be the cause
        bad = (step - 1) * losses.size + np.flatnonzero(broken | (not broken.any()))
        last = checkpoints.latest_step
        raise FloatingPointError(
            f'the {what} of step {step} is not finite, in training episodes {bad.tolist()}; last '
            f'good checkpoint: {checkpoints.directory / str(last) if last else "none yet"}. Lower '
            'config.train.learning_rate, or set or lower config.train.clip_norm, and train in '
            'another --workdir'
        )
    writer.write(step, {name: metrics[name] for name in ('loss', 'accuracy', 'gradient_norm')})


def look_at_val(
    model: TrainedModel, val_set: Videos, writer: MetricWriter, step: int
) -> dict[str, float]:
    """Evaluates the model on val, writes and prints the accuracy; {'val_accuracy': …}."""
    val = evaluate(model, val_set, model.config.eval.val_episodes)
    scores = {'val_accuracy': val['accuracy']}
    writer.write(step, scores)
    print_once(f"step {step}: val accuracy {val['accuracy']:.2%} ± {val['ci95']:.2%}")
    return scores


def wait_until_saved(checkpoints: Checkpoints, saving: threading.Lock) -> None:
    """Returns when the save in progress is on disk. `saving` is held while a save is begun."""
    with saving:
        checkpoints.wait_for_files()
