"""A workdir and what it says about its run: settings, method, videos, and the checkpoint that
counts."""

import contextlib
import hashlib
import json
import pathlib
import tempfile
from typing import NamedTuple

import jax
import ml_collections

from fsar_jax.checksums import sha256_of
from fsar_jax.config import SETTINGS, default_config, flatten, keys_that_affect
from fsar_jax.data.dataset import content_hash, videos_present
from fsar_jax.data.episodes import episodes_hash
from fsar_jax.evaluation.evaluate import episodes_of
from fsar_jax.files import read_json, write_whole
from fsar_jax.learner import create_learner
from fsar_jax.machine import file_lock
from fsar_jax.mesh import replicated
from fsar_jax.messages import listed, one_line, printable
from fsar_jax.training.checkpoint_files import CONFIG_FILE, saved_settings
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.state import create_train_state

TRAINED_ON, TESTED_ON, METHOD = 'trained_on.json', 'tested_on.json', 'method.txt'
# A run goes on with another value of these, because the parameters and the selection do not depend
# on them.
MAY_CHANGE_ON_RESUME = keys_that_affect('cost', 'start', 'evaluation', 'list')
# A checkpoint has the same results with another value of these, because its training is over.
SAME_RESULTS = keys_that_affect('cost', 'start', 'training')
(EPISODE_LIST,) = keys_that_affect('list')  # it counts by what it holds


@contextlib.contextmanager
def only_run(workdir):
    """Holds the workdir for this run; a second run in it is refused in one line, because the two
    would overwrite each other."""
    if jax.process_index():
        yield
        return
    make_workdir(workdir)
    with file_lock(
        workdir / 'lock',
        f'{workdir} is in use by another run: wait for it, or use another --workdir',
    ):
        yield


def make_workdir(workdir) -> None:
    """Makes the directory where it is not there; OSError, one line, where that or writing in it
    fails."""
    workdir = pathlib.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise type(error)(
            f'--workdir={printable(workdir, 1000)} is a file, or lies below one: name a folder, '
            'new or of an earlier run'
        ) from None
    try:
        tempfile.TemporaryFile(dir=workdir).close()
    except OSError as error:  # it names the temporary file
        raise type(error)(error.errno, error.strerror, str(workdir)) from None


def note_videos(workdir, start: int, datasets) -> None:
    """Writes which videos a run learns from and is selected on, for its results; ValueError where
    it would go on with others."""
    path = workdir / TRAINED_ON
    now = {
        dataset.split: videos_present(dataset) | {'content': content_hash(dataset)}
        for dataset in datasets
    }
    resumed = start and path.exists()
    before = noted(path) if resumed else now
    for split in before.keys() & now.keys():
        if before[split]['hash'] != now[split]['hash']:
            raise ValueError(
                f"{workdir} holds a run that began with other {split} videos "
                f"({before[split]['present']:,} then, "
                f"{now[split]['present']:,} now): use another --workdir, or the dataset as it was"
            )
        if before[split].get('content', now[split]['content']) != now[split]['content']:
            raise ValueError(
                f'{workdir} holds a run that began with other pixels or labels of the same {split} '
                'videos: use another '
                '--workdir, or the dataset as it was'
            )
    if jax.process_index() == 0 and not resumed:
        write_whole(path, json.dumps(now))


def note_test(workdir, dataset, listed: str | None) -> None:
    """Writes what the run is evaluated on, of which results.json is. listed: hash of the episodes
    where a file lists them."""
    if jax.process_index() == 0:
        write_whole(
            workdir / TESTED_ON,
            json.dumps({dataset.split: {'content': content_hash(dataset), 'episodes': listed}}),
        )


def noted(path) -> dict:
    """What trained_on.json or tested_on.json says, {split: {…}}; {} where there is none;
    ValueError, one line, for a damaged one."""
    if not path.exists():
        return {}
    known = read_json(
        path,
        remedy
        := 'it says which videos the run began with; remove it to go on with those that are there '
        'now',
    )
    whole = isinstance(known, dict) and all(isinstance(split, dict) for split in known.values())
    if (
        not whole
        or path.name == TRAINED_ON
        and not all({'hash', 'present'} <= split.keys() for split in known.values())
    ):
        raise ValueError(f'{path} is not as it was written: {remedy}')
    return known


def run_config(workdir) -> ml_collections.ConfigDict:
    """The settings of the run in `workdir`, those that are younger than it at their defaults;
    FileNotFoundError where there is no run."""
    directory = pathlib.Path(workdir) / 'checkpoints'
    settings = saved_settings(directory)
    if not settings:
        raise FileNotFoundError(
            f'no checkpoint in {printable(directory, 1000)}, or no {CONFIG_FILE} beside them: '
            'train first, or check --workdir'
        )
    config = default_config().unlock()
    try:
        config.update_from_flattened_dict(settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{printable(directory / CONFIG_FILE, 1000)} is damaged, or of a release with other '
            f'settings ({one_line(error)}): '
            'put back a copy of it'
        ) from None
    return config


def evaluation_config(
    config: ml_collections.ConfigDict, given: dict, workdir, method: str, preset: str = ''
) -> ml_collections.ConfigDict:
    """The settings with which `evaluate_only` evaluates the run in `workdir`: its own, but for what
    is given explicitly.

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
        there, here = method_of(workdir), named(method, preset)
        if there != here:
            raise ValueError(
                f'{workdir} holds a run of {there}, not of {here}: evaluate it with the --config '
                'of its training, or another '
                '--workdir'
            )
    else:  # a run from before its method was noted
        check_settings(workdir / 'checkpoints', with_classes_of_run(config, run), must_agree)
    run.update_from_flattened_dict(given)
    return run.lock()


def method_of(workdir) -> str:
    """The content of method.txt, for a message; ValueError, one line, where it is damaged."""
    path = pathlib.Path(workdir) / METHOD
    there = path.read_bytes().decode(errors='replace').strip()
    if not there:
        raise ValueError(
            f"{path} is empty: it names the config file of the run; write it there, e.g. "
            "'strm.py', or remove the file"
        )
    return printable(there)


def named(method: str, preset: str) -> str:
    """'strm.py', or with a preset 'strm.py:ssv2', as the command line has it."""
    return f'{method}.py:{preset}' if preset else f'{method}.py'


class Selected(NamedTuple):
    """The checkpoint that counts: its state, its step, how it was chosen, the damaged steps that
    may be better, and its metrics ('val_accuracy')."""

    state: object
    step: int
    how: str
    damaged: list[int]
    metrics: dict[str, float]


def best_of_run(workdir, mesh) -> Selected:
    """The checkpoint that counts in the run in `workdir`, on the mesh; the state is built from the
    settings that lie beside it."""
    directory, config = pathlib.Path(workdir) / 'checkpoints', run_config(workdir)
    with Checkpoints(directory, config=config, read_only=True) as checkpoints:
        like = jax.eval_shape(lambda: create_train_state(config, create_learner(config.model)))
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), like
        )
        return select(checkpoints, like)


def select(checkpoints, like) -> Selected:
    """The best on val, or the last where val was not looked at; the next best where that is
    damaged, and `how` says so."""
    state, metrics = checkpoints.restore_best(like)
    best, damaged = checkpoints.best_step, checkpoints.damaged_and_better
    step = checkpoints.latest_step if best is None else best
    how = f'last step ({step})' if best is None else f'val accuracy at step {step}'
    how += f' (damaged: step {listed(damaged)})' if damaged else ''
    return Selected(state, step, how, damaged, metrics)


def with_classes_of_run(config, run):
    """The config with the number of training classes that the run counted, where it names none."""
    if config.model.classifier.classes is not None:
        return config
    config = config.copy_and_resolve_references()
    config.model.classifier.classes = run.model.classifier.classes
    return config


def must_agree(key: str) -> bool:
    """Whether an evaluation must have the value that the run has."""
    return SETTINGS[key].affects == 'model' if key in SETTINGS else key.startswith('model.')


def changed_settings(directory, config, matters) -> dict[str, tuple]:
    """{key: (there, here)} of the settings that matter in which `config` departs from the run whose
    checkpoints lie there; {} without one."""
    settings = lambda config: flatten(json.loads(config.to_json()))
    before, now = saved_settings(directory), settings(config)
    if not before:
        return {}
    before = settings(default_config()) | before  # a setting younger than the run is at its default
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before | now)
        if matters(key) and before.get(key) != now.get(key)
    }


def departures(workdir, config, dataset) -> dict[str, tuple]:
    """{key: (in the run, here)} of all in which an evaluation of the run's checkpoint departs from
    the one that results.json is of.

    Data and episode lists count by what they hold, wherever they lie: 'content' is the start of
    `content_hash`.

    Args:
      workdir: of the run.
      config: of this evaluation.
      dataset: the open split that it evaluates.
    """
    workdir = pathlib.Path(workdir)
    changed = changed_settings(
        workdir / 'checkpoints', config, lambda key: not key.startswith(SAME_RESULTS)
    )
    tested = noted(workdir / TESTED_ON)
    then, content = (
        (noted(workdir / TRAINED_ON) | tested).get(dataset.split, {}),
        content_hash(dataset),
    )
    listed = hash_of_list(dataset, config)
    if tested and listed == then.get('episodes'):
        changed.pop(EPISODE_LIST, None)
    elif tested:  # also where the file of one path has changed
        changed.setdefault(
            EPISODE_LIST, ((then.get('episodes') or '')[:8] or None, config.eval.episodes_file)
        )
    if listed:  # it decides how many, and nothing is drawn
        changed = {
            key: value
            for key, value in changed.items()
            if key not in SETTINGS or SETTINGS[key].unless != EPISODE_LIST
        }
    if not tested:  # a run from before this was noted
        then = (
            then
            if 'content' in then
            else {'content': content if seems_the_same(workdir, dataset) else None}
        )
    if then.get('content') != content:
        changed['content'] = (then.get('content') and then['content'][:8], content[:8])
    return changed


def seems_the_same(workdir, dataset) -> bool:
    """Whether nothing in the results that are there says that they are of other videos or records
    than `dataset`."""
    path = workdir / (
        'results.json' if dataset.split == 'test' else f'results_{dataset.split}.json'
    )
    if not path.exists():
        return True
    there = read_json(path, 'remove it and evaluate again')
    present = (there.get('videos_present') or {}).get('hash') if isinstance(there, dict) else None
    return present == videos_present(dataset)['hash'] and there.get('records') == dataset.settings


def hash_of_list(dataset, config) -> str | None:
    """`episodes_hash` of the list in config.eval.episodes_file; None where there is none."""
    if not config.eval.episodes_file:
        return None
    return episodes_hash(
        dataset, episodes_of(dataset, config, config.eval.split, config.eval.num_episodes)
    )


def content_of_evaluation(config, dataset, published) -> str:
    """SHA-256 of all that decides the results of published weights: bytes of the file, settings,
    videos, and a list of episodes."""
    settings = flatten(json.loads(config.to_json()))
    settings = {
        key: value
        for key, value in settings.items()
        if not key.startswith((*SAME_RESULTS, EPISODE_LIST))
    }
    everything = [
        sha256_of(published),
        settings,
        content_hash(dataset),
        hash_of_list(dataset, config),
    ]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def check_settings(directory, config, matters) -> None:
    """Raises ValueError naming the settings that matter in which `config` departs from the run
    whose checkpoints lie there."""
    changed = '; '.join(
        f'{key}={there!r} there, {here!r} here'
        for key, (there, here) in changed_settings(directory, config, matters).items()
    )
    if changed:
        raise ValueError(
            f'{directory} holds a run with other settings ({changed}): use another --workdir, or '
            'those settings'
        )
