"""Finds how an evaluation differs from the one in results.json"""

import hashlib
import json
import os
import pathlib

import ml_collections

from fsar_jax.checksums import sha256_of
from fsar_jax.config import SETTINGS, keys_that_affect, settings_by_key
from fsar_jax.data.dataset import Videos, content_hash, videos_present
from fsar_jax.data.episodes import episodes_hash
from fsar_jax.evaluation.evaluate import episodes_of
from fsar_jax.evaluation.results import file_stem
from fsar_jax.files import read_json
from fsar_jax.training.run_settings import SAME_RESULTS, changed_settings
from fsar_jax.training.workdir import TESTED_ON, TRAINED_ON, read_note

(EPISODE_LIST,) = keys_that_affect('list')  # compared by what it holds


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
    changed = changed_settings(workdir / 'checkpoints', config, lambda key: key not in SAME_RESULTS)
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
    path = workdir / f'{file_stem(dataset.split)}.json'
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
    before: dict,
) -> dict[str, tuple]:
    """What a results file of published weights is named after, as from `departures`: the weights,
    the settings that are given explicitly, and what decides the results.

    Args:
      given: {'episode.shot': 2}.
      published: path of the weights.
      before: {key: value}, the settings of an exported run, of which those that are given again
        say nothing; {} for other weights.
    """
    now = settings_by_key(config)
    given = {
        key: value
        for key, value in given.items()
        if key not in SAME_RESULTS and not (key in before and before[key] == now.get(key))
    }
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
        key: value for key, value in settings.items() if key not in (*SAME_RESULTS, EPISODE_LIST)
    }
    everything = [
        sha256_of(published),
        settings,
        content_hash(dataset),
        hash_of_list(dataset, config),
    ]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
