"""A whole run in the order in which it happens: data, model, resume, the loop, selection on val,
one look at test."""

import contextlib
import pathlib
import threading

import jax
import ml_collections
import numpy as np

from fsar_jax import weights
from fsar_jax.analysis.episode_report import measure
from fsar_jax.config import resolve_paths, validate
from fsar_jax.data import episodes, loader
from fsar_jax.data.dataset import open_dataset, videos_present
from fsar_jax.data.frame_sampling import frames_read
from fsar_jax.evaluation import results
from fsar_jax.evaluation.evaluate import episodes_of, evaluate
from fsar_jax.files import local_path, write_whole
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh, replicate, shard
from fsar_jax.messages import listed, printable
from fsar_jax.plan import resolved_plan
from fsar_jax.progress import MetricWriter, Progress
from fsar_jax.stopping import finish_first
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.export import exported_variables, read_about
from fsar_jax.training.finite import check_logits
from fsar_jax.training.orbax_files import check_directory
from fsar_jax.training.start import with_pretrained_weights
from fsar_jax.training.state import create_train_state, make_train_step
from fsar_jax.training.workdir import (
    MAY_CHANGE_ON_RESUME,
    METHOD,
    SAME_RESULTS,
    TRAINED_ON,
    best_of_run,
    check_settings,
    content_of_evaluation,
    departures,
    hash_of_list,
    make_workdir,
    must_agree,
    named,
    note_test,
    note_videos,
    noted,
    only_run,
    run_config,
    select,
    with_classes_of_run,
)


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir, method: str, preset: str = ''
) -> dict:
    """Trains, or goes on training what `workdir` holds, selects a checkpoint on val and evaluates
    it on config.eval.split once.

    Killed at any moment and called again with the same arguments, it ends with the same parameters
    (bit for bit on a CPU) and the same results.json: episodes and augmentation depend on (seed,
    split, index) alone, and a checkpoint holds the rest.

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
    """
    # ── What runs, on what ────────────────────────────────────────────────────────────────────────
    validate(config)
    config = resolve_paths(config)
    workdir = local_path(workdir, '--workdir')
    check_directory(workdir / 'checkpoints')
    mesh = episode_mesh(config.train.episodes_per_step)
    config = fit_accumulation(config, mesh.size)

    # ── Data: every split is opened now, so that a missing one fails before hours of training ─────
    train_set = open_split(config, 'train', config.episode.query)
    val_set = open_split(config, 'val', config.eval.query) if config.eval.val_episodes else None
    test_set = open_split(config, config.eval.split, config.eval.query)
    list_hash = hash_of_list(test_set, config)  # reads and checks it, before training
    say(
        resolved_plan(
            config,
            'train',
            facts(config, mesh, [s for s in (train_set, val_set, test_set) if s is not None]),
        )
    )

    # ── Model and state ───────────────────────────────────────────────────────────────────────────
    config = with_training_classes(config, train_set)
    learner = create_learner(config.model)
    if not config.model.backbone.weights and config.model.backbone.name != 'resnet_small':
        say(
            f'note: {config.model.backbone.name} starts from random weights, the published runs '
            'from ImageNet: '
            f'set --config.model.backbone.weights to a torchvision .pth or .safetensors file'
        )
    sampler = config.model.sampler
    if (
        sampler.name == 'task_adaptive'
        and sampler.scan_network != 'shufflenet_v2_small'
        and not sampler.scan_weights
    ):
        say(
            f'note: the scan network {sampler.scan_network} starts from random weights, that of '
            'the paper from ImageNet: '
            f'set --config.model.sampler.scan_weights to a torchvision .pth or .safetensors file'
        )
    state = create_train_state(config, learner)
    state = replicate(mesh, state)

    # ── Resume: the checkpoint with the highest step, or the start ────────────────────────────────
    train = config.train
    check_settings(
        workdir / 'checkpoints', config, lambda key: not key.startswith(MAY_CHANGE_ON_RESUME)
    )
    with (
        only_run(workdir),
        Checkpoints(
            workdir / 'checkpoints', keep=train.keep_checkpoints, config=config
        ) as checkpoints,
    ):
        resumed, start = checkpoints.resume(state)
        note_videos(workdir, start, [s for s in (train_set, val_set) if s is not None])
        if start < train.num_steps:
            note_test(workdir, test_set, list_hash)
        if jax.process_index() == 0:
            write_whole(workdir / METHOD, f'{named(method, preset)}\n')
        if start:
            state = resumed
            say(f'resumed from step {start}')
        else:
            state = with_pretrained_weights(state, config, mesh)
            check_logits(learner, state.variables, config)

        # ── The loop ──────────────────────────────────────────────────────────────────────────────
        train_step = make_train_step(learner, config, mesh)
        before, saving = None, threading.Lock()
        with (
            finish_first(lambda: when_saved(checkpoints, saving)),
            contextlib.closing(
                loader.training_batches(
                    train_set, config, start, jax.process_index(), jax.process_count()
                )
            ) as batches,
            MetricWriter(workdir, train.log_steps, resume_step=start) as writer,
            Progress(
                train.num_steps * train.episodes_per_step,
                'training',
                'episode',
                start * train.episodes_per_step,
            ) as progress,
        ):
            for step in range(start + 1, train.num_steps + 1):
                batch = next(batches)
                state, metrics = train_step(state, shard(mesh, batch, axis=1))
                # One step behind, so that the device never waits for the host to look.
                if before is not None:
                    record(writer, *before, checkpoints)
                before = step, metrics
                progress.advance(train.episodes_per_step)
                if step % train.checkpoint_steps == 0 or step == train.num_steps:
                    record(writer, *before, checkpoints)
                    before = None
                    accuracy = {}
                    if val_set is not None:
                        val = evaluate(
                            learner,
                            state.variables,
                            config,
                            'val',
                            config.eval.val_episodes,
                            mesh=mesh,
                            dataset=val_set,
                        )
                        accuracy = {'val_accuracy': val['accuracy']}
                        writer.write(step, accuracy)
                        say(f"step {step}: val accuracy {val['accuracy']:.2%} ± {val['ci95']:.2%}")
                    writer.flush()
                    with saving:
                        checkpoints.save(step, state, accuracy)
        # ── Selection on val, then the only look at test ──────────────────────────────────────────
        selected = select(checkpoints, state)
    # Where nothing was left to train, this is another evaluation of a run whose results may be
    # there.
    changed = (
        departures(workdir, config, test_set) | not_the_best(selected)
        if start == train.num_steps
        else {}
    )
    return report(
        learner,
        selected.state.variables,
        config,
        workdir,
        test_set,
        mesh,
        method,
        selected.how,
        changed,
    )


def evaluate_only(
    config: ml_collections.ConfigDict,
    workdir,
    method: str,
    published: str | None = None,
    given: dict | None = None,
) -> dict:
    """Evaluates on config.eval.split: the best checkpoint of `workdir`, or a PyTorch checkpoint
    that the method's authors published.

    results.json stays that of the run: where `config` departs from its settings in what can change
    a number, or the weights are published ones, the results go to a file beside it whose name says
    so.

    Args:
      config: for a checkpoint of `workdir` as from `evaluation_config`, else as from configs/*.py.
      workdir: of a run; with `published` any directory.
      method: name for the results.
      published: path of a .pth or .safetensors file, the latter also of `fsar_jax.export`; None for
        the workdir's own checkpoint.
      given: {'episode.shot': 2}, what the name of the results of published weights is to say.

    Returns:
      The content of the results file.

    Raises:
      ValueError, FileNotFoundError: one line about what is wrong with the config, the data, the
        workdir or the file.
    """
    validate(config)
    config = resolve_paths(config)
    workdir, mesh, changed = local_path(workdir, '--workdir'), episode_mesh(), {}
    if not published:
        config = with_classes_of_run(config, run_config(workdir))
        check_settings(workdir / 'checkpoints', config, must_agree)
    dataset = open_split(config, config.eval.split, config.eval.query)
    if not published:
        changed = departures(workdir, config, dataset)
    if jax.process_index() == 0:
        make_workdir(workdir)  # before the work, where its results cannot be written
    said = ', '.join(f'{key}={now!r} ({then!r} in the run)' for key, (then, now) in changed.items())
    say(
        resolved_plan(
            config,
            'evaluate',
            facts(config, mesh, [dataset]) | ({'not as the run': said} if said else {}),
        )
    )
    learner = create_learner(config.model)
    if published:
        exported = read_about(published)
        if exported:
            variables, selected_on = exported_variables(published, config), exported['selected_on']
        else:
            variables = weights.load(published, config.model)
            selected_on = f'published weights, {pathlib.Path(published).name}'
        check_logits(learner, variables, config)
        told = {
            key: (None, value)
            for key, value in (given or {}).items()
            if not key.startswith(SAME_RESULTS)
        }
        content = content_of_evaluation(config, dataset, published)
        changed = (
            {'weights': (None, pathlib.Path(published).stem)}
            | told
            | {'content': (None, content[:8])}
        )
    else:
        selected = best_of_run(workdir, mesh)
        variables, selected_on, changed = (
            selected.state.variables,
            selected.how,
            changed | not_the_best(selected),
        )
    return report(learner, variables, config, workdir, dataset, mesh, method, selected_on, changed)


def when_saved(checkpoints, saving) -> None:
    """Returns when the save that has begun is on disk; `saving` is held while one begins."""
    with saving:
        checkpoints.wait_for_files()


def report(
    learner, variables, config, workdir, dataset, mesh, method, selected_on, changed
) -> dict:
    """Evaluates once on config.eval.split, writes results.json or, where something `changed` (key:
    (then, now)), a file beside it whose name says so, and prints the accuracy beside chance."""
    found = evaluate(
        learner,
        variables,
        config,
        config.eval.split,
        config.eval.num_episodes,
        method=method,
        selected_on=selected_on,
        mesh=mesh,
        dataset=dataset,
    )
    if config.eval.measured_episodes:
        measured = episodes_of(dataset, config, config.eval.split, config.eval.num_episodes)
        measured, undefined = results.with_nulls(
            measure(learner, variables, dataset, measured, config)
        )
        found |= measured
        if undefined:
            say(f'note: not finite, so null in the results: {listed(undefined)}')
    if (workdir / TRAINED_ON).exists() and 'weights' not in changed:
        found['trained_on'] = noted(workdir / TRAINED_ON)
    say(
        f"{method}, {printable(found['dataset'])}, {found['split']}, {found['way']}-way "
        f"{found['shot']}-shot: "
        f"{found['accuracy']:.2%} ± {found['ci95']:.2%} (95% interval over {found['num_episodes']} "
        "episodes; "
        f"chance {found['chance']:.0%}; selected on {printable(selected_on)})"
    )  # also where the disk is full
    path = results.write_results(workdir, found, {key: now for key, (_, now) in changed.items()})
    say(f'{path}')
    return found


def not_the_best(selected) -> dict:
    """What `report` is told has changed where a damaged checkpoint may be the best: the results of
    the run stay."""
    return {'checkpoint': (max(selected.damaged), selected.step)} if selected.damaged else {}


def say(text: str) -> None:
    """Prints, once however many processes there are."""
    if jax.process_index() == 0:
        print(text, flush=True)


def open_split(config, split: str, query: int):
    """The split's clips that are long enough, checked to hold the asked way, shot and queries."""
    dataset = loader.usable(open_dataset(config.data.dataset, config.data.dir, split), config)
    episodes.check_dataset(dataset, config.episode.way, config.episode.shot, query)
    return dataset


def with_training_classes(config, train_set):
    """The config with the number of training classes where a classifier is trained
    (model.classifier.weight) and none is given."""
    classifier, found = config.model.classifier, len(np.unique(train_set.labels))
    if not classifier.weight or classifier.classes == found:
        return config
    if classifier.classes is not None:
        raise ValueError(
            f'config.model.classifier.classes={classifier.classes}, but {config.data.dataset} '
            f'train has {found} classes: '
            'leave it unset to take theirs'
        )
    config = config.copy_and_resolve_references()
    config.model.classifier.classes = found
    return config


def fit_accumulation(config, devices: int):
    """The config with as few sequential parts as asked for, or fewer, so that each part has an
    episode for every device.

    The result of a step does not depend on it; 16 parts of one episode suit one GPU, 2 parts of 8
    suit eight.
    """
    total, parts = config.train.episodes_per_step, config.train.accumulation_steps
    if total % devices:
        raise ValueError(
            f'config.train.episodes_per_step={total} must be a multiple of the {devices} devices '
            'of all processes: set '
            f'--config.train.episodes_per_step={-(-total // devices) * devices}'
        )
    fitting = max(p for p in range(1, parts + 1) if total % (p * devices) == 0)
    config = config.copy_and_resolve_references()
    config.train.accumulation_steps = fitting
    return config


def record(writer, step: int, metrics: dict, checkpoints) -> None:
    """Writes the metrics of a finished step, and stops the run when its loss, or the parameters it
    leaves, are not finite."""
    losses = np.asarray(metrics['losses']).ravel()
    broken = ~np.isfinite(losses)
    if broken.any() or not metrics['finite']:
        what = 'loss' if broken.any() else 'update'  # of the update, any episode may be the cause
        bad = (step - 1) * losses.size + np.flatnonzero(broken | (not broken.any()))
        last = checkpoints.latest_step
        raise FloatingPointError(
            f'the {what} of step {step} is not finite, in training episodes {bad.tolist()}; last '
            'good checkpoint: '
            f'{checkpoints.directory / str(last) if last else "none yet"}. Lower '
            'config.train.learning_rate or set config.train.clip_norm'
        )
    writer.write(step, {'loss': metrics['loss'], 'accuracy': metrics['accuracy']})


def facts(config, mesh, datasets) -> dict[str, str]:
    """What the plan says beyond the config: devices, and the clips that are there."""
    kind = mesh.devices.flat[0]
    rows = {
        'devices': f'{mesh.size} x {kind.device_kind} ({kind.platform}), {jax.process_count()} '
        f'process(es), compute in {config.model.dtype}'
    }
    total = jax.device_count()
    if mesh.size < total:
        all_used = -(-config.train.episodes_per_step // total) * total
        rows['devices'] += (
            f'; {total - mesh.size} idle, --config.train.episodes_per_step={all_used} would use '
            f'all {total}'
        )
    for dataset in datasets:
        there = videos_present(dataset)
        few = (
            int((np.asarray(dataset.num_frames) < frames_read(config)).sum())
            if config.model.sampler.name != 'uniform'
            else 0
        )
        absent = (there['expected_classes'] or 0) - there['classes']
        rows[f'data {dataset.split}'] = (
            f'{config.data.dataset}: {len(np.unique(dataset.labels))} classes, {len(dataset)} clips'
            + (
                f' ({len(dataset.dropped)} shorter than {config.episode.frames} frames left out)'
                if len(dataset.dropped)
                else ''
            )
            + (
                f", videos present {there['present']:,} of {there['expected']:,}"
                if there['expected']
                else ''
            )
            + (
                f", {absent} of its {there['expected_classes']} classes have no video"
                if absent > 0
                else ''
            )
            + (
                f', {few} of fewer than {frames_read(config)} frames: a sampler sees some of them '
                'twice'
                if few
                else ''
            )
        )
    rows['S, R  as stored'] = ', '.join(
        f'{key} {value}' for key, value in sorted(datasets[0].settings.items())
    )
    return rows
