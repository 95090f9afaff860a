"""Shards on disk, written one at a time, each finished for good.

A shard is an ArrayRecord file and, beside it, a JSON note with what is in it and what was left out.
The note is written last: a shard without one does not count and is written again. The note also
carries a fingerprint of everything that decides the records, so that what another list of videos or
other settings left behind is never taken over.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import socket
import threading
from collections.abc import Iterable

from array_record.python import array_record_module

from fsar_jax.checksums import sha256_of

_naming = threading.Lock()  # held while files of shards come or get their names

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """The disk took no more; what is finished is kept."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Shard `number` of the `count` that split `split` has; `sources` are the VideoSources that go
    into it, in order."""

    split: str
    number: int
    count: int
    file_name: str
    sources: tuple
    fingerprint: str


def cut_into_shards(
    dataset: str, splits: dict[str, list], length: int, decides: dict
) -> list[Shard]:
    """All shards of all splits, `length` videos each.

    decides: JSON, whatever besides the sources decides the records: settings, class names, version.
    """
    shards = []
    for split, sources in splits.items():
        count = -(-len(sources) // length)
        for number in range(count):
            part = tuple(sources[number * length : (number + 1) * length])
            # Not the paths, which differ from machine to machine, but whether there is a file at
            # all.
            listed = [(s.video_id, s.label, s.name, s.origin is None) for s in part]
            text = json.dumps([decides, split, number, count, listed], sort_keys=True, default=list)
            file_name = f'{dataset}-{split}.array_record-{number:05d}-of-{count:05d}'
            shards.append(
                Shard(
                    split, number, count, file_name, part, hashlib.sha256(text.encode()).hexdigest()
                )
            )
    return shards


def read_note(folder: pathlib.Path, shard: Shard) -> dict | None:
    """What is in a finished shard; None when it is not finished, or is one of another list or other
    settings."""
    try:
        note = json.loads((folder / f'{shard.file_name}.json').read_text())
        size = (folder / shard.file_name).stat().st_size
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict) or (note.get('fingerprint'), note.get('file_bytes')) != (
        shard.fingerprint,
        size,
    ):
        return None
    return note


def write_shard(folder: pathlib.Path, shard: Shard, records: Iterable[bytes], note: dict) -> None:
    """Writes the records, then the note; `note` may be filled while the records are drawn.

    Raises:
      DiskFullError: nothing of this shard is left.
    """
    draft = folder / f'.{shard.file_name}{_draft_ending()}'
    draft_note = draft.with_name(draft.name + '.json')
    try:
        count, size = _write_records(draft, records)
        with _naming:
            _check_count(draft, count)
            written = {
                'file_bytes': draft.stat().st_size,
                'sha256': sha256_of(draft),
                'record_bytes': size,
            }
            note = {'fingerprint': shard.fingerprint} | written | note
            with open(draft_note, 'w') as file:
                json.dump(note, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(folder / shard.file_name)
            draft_note.replace(folder / f'{shard.file_name}.json')
    except (OSError, RuntimeError, ValueError) as error:
        if not _is_disk_full(error, folder):
            raise
        raise DiskFullError(
            errno.ENOSPC, f'no room for shard {shard.number + 1} of {shard.count} of {shard.split}'
        ) from None
    finally:
        for path in (draft, draft_note):
            path.unlink(missing_ok=True)


def stop_writing(folder: pathlib.Path) -> None:
    """For the end of the process, in another thread: a shard that is nearly finished gets its name,
    then nothing more does."""
    _naming.acquire()  # for good
    for path in folder.iterdir():
        if path.name.removesuffix('.json').endswith(_draft_ending()):
            path.unlink(missing_ok=True)


def _draft_ending():
    """Two machines that write the same shard do not meet: the files get their names when they are
    whole."""
    return f'.{socket.gethostname()}.{os.getpid()}'


def _check_count(path, count):
    """OSError where the file does not hold all records: the disk was full, and the writer did not
    notice."""
    found = array_record_module.ArrayRecordReader(os.fspath(path))
    try:
        if found.num_records() != count:
            raise OSError(errno.ENOSPC, f'{count} records written, {found.num_records()} found')
    finally:
        found.close()


def _write_records(path, records):
    """(how many, bytes of them). Without compression: JPEG does not shrink, and reading and writing
    are twice as fast."""
    count = size = 0
    with _naming:
        writer = array_record_module.ArrayRecordWriter(os.fspath(path), 'group_size:1,uncompressed')
    try:
        for record in records:
            writer.write(record)
            count, size = count + 1, size + len(record)
    finally:
        writer.close()
    with open(path, 'rb') as file:
        os.fsync(file.fileno())
    return count, size


def _is_disk_full(error, folder):
    """The writer is C++ code whose errors carry no number, only words."""
    words = str(error)
    return (
        getattr(error, 'errno', None) in DISK_FULL
        or any(os.strerror(code) in words for code in DISK_FULL)
        or 'RESOURCE_EXHAUSTED' in words
    )


def remove_all_but(folder: pathlib.Path, shards: list[Shard]) -> None:
    """Removes drafts, and the shards of other plans."""
    keep = {shard.file_name for shard in shards}
    for path in folder.iterdir():
        if '.array_record-' in path.name and path.name.removesuffix('.json') not in keep:
            path.unlink()


def remove_notes(folder: pathlib.Path) -> None:
    """Removes what only a restart needs: after the dataset has its final name, so that a kill never
    costs a shard."""
    for path in folder.glob('*.array_record-*.json'):
        path.unlink()
