"""A whole run in the order in which it happens: data, model, resume, the loop, selection on val, one look at test."""

import contextlib
import fcntl
import functools
import json
import pathlib

import jax
import ml_collections
import numpy as np

from fsar_jax import weights
from fsar_jax.config import default_config, frames_read, resolved_plan, validate
from fsar_jax.data import episodes, loader
from fsar_jax.data.dataset import open_dataset, videos_present
from fsar_jax.learner import create_learner
from fsar_jax.training import results
from fsar_jax.training.episode_report import measure
from fsar_jax.training.checkpoints import Checkpoints, flatten, saved_settings
from fsar_jax.training.evaluation import episodes_of, evaluate
from fsar_jax.training.mesh import episode_mesh, replicate, replicated, shard
from fsar_jax.training.progress import MetricWriter, Progress
from fsar_jax.training.state import create_train_state, make_train_step


def train_and_evaluate(config: ml_collections.ConfigDict, workdir, method: str, preset: str = '') -> dict:
    """Trains, or goes on training what `workdir` holds, selects a checkpoint on val and evaluates it on config.eval.split once.

    Killed at any moment and called again with the same arguments, it ends with the same parameters (bit for bit on a CPU)
    and the same results.json: episodes and augmentation depend on (seed, split, index) alone, and a checkpoint holds the
    rest.

    Args:
      config: as from configs/*.py.
      workdir: checkpoints/, metrics.jsonl, TensorBoard events and results.json go here.
      method: name for results.json.
      preset: of the config file; the run is evaluated with the same.

    Returns:
      The content of results.json.

    Raises:
      ValueError, FileNotFoundError: one line about what is wrong with the config, the data or the workdir.
      FloatingPointError: a loss that is not finite, with the step, the episodes and the last good checkpoint.
    """
    # ── What runs, on what ──────────────────────────────────────────────────────────────────────────────────────────
    validate(config)
    workdir = pathlib.Path(workdir)
    mesh = episode_mesh(config.train.episodes_per_step)
    config = fit_accumulation(config, mesh.size)

    # ── Data: every split is opened now, so that a missing one fails before hours of training ───────────────────────
    train_set = open_split(config, 'train', config.episode.query)
    val_set = open_split(config, 'val', config.eval.query) if config.eval.val_episodes else None
    test_set = open_split(config, config.eval.split, config.eval.query)
    if config.eval.episodes_file:
        episodes_of(test_set, config, config.eval.split, config.eval.num_episodes)     # reads and checks it, before training
    say(resolved_plan(config, 'train', facts(config, mesh, [s for s in (train_set, val_set, test_set) if s is not None])))

    # ── Model and state ─────────────────────────────────────────────────────────────────────────────────────────────
    config = with_training_classes(config, train_set)
    learner = create_learner(config.model)
    if not config.model.backbone.weights and config.model.backbone.name != 'resnet_small':
        say(f'note: {config.model.backbone.name} starts from random weights, the published runs from ImageNet: '
            f'set --config.model.backbone.weights to a torchvision .pth or .safetensors file')
    sampler = config.model.sampler
    if sampler.name == 'task_adaptive' and sampler.scan_network != 'shufflenet_v2_small' and not sampler.scan_weights:
        say(f'note: the scan network {sampler.scan_network} starts from random weights, that of the paper from ImageNet: '
            f'set --config.model.sampler.scan_weights to a torchvision .pth or .safetensors file')
    state = create_train_state(config, learner)
    state = replicate(mesh, state)

    # ── Resume: the checkpoint with the highest step, or the start ──────────────────────────────────────────────────
    train = config.train
    check_settings(workdir / 'checkpoints', config, lambda key: not key.startswith(MAY_CHANGE_ON_RESUME))
    with only_run(workdir), Checkpoints(workdir / 'checkpoints', keep=train.keep_checkpoints, config=config) as checkpoints:
        start = checkpoints.latest_step or 0
        note_videos(workdir, start, [s for s in (train_set, val_set) if s is not None])
        if jax.process_index() == 0:
            (workdir / METHOD).write_text(f'{named(method, preset)}\n')
        if start:
            state, _ = checkpoints.restore(state)
            say(f'resumed from step {start}')
        else:
            state = with_pretrained_weights(state, config, mesh)

        # ── The loop ────────────────────────────────────────────────────────────────────────────────────────────────
        train_step = make_train_step(learner, config, mesh)
        before = None
        with contextlib.closing(loader.training_batches(
                train_set, config, start, jax.process_index(), jax.process_count())) as batches, \
                MetricWriter(workdir, train.log_steps, resume_step=start) as writer, \
                Progress(train.num_steps * train.episodes_per_step, 'training', 'episode', start * train.episodes_per_step) as progress:
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
                        val = evaluate(learner, state.variables, config, 'val', config.eval.val_episodes, mesh=mesh, dataset=val_set)
                        accuracy = {'val_accuracy': val['accuracy']}
                        writer.write(step, accuracy)
                        say(f"step {step}: val accuracy {val['accuracy']:.2%} ± {val['ci95']:.2%}")
                    checkpoints.save(step, state, accuracy)
        # ── Selection on val, then the only look at test ────────────────────────────────────────────────────────────────
        best, selected_on = select(checkpoints)
        state, _ = checkpoints.restore(state, best)
    return report(learner, state.variables, config, workdir, test_set, mesh, method, selected_on)


def evaluate_only(config: ml_collections.ConfigDict, workdir, method: str, published: str | None = None) -> dict:
    """Evaluates on config.eval.split: the best checkpoint of `workdir`, or a PyTorch checkpoint that the method's authors published.

    results.json stays that of the run: where `config` departs from its settings in what can change a number, or the weights are
    published ones, the results go to a file beside it whose name says so.

    Args:
      config: for a checkpoint of `workdir` as from `evaluation_config`, else as from configs/*.py.
      workdir: of a run; with `published` any directory.
      method: name for the results.
      published: path of a .pth or .safetensors file; None for the workdir's own checkpoint.

    Returns:
      The content of the results file.

    Raises:
      ValueError, FileNotFoundError: one line about what is wrong with the config, the data, the workdir or the file.
    """
    validate(config)
    workdir, mesh, departures = pathlib.Path(workdir), episode_mesh(), {}
    if not published:
        config = with_classes_of_run(config, run_config(workdir))
        check_settings(workdir / 'checkpoints', config, must_agree)
        departures = changed_settings(workdir / 'checkpoints', config, lambda key: not key.startswith(SAME_RESULTS))
    dataset = open_split(config, config.eval.split, config.eval.query)
    departing = ', '.join(f'{key}={here!r} ({there!r} in the run)' for key, (there, here) in departures.items())
    say(resolved_plan(config, 'evaluate', facts(config, mesh, [dataset]) | ({'not as the run': departing} if departing else {})))
    learner = create_learner(config.model)
    if published:
        variables = weights.load(published, config.model)
        selected_on, apart = f'published weights, {pathlib.Path(published).name}', {'weights': pathlib.Path(published).stem}
    else:
        variables, selected_on = best_of_run(workdir, mesh)
        apart = {key: here for key, (_, here) in departures.items()}
    return report(learner, variables, config, workdir, dataset, mesh, method, selected_on, apart)


def report(learner, variables, config, workdir, dataset, mesh, method, selected_on, apart=None) -> dict:
    """Evaluates once on config.eval.split, writes results.json or, where something sets it `apart`, a file beside it, prints the accuracy beside chance."""
    found = evaluate(learner, variables, config, config.eval.split, config.eval.num_episodes,
                     method=method, selected_on=selected_on, mesh=mesh, dataset=dataset)
    if config.eval.measured_episodes:
        measured = episodes_of(dataset, config, config.eval.split, config.eval.num_episodes)
        found |= measure(learner, variables, dataset, measured, config)
    if (workdir / TRAINED_ON).exists() and 'weights' not in (apart or {}):
        found['trained_on'] = json.loads((workdir / TRAINED_ON).read_text())
    path = results.write_results(workdir, found, apart)
    say(f"{method}, {found['dataset']}, {found['split']}, {found['way']}-way {found['shot']}-shot: "
        f"{found['accuracy']:.2%} ± {found['ci95']:.2%} (95% interval over {found['num_episodes']} episodes; "
        f"chance {found['chance']:.0%}; selected on {selected_on})\n{path}")
    return found


def note_videos(workdir, start: int, datasets) -> None:
    """Writes which videos a run learns from and is selected on, for its results; ValueError where it would go on with others."""
    path, now = workdir / TRAINED_ON, {dataset.split: videos_present(dataset) for dataset in datasets}
    resumed = start and path.exists()
    before = json.loads(path.read_text()) if resumed else now
    for split in before.keys() & now.keys():
        if before[split]['hash'] != now[split]['hash']:
            raise ValueError(f"{workdir} holds a run that began with other {split} videos ({before[split]['present']:,} then, "
                             f"{now[split]['present']:,} now): use another --workdir, or the dataset as it was")
    if jax.process_index() == 0 and not resumed:
        path.write_text(json.dumps(now))


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
    """The config with the number of training classes where a classifier is trained (model.classifier.weight) and none is given."""
    classifier, found = config.model.classifier, len(np.unique(train_set.labels))
    if not classifier.weight or classifier.classes == found:
        return config
    if classifier.classes is not None:
        raise ValueError(f'config.model.classifier.classes={classifier.classes}, but {config.data.dataset} train has {found} classes: '
                         'leave it unset to take theirs')
    config = config.copy_and_resolve_references()
    config.model.classifier.classes = found
    return config


def with_classes_of_run(config, run):
    """The config with the number of training classes that the run counted, where it names none."""
    if config.model.classifier.classes is not None:
        return config
    config = config.copy_and_resolve_references()
    config.model.classifier.classes = run.model.classifier.classes
    return config


def fit_accumulation(config, devices: int):
    """The config with as few sequential parts as asked for, or fewer, so that each part has an episode for every device.

    The result of a step does not depend on it; 16 parts of one episode suit one GPU, 2 parts of 8 suit eight.
    """
    total, parts = config.train.episodes_per_step, config.train.accumulation_steps
    if total % devices:
        raise ValueError(f'config.train.episodes_per_step={total} must be a multiple of the {devices} devices of all processes: set '
                         f'--config.train.episodes_per_step={-(-total // devices) * devices}')
    fitting = max(p for p in range(1, parts + 1) if total % (p * devices) == 0)
    config = config.copy_and_resolve_references()
    config.train.accumulation_steps = fitting
    return config


@contextlib.contextmanager
def only_run(workdir):
    """Holds the workdir for this run; a second run in it is refused in one line, because the two would overwrite each other."""
    if jax.process_index():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / 'lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)       # let go by the system, however the process ends
        except BlockingIOError:
            raise ValueError(f'{workdir} is in use by another run: wait for it, or use another --workdir') from None
        yield


def with_pretrained_weights(state, config, mesh):
    """The state with parameters and statistics of a backbone, and of a sampler's scan network, where the config names a start: a file
    with torchvision's names (ImageNet), or the workdir of an earlier run, of which the best checkpoint counts."""
    backbone, sampler = config.model.backbone, config.model.sampler
    starts = (
        (('backbone',), 'model.backbone.weights', backbone.weights, weights.load_backbone, backbone),
        (('sampler', 'scan_network'), 'model.sampler.scan_weights', sampler.scan_weights, weights.load_scan_network, sampler.scan_network),
    )
    params, batch_stats = state.params, state.batch_stats
    for stage, key, path, read, kind in starts:
        if path and any(name.startswith('.'.join(stage) + '.') for name in flatten(params)):
            loaded = replicate(mesh, start_of(stage, key, path, params, mesh) or read(path, kind))
            params, batch_stats = (_placed(tree, stage, loaded[name]) for tree, name in ((params, 'params'), (batch_stats, 'batch_stats')))
    return state.replace(params=params, batch_stats=batch_stats)


def _placed(tree, stage, value):
    """The nested dict with `value` at the keys `stage`."""
    return tree | {stage[0]: _placed(tree.get(stage[0], {}), stage[1:], value)} if stage else value


def start_of(stage, key, path, params, mesh):
    """{'params', 'batch_stats'} of one stage ('sampler', 'scan_network') of the run in the workdir `path`; None where that is a file."""
    if not pathlib.Path(path).is_dir():
        return None
    variables, _ = best_of_run(path, mesh)
    inside = '.'.join(stage) + '.'
    there, here = ({name: (x.shape, x.dtype) for name, x in flatten(tree).items() if name.startswith(inside)}
                   for tree in (variables['params'], params))
    if there != here:
        raise ValueError(f'config.{key}={path} holds a run whose {" ".join(stage)} is another one: name a run with the same, or a file')
    return {kind: functools.reduce(lambda tree, name: tree[name], stage, variables[kind]) for kind in ('params', 'batch_stats')}


def run_config(workdir) -> ml_collections.ConfigDict:
    """The settings of the run in `workdir`, those that are younger than it at their defaults; FileNotFoundError where there is no run."""
    directory = pathlib.Path(workdir) / 'checkpoints'
    settings = saved_settings(directory)
    if not settings:
        raise FileNotFoundError(f'no checkpoint in {directory}: train first, or check --workdir')
    config = default_config().unlock()
    config.update_from_flattened_dict(settings)
    return config


def evaluation_config(config: ml_collections.ConfigDict, given: dict, workdir, method: str, preset: str = '') -> ml_collections.ConfigDict:
    """The settings with which `evaluate_only` evaluates the run in `workdir`: its own, but for what is given explicitly.

    Args:
      config: of the command line, as from configs/*.py with its flags.
      given: {'episode.shot': 2}, the values of the flags alone.
      workdir: of the run.
      method, preset: which config file and which preset of it the command line names.

    Raises:
      FileNotFoundError, ValueError: no run there, or one of another method or preset.
    """
    run, workdir = run_config(workdir), pathlib.Path(workdir)
    if (workdir / METHOD).exists():
        there, here = (workdir / METHOD).read_text().strip(), named(method, preset)
        if there != here:
            raise ValueError(f'{workdir} holds a run of {there}, not of {here}: evaluate it with the --config of its training, or another '
                             '--workdir')
    else:                                                              # a run from before its method was noted
        check_settings(workdir / 'checkpoints', with_classes_of_run(config, run), must_agree)
    run.update_from_flattened_dict(given)
    return run.lock()


def named(method: str, preset: str) -> str:
    """'strm.py', or with a preset 'strm.py:ssv2', as the command line has it."""
    return f'{method}.py:{preset}' if preset else f'{method}.py'


def best_of_run(workdir, mesh) -> tuple[dict, str]:
    """Variables of the checkpoint that counts in the run in `workdir`, built from the settings that lie beside it, and how it was chosen."""
    directory, config = pathlib.Path(workdir) / 'checkpoints', run_config(workdir)
    with Checkpoints(directory, config=config, read_only=True) as checkpoints:
        best, selected_on = select(checkpoints)
        like = jax.eval_shape(lambda: create_train_state(config, create_learner(config.model)))
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), like)
        state, _ = checkpoints.restore(like, best)
    return state.variables, selected_on


def record(writer, step: int, metrics: dict, checkpoints) -> None:
    """Writes the metrics of a finished step, and stops the run when its loss, or the parameters it leaves, are not finite."""
    losses = np.asarray(metrics['losses']).ravel()
    broken = ~np.isfinite(losses)
    if broken.any() or not metrics['finite']:
        what = 'loss' if broken.any() else 'update'                    # of the update, any episode may be the cause
        bad = (step - 1) * losses.size + np.flatnonzero(broken | (not broken.any()))
        last = checkpoints.latest_step
        raise FloatingPointError(
            f'the {what} of step {step} is not finite, in training episodes {bad.tolist()}; last good checkpoint: '
            f'{checkpoints.directory / str(last) if last else "none yet"}. Lower config.train.learning_rate or set config.train.clip_norm')
    writer.write(step, {'loss': metrics['loss'], 'accuracy': metrics['accuracy']})


def select(checkpoints) -> tuple[int, str]:
    """The checkpoint that counts and how it was chosen: the best on val, or the last where val was not looked at."""
    best = checkpoints.best_step
    if best is None:
        return checkpoints.latest_step, f'last step ({checkpoints.latest_step})'
    return best, f'val accuracy at step {best}'


TRAINED_ON, METHOD = 'trained_on.json', 'method.txt'
# Where the data lies, how it is read, and what is printed cannot change the parameters or the selection.
MAY_CHANGE_ON_RESUME = (
    'data.dir', 'data.num_threads', 'data.num_workers', 'data.prefetch', 'train.log_steps', 'train.keep_checkpoints',
    'train.accumulation_steps', 'model.backbone.weights', 'model.sampler.scan_weights', 'model.backbone.remat', 'eval.split',
    'eval.num_episodes', 'eval.cache', 'eval.episodes_file', 'eval.episodes_per_chunk', 'eval.videos_per_batch',
    'eval.measured_episodes')
# What makes the classifier; way, shot, dataset and precision may be others than in training.
MUST_AGREE_IN_EVALUATION = ('model.', 'episode.frames', 'episode.image_size', 'data.resize', 'data.sampling', 'data.short_videos')
FREE_IN_EVALUATION = ('model.dtype', 'model.backbone.weights', 'model.sampler.scan_weights', 'model.backbone.remat',
                      'model.sampler.at_test', 'model.align_at_test')


# Where the data lies, how it is read, and what of training is over cannot change the results of a checkpoint.
SAME_RESULTS = (
    'data.dir', 'data.num_threads', 'data.num_workers', 'data.prefetch', 'train.', 'model.backbone.weights', 'model.sampler.scan_weights',
    'model.backbone.remat', 'eval.cache', 'eval.val_episodes', 'eval.episodes_per_chunk', 'eval.videos_per_batch')


def must_agree(key: str) -> bool:
    """Whether an evaluation must have the value that the run has."""
    return key.startswith(MUST_AGREE_IN_EVALUATION) and key not in FREE_IN_EVALUATION


def changed_settings(directory, config, matters) -> dict[str, tuple]:
    """{key: (there, here)} of the settings that matter in which `config` departs from the run whose checkpoints lie there; {} without one."""
    settings = lambda config: flatten(json.loads(config.to_json()))
    before, now = saved_settings(directory), settings(config)
    if not before:
        return {}
    before = settings(default_config()) | before                       # a setting younger than the run is at its default
    return {key: (before.get(key), now.get(key)) for key in sorted(before | now) if matters(key) and before.get(key) != now.get(key)}


def check_settings(directory, config, matters) -> None:
    """Raises ValueError naming the settings that matter in which `config` departs from the run whose checkpoints lie there."""
    changed = '; '.join(f'{key}={there!r} there, {here!r} here' for key, (there, here) in changed_settings(directory, config, matters).items())
    if changed:
        raise ValueError(f'{directory} holds a run with other settings ({changed}): use another --workdir, or those settings')


def facts(config, mesh, datasets) -> dict[str, str]:
    """What the plan says beyond the config: devices, and the clips that are there."""
    kind = mesh.devices.flat[0]
    rows = {'devices': f'{mesh.size} x {kind.device_kind} ({kind.platform}), {jax.process_count()} process(es), compute in {config.model.dtype}'}
    total = jax.device_count()
    if mesh.size < total:
        all_used = -(-config.train.episodes_per_step // total) * total
        rows['devices'] += f'; {total - mesh.size} idle, --config.train.episodes_per_step={all_used} would use all {total}'
    for dataset in datasets:
        there = videos_present(dataset)
        few = int((np.asarray(dataset.num_frames) < frames_read(config)).sum()) if config.model.sampler.name != 'uniform' else 0
        absent = (there['expected_classes'] or 0) - there['classes']
        rows[f'data {dataset.split}'] = f'{config.data.dataset}: {len(np.unique(dataset.labels))} classes, {len(dataset)} clips' + (
            f' ({len(dataset.dropped)} shorter than {config.episode.frames} frames left out)' if len(dataset.dropped) else '') + (
            f", videos present {there['present']:,} of {there['expected']:,}" if there['expected'] else '') + (
            f", {absent} of its {there['expected_classes']} classes have no video" if absent > 0 else '') + (
            f', {few} of fewer than {frames_read(config)} frames: a sampler sees some of them twice' if few else '')
    rows['S, R  as stored'] = ', '.join(f'{key} {value}' for key, value in sorted(datasets[0].settings.items()))
    return rows
