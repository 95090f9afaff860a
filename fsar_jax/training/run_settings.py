"""The settings of a run, and which of them may change when it is resumed or evaluated."""

import os
import pathlib
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from fsar_jax.config import (
    SETTINGS,
    default_config,
    keys_that_affect,
    settings_by_key,
    with_newer_settings,
)
from fsar_jax.fields import complaint
from fsar_jax.learner import create_learner
from fsar_jax.matchers.classifier import classes_as_counted
from fsar_jax.messages import differences, one_line, printable
from fsar_jax.training.checkpoint_files import CONFIG_FILE, saved_settings, step_directories
from fsar_jax.training.state import schedules
from fsar_jax.training.workdir import METHOD, config_name, name_of_old_preset, read_method

# These may change when a run is resumed, because the parameters and the selection do not depend on
# them.
MAY_CHANGE_ON_RESUME = keys_that_affect('cost', 'start', 'evaluation', 'list')
# These do not change the results of a checkpoint, because its training is over.
SAME_RESULTS = keys_that_affect('cost', 'start', 'training', 'length')
# May change if no schedule depends on it, see `check_resumable`.
(NUM_STEPS,) = keys_that_affect('length')


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
    """The settings with which `evaluate_only` evaluates the run in `workdir`: those of the run.
    Only explicit flags override them.

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


def with_classes_of_run(
    config: ml_collections.ConfigDict, run: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
    """The config; if it gives no number of training classes, with the number that the run
    counted."""
    config = config.copy_and_resolve_references()
    classes_as_counted(config.model, run.model)
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


def check_settings(
    directory: str | os.PathLike[str],
    config: ml_collections.ConfigDict,
    matters: Callable[[str], bool],
    name: str = '',
) -> None:
    """Raises ValueError, one line, where `config` differs from a run. Arguments as of
    `changed_settings`, and `name` as of `check_resumable`."""
    changed = changed_settings(directory, config, matters)
    if not changed:
        return
    before, now = ({key: pair[i] for key, pair in changed.items()} for i in (0, 1))
    differing = '; '.join(differences(before, now))
    # A run from before one of the settings may be of another meaning of the preset.
    newer = changed.keys() - saved_settings(directory).keys()
    was = name_of_old_preset(name) if newer else ''
    advice = f'go on with --config=configs/{was}, which is what {name} was' if was else ''
    raise ValueError(
        f'{directory} holds a run with other settings ({differing}): use another --workdir, or '
        f'{advice or "those settings"}'
    )


def check_resumable(
    directory: str | os.PathLike[str], config: ml_collections.ConfigDict, name: str = ''
) -> None:
    """Checks that a run can be resumed with these settings. train.num_steps may change if the steps
    that the run has done would have been the same.

    directory: of the checkpoints of the run.
    name: of the config file and preset, 'strm.py:ssv2'.

    Raises:
      ValueError: it cannot; one line with the settings in question and what to do.
    """
    free = (NUM_STEPS, *MAY_CHANGE_ON_RESUME)
    check_settings(directory, config, lambda key: key not in free, name)
    before, now = saved_settings(directory).get(NUM_STEPS), config.train.num_steps
    if before in (None, now):
        return
    if wrong := complaint(SETTINGS[NUM_STEPS], before):
        raise ValueError(
            f'{printable(pathlib.Path(directory) / CONFIG_FILE, 1000)} is damaged: '
            f'{NUM_STEPS}={before!r} {wrong}; put back a copy of it'
        )
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
