"""Locks a workdir, and keeps notes in it of the method and the videos of its run."""

import contextlib
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

import jax

from fsar_jax.config import flatten
from fsar_jax.data.dataset import Videos, content_hash, videos_present
from fsar_jax.data.episodes import clips_by_class
from fsar_jax.files import read_json, write_whole
from fsar_jax.machine import file_lock
from fsar_jax.messages import differences, printable

TRAINED_ON, TESTED_ON, METHOD = 'trained_on.json', 'tested_on.json', 'method.txt'
CLASSIFIERS = 'classifiers.npz'  # of fsar_jax.pretrain


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Creates the workdir if necessary, and locks it for the block.

    Raises:
      ValueError: another run has locked it. The two would overwrite each other.
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


def refuse_classifiers(workdir: pathlib.Path) -> None:
    """ValueError where the folder is of fsar_jax.pretrain: its checkpoint is no step of a run."""
    if (workdir / CLASSIFIERS).exists():
        raise ValueError(
            f'{printable(workdir, 1000)} holds what fsar_jax.pretrain has trained: name another '
            '--workdir, and give this one as the weights to start from'
        )


def note_videos(workdir: pathlib.Path, start: int, datasets: list[Videos]) -> None:
    """Notes which videos a run is trained and selected on, for its results.

    Args:
      start: the step from which the run continues.

    Raises:
      ValueError: it began with other videos.
    """
    path = workdir / TRAINED_ON
    now = {
        dataset.split: videos_present(dataset)
        | {'content': content_hash(dataset), 'records': dataset.settings}
        | ({'extractor': dataset.extractor} if dataset.extractor else {})
        | ({'limited_to': ids_by_class(dataset)} if dataset.clips_per_class else {})
        for dataset in datasets
    }
    resumed = start and path.exists()
    before = read_note(path) if resumed else now
    check_extractor(before, datasets[0].extractor, workdir)
    for split in before.keys() & now.keys():
        if before[split]['hash'] != now[split]['hash']:
            raise ValueError(
                f'{workdir} holds a run that began with other {split} videos '
                f"({before[split]['present']:,} then, {now[split]['present']:,} now): use another "
                '--workdir, or the dataset as it was'
            )
        if before[split].get('content', now[split]['content']) != now[split]['content']:
            what = 'features' if datasets[0].extractor else 'pixels'
            raise ValueError(
                f'{workdir} holds a run that began with other {what} or labels of the same {split} '
                'videos: use another --workdir, or the dataset as it was'
            )
    if jax.process_index() == 0 and not resumed:
        write_whole(path, json.dumps(now))


def ids_by_class(dataset: Videos) -> dict[str, list[str]]:
    """{class: ids of its videos}, both in the order of names."""
    return {
        dataset.class_names[label]: [dataset.video_ids[position] for position in positions]
        for label, positions in clips_by_class(dataset)
    }


def check_extractor(trained_on: dict, extractor: dict, where: str | os.PathLike[str]) -> None:
    """Checks that a model which was trained on features sees those of the same backbone again.

    Args:
      trained_on: as in trained_on.json.
      extractor: of the features that it shall see; {} for frames.
      where: the workdir or the file of the model, for the error.

    Raises:
      ValueError: the features are made in another way; one line that says how.
    """
    then = next((x['extractor'] for x in trained_on.values() if 'extractor' in x), None)
    if then is None or then == extractor:
        return
    differing = differences(flatten(then), flatten(extractor))
    raise ValueError(
        f'{printable(where, 1000)} holds a model of other features ({"; ".join(differing)}): set '
        'config.data.features to a folder that the same backbone has made in the same way'
    )


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


def name_of_old_preset(name: str) -> str:
    """What 'vim.py:otam-ssv2' meant before X + VIM had an alignment: 'vim.py:otam-sampler-ssv2'; ''
    for a preset that has not changed."""
    behind = re.fullmatch(r'(vim\.py:(?:otam|trx|hyrsm|strm))((?!-sampler)-.*)?', name)
    return f'{behind[1]}-sampler{behind[2] or ""}' if behind else ''
