"""A workdir, and what it says about its run: settings, method, videos, and which checkpoint
counts."""

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from fsar_jax.checksums import sha256_of
from fsar_jax.config import (
    SETTINGS,
    default_config,
    keys_that_affect,
    settings_by_key,
    with_newer_settings,
)
from fsar_jax.data.dataset import Videos, content_hash, videos_present
from fsar_jax.data.episodes import episodes_hash
from fsar_jax.evaluation.evaluate import episodes_of
from fsar_jax.files import read_json, write_whole
from fsar_jax.learner import create_learner
from fsar_jax.machine import file_lock
from fsar_jax.mesh import replicated
from fsar_jax.messages import listed, one_line, printable
from fsar_jax.stage import ArrayTree
from fsar_jax.training.checkpoint_files import CONFIG_FILE, saved_settings, step_directories
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.state import TrainState, create_train_state, schedules

TRAINED_ON, TESTED_ON, METHOD = 'trained_on.json', 'tested_on.json', 'method.txt'
# A run goes on with another value of these, because the parameters and the selection do not depend
# on them.
MAY_CHANGE_ON_RESUME = keys_that_affect('cost', 'start', 'evaluation', 'list')
# A checkpoint has the same results with another value of these, because its training is over.
SAME_RESULTS = keys_that_affect('cost', 'start', 'training', 'length')
(NUM_STEPS,) = keys_that_affect(
    'length'
)  # may change where no schedule depends on it, see `check_resumable`
(EPISODE_LIST,) = keys_that_affect('list')  # it counts by what it holds


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the workdir and holds it for the block.

    Raises:
      ValueError: another run holds it. The two would overwrite each other.
    """
    if jax.process_index():
        yield
        return
    make_workdir(workdir)
    with file_lock(
        workdir / 'lock',
        f'{workdir} is in use by another run: wait for it, or use another --workdir',
    ):
        yield


def make_workdir(workdir: str | os.PathLike[str]) -> None:
    """Makes the directory if it does not exist. OSError, one line, where that fails or nothing can
    be written in it."""
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


def note_videos(workdir: pathlib.Path, start: int, datasets: list[Videos]) -> None:
    """Writes which videos a run learns from and is selected on, for its results.

    Args:
      start: the step that the run goes on from.

    Raises:
      ValueError: it began with other videos.
    """
    path = workdir / TRAINED_ON
    now = {
        dataset.split: videos_present(dataset) | {'content': content_hash(dataset)}
        for dataset in datasets
    }
    resumed = start and path.exists()
    before = read_note(path) if resumed else now
    for split in before.keys() & now.keys():
        if before[split]['hash'] != now[split]['hash']:
            raise ValueError(
                f'{workdir} holds a run that began with other {split} videos '
                f"({before[split]['present']:,} then, {now[split]['present']:,} now): use another "
                '--workdir, or the dataset as it was'
            )
        if before[split].get('content', now[split]['content']) != now[split]['content']:
            raise ValueError(
                f'{workdir} holds a run that began with other pixels or labels of the same {split} '
                'videos: use another --workdir, or the dataset as it was'
            )
    if jax.process_index() == 0 and not resumed:
        write_whole(path, json.dumps(now))


def note_test(workdir: pathlib.Path, dataset: Videos, list_hash: str | None) -> None:
    """Writes what the run is evaluated on, so what results.json is of.

    list_hash: of the episodes, where a file lists them.
    """
    if jax.process_index() == 0:
        write_whole(
            workdir / TESTED_ON,
            json.dumps({dataset.split: {'content': content_hash(dataset), 'episodes': list_hash}}),
        )


def note_method(workdir: pathlib.Path, method: str, preset: str) -> None:
    """Writes which config file and preset the run is of."""
    if jax.process_index() == 0:
        write_whole(workdir / METHOD, f'{config_name(method, preset)}\n')


def read_note(path: pathlib.Path) -> dict:
    """The content of trained_on.json or tested_on.json, {split: {…}}; {} where there is no such
    file.

    Raises:
      ValueError: the file is damaged; one line.
    """
    if not path.exists():
        return {}
    advice = (
        'it says which videos the run began with; remove it to go on with those that are there now'
    )
    note = read_json(path, advice)
    needed = {'hash', 'present'} if path.name == TRAINED_ON else set()
    if not isinstance(note, dict) or not all(
        isinstance(split, dict) and needed <= split.keys() for split in note.values()
    ):
        raise ValueError(f'{path} is not as it was written: {advice}')
    return note


def run_config(workdir: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """The settings of the run in `workdir`. Settings that are newer than the run have their
    defaults.

    Raises:
      FileNotFoundError: there is no run.
      ValueError: its settings are damaged, or not those of this release.
    """
    directory = pathlib.Path(workdir) / 'checkpoints'
    settings = saved_settings(directory)
    if not settings:
        raise FileNotFoundError(
            f'no checkpoint in {printable(directory, 1000)}, or no {CONFIG_FILE} beside them: '
            'train first, or check --workdir'
        )
    config = default_config().unlock()
    try:
        config.update_from_flattened_dict(with_newer_settings(settings))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{printable(directory / CONFIG_FILE, 1000)} is damaged, or of a release with other '
            f'settings ({one_line(error)}): put back a copy of it'
        ) from None
    return config


def evaluation_config(
    config: ml_collections.ConfigDict,
    given: dict,
    workdir: str | os.PathLike[str],
    method: str,
    preset: str = '',
) -> ml_collections.ConfigDict:
    """The settings that `evaluate_only` evaluates the run in `workdir` with: those of the run. Only
    what is given explicitly overrides them.

    Args:
      config: of the command line, as from configs/*.py with its flags.
      given: {'episode.shot': 2}, the values of the explicit flags.
      workdir: of the run.
      method, preset: which config file and which preset of it the command line names.

    Raises:
      FileNotFoundError, ValueError: there is no run, or one of another method or preset.
    """
    run, workdir = run_config(workdir), pathlib.Path(workdir)
    if (workdir / METHOD).exists():
        trained, asked = read_method(workdir), config_name(method, preset)
        if trained != asked:
            raise ValueError(
                f'{workdir} holds a run of {trained}, not of {asked}: evaluate it with the '
                '--config of its training, or another --workdir'
            )
    else:  # a run of a release that did not write its method
        check_settings(workdir / 'checkpoints', with_classes_of_run(config, run), must_agree)
    run.update_from_flattened_dict(given)
    return run.lock()


def read_method(workdir: str | os.PathLike[str]) -> str:
    """The content of method.txt, for a message.

    Raises:
      ValueError: it is empty; one line.
    """
    path = pathlib.Path(workdir) / METHOD
    name = path.read_bytes().decode(errors='replace').strip()
    if not name:
        raise ValueError(
            f"{path} is empty: it names the config file of the run; write it there, e.g. "
            "'strm.py', or remove the file"
        )
    return printable(name)


def config_name(method: str, preset: str) -> str:
    """'strm.py', or with a preset 'strm.py:ssv2', as on the command line."""
    return f'{method}.py:{preset}' if preset else f'{method}.py'


class Selected(NamedTuple):
    """The checkpoint that counts.

    Attributes:
      state: on the devices.
      step: its step.
      how: how it was chosen, in words.
      damaged: steps that may be better, but are damaged.
      metrics: as saved with it, {'val_accuracy': …}.
    """

    state: TrainState
    step: int
    how: str
    damaged: list[int]
    metrics: dict[str, float]

    @property
    def changed(self) -> dict[str, tuple]:
        """As of `departures`: a damaged checkpoint may be the best, and another one is used."""
        return {'checkpoint': (max(self.damaged), self.step)} if self.damaged else {}


def best_of_run(workdir: str | os.PathLike[str], mesh: jax.sharding.Mesh) -> Selected:
    """The checkpoint that counts of the run in `workdir`, on the devices of the mesh.

    The state is built from the settings of the run, so nothing else has to be known of it.
    """
    directory, config = pathlib.Path(workdir) / 'checkpoints', run_config(workdir)
    with Checkpoints(directory, config=config, read_only=True) as checkpoints:
        like = jax.eval_shape(lambda: create_train_state(config, create_learner(config.model)))
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), like
        )
        return select(checkpoints, like)


def select(checkpoints: Checkpoints, like: ArrayTree) -> Selected:
    """The best checkpoint on val, or the last one where val was not evaluated. Where it is damaged,
    the next best, and `how` says so.

    like: the state, see `Checkpoints.restore`.
    """
    state, metrics = checkpoints.restore_best(like)
    best, damaged = checkpoints.best_step, checkpoints.damaged_and_better
    step = checkpoints.latest_step if best is None else best
    assert step is not None  # one has just been restored
    how = f'last step ({step})' if best is None else f'val accuracy at step {step}'
    if damaged:
        how += f' (damaged: step {listed(damaged)})'
    return Selected(state, step, how, damaged, metrics)


def with_classes_of_run(
    config: ml_collections.ConfigDict, run: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """The config with the number of training classes that the run counted, where it gives none."""
    if config.model.classifier.classes is not None:
        return config
    config = config.copy_and_resolve_references()
    config.model.classifier.classes = run.model.classifier.classes
    return config


def must_agree(key: str) -> bool:
    """Whether an evaluation must have the run's value of this setting."""
    return SETTINGS[key].affects == 'model' if key in SETTINGS else key.startswith('model.')


def changed_settings(
    directory: str | os.PathLike[str],
    config: ml_collections.ConfigDict,
    matters: Callable[[str], bool],
) -> dict[str, tuple]:
    """The settings in which `config` differs from a run.

    Args:
      directory: of the checkpoints of the run.
      matters: function of a key; which settings are compared.

    Returns:
      {key: (in the run, in `config`)}; {} where there is no run.
    """
    saved = saved_settings(directory)
    if not saved:
        return {}
    before, now = with_newer_settings(saved), settings_by_key(config)
    return {
        key: (before.get(key), now.get(key))
        for key in sorted(before | now)
        if matters(key) and before.get(key) != now.get(key)
    }


def departures(
    workdir: str | os.PathLike[str], config: ml_collections.ConfigDict, dataset: Videos
) -> dict[str, tuple]:
    """In what an evaluation of a run differs from the one that its results.json is of.

    Datasets and episode lists are compared by what they hold, wherever they lie. 'content' is the
    start of `content_hash`.

    Args:
      workdir: of the run.
      config: of this evaluation.
      dataset: the split that it evaluates.

    Returns:
      {key: (in the run, in this evaluation)}.
    """
    workdir = pathlib.Path(workdir)
    changed = changed_settings(
        workdir / 'checkpoints', config, lambda key: not key.startswith(SAME_RESULTS)
    )
    tested, content = read_note(workdir / TESTED_ON), content_hash(dataset)
    before = (read_note(workdir / TRAINED_ON) | tested).get(dataset.split, {})
    list_hash = hash_of_list(dataset, config)
    if tested and list_hash == before.get('episodes'):
        changed.pop(EPISODE_LIST, None)
    elif tested:  # also where the file of one path has changed
        changed.setdefault(
            EPISODE_LIST, ((before.get('episodes') or '')[:8] or None, config.eval.episodes_file)
        )
    if list_hash:  # the list decides how many, and nothing is drawn
        changed = {
            key: value
            for key, value in changed.items()
            if key not in SETTINGS or SETTINGS[key].unless != EPISODE_LIST
        }
    if not tested and 'content' not in before:  # a run of a release that did not note this
        before = {'content': content if seems_the_same(workdir, dataset) else None}
    if before.get('content') != content:
        changed['content'] = (before.get('content') and before['content'][:8], content[:8])
    return changed


def seems_the_same(workdir: pathlib.Path, dataset: Videos) -> bool:
    """Whether the run's results may be of this dataset: False where they say that they are of other
    videos or records."""
    path = workdir / (
        'results.json' if dataset.split == 'test' else f'results_{dataset.split}.json'
    )
    if not path.exists():
        return True
    found = read_json(path, 'remove it and evaluate again')
    present = (found.get('videos_present') or {}).get('hash') if isinstance(found, dict) else None
    return present == videos_present(dataset)['hash'] and found.get('records') == dataset.settings


def hash_of_list(dataset: Videos, config: ml_collections.ConfigDict) -> str | None:
    """`episodes_hash` of the list in config.eval.episodes_file; None where there is none."""
    if not config.eval.episodes_file:
        return None
    return episodes_hash(dataset, episodes_of(dataset, config, config.eval.num_episodes))


def departures_of_published(
    config: ml_collections.ConfigDict,
    given: dict,
    dataset: Videos,
    published: str | os.PathLike[str],
) -> dict[str, tuple]:
    """What a results file of published weights is named after, as from `departures`: the weights,
    the settings that are given explicitly, and what decides the results.

    Args:
      given: {'episode.shot': 2}.
      published: path of the weights.
    """
    given = {key: value for key, value in given.items() if not key.startswith(SAME_RESULTS)}
    names = {
        'weights': pathlib.Path(published).stem,
        **given,
        'content': content_of_evaluation(config, dataset, published)[:8],
    }
    return {key: (None, value) for key, value in names.items()}


def content_of_evaluation(
    config: ml_collections.ConfigDict, dataset: Videos, published: str | os.PathLike[str]
) -> str:
    """SHA-256 of all that decides the results of published weights: the bytes of the file, the
    settings, the videos and the list of episodes."""
    settings = settings_by_key(config)
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


def check_settings(
    directory: str | os.PathLike[str],
    config: ml_collections.ConfigDict,
    matters: Callable[[str], bool],
) -> None:
    """Raises ValueError, one line, where `config` differs from a run. Arguments as of
    `changed_settings`."""
    changed = '; '.join(
        f'{key}={before!r} there, {now!r} here'
        for key, (before, now) in changed_settings(directory, config, matters).items()
    )
    if changed:
        raise ValueError(
            f'{directory} holds a run with other settings ({changed}): use another --workdir, or '
            'those settings'
        )


def check_resumable(directory: str | os.PathLike[str], config: ml_collections.ConfigDict) -> None:
    """Checks that a run can go on with these settings. Another train.num_steps lengthens a run, or
    shortens it, if the steps that it has done would have been the same.

    directory: of the checkpoints of the run.

    Raises:
      ValueError: it cannot; one line with the settings in question and what to do.
    """
    check_settings(directory, config, lambda key: key not in (NUM_STEPS, *MAY_CHANGE_ON_RESUME))
    before, now = saved_settings(directory).get(NUM_STEPS), config.train.num_steps
    if before in (None, now):
        return
    done = max(int(path.name) for path in step_directories(pathlib.Path(directory)))
    if now < done:
        raise ValueError(
            f'{directory} holds a run that has done {done} steps, more than '
            f'config.train.num_steps={now}: set at least {done}, or use another --workdir'
        )
    earlier, learner = config.copy_and_resolve_references(), create_learner(config.model)
    earlier.train.num_steps = before
    in_run, here = (
        {
            name: np.asarray(jax.vmap(schedule)(np.arange(min(before, now) + 1)))
            for name, schedule in schedules(each, learner).items()
        }
        for each in (earlier, config)
    )
    differing = [name for name in in_run if not np.array_equal(in_run[name], here[name])]
    if differing:
        raise ValueError(
            f'{directory} holds a run with other settings ({NUM_STEPS}={before} there, {now} '
            f'here), and its {" and its ".join(differing)} would have been another one from the '
            f'start: train {now} steps in another --workdir, or set {NUM_STEPS}={before}'
        )
