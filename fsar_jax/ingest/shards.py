"""Writes shards to disk, one at a time; a finished shard is never touched again.

A shard is an ArrayRecord file and, beside it, a JSON note of what it holds and what was left out.
The note is written last: a shard without a note does not count and is written again. The note also
has a fingerprint of everything that decides the records, so that shards of another list of videos
or of other settings are never used.
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

_naming = threading.Lock()  # held while files of shards are created or renamed

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """The disk is full; finished shards are kept."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Shard `number` of the `count` shards of a split; `sources` are its VideoSources, in order."""

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

    decides: JSON, what decides the records besides the sources: settings, class names, version.
    """
    shards = []
    for split, sources in splits.items():
        count = -(-len(sources) // length)
        for number in range(count):
            part = tuple(sources[number * length : (number + 1) * length])
            # Paths differ from machine to machine and do not count, only whether there is a file.
            listed = [(s.video_id, s.label, s.name, s.origin is None) for s in part]
            text = json.dumps([decides, split, number, count, listed], sort_keys=True, default=list)
            fingerprint = hashlib.sha256(text.encode()).hexdigest()
            file_name = f'{dataset}-{split}.array_record-{number:05d}-of-{count:05d}'
            shards.append(Shard(split, number, count, file_name, part, fingerprint))
    return shards


def read_note(folder: pathlib.Path, shard: Shard) -> dict | None:
    """The note of a finished shard; None when it is not finished, or is of another list or of other
    settings."""
    try:
        note = json.loads((folder / f'{shard.file_name}.json').read_text())
        size = (folder / shard.file_name).stat().st_size
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict):
        return None
    same = (note.get('fingerprint'), note.get('file_bytes')) == (shard.fingerprint, size)
    return note if same else None


def write_shard(folder: pathlib.Path, shard: Shard, records: Iterable[bytes], note: dict) -> None:
    """Writes the records, then the note. `records` may fill `note` while it is iterated.

    Raises:
      DiskFullError: no part of this shard is left on the disk.
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
        if not _is_disk_full(error):
            raise
        raise DiskFullError(
            errno.ENOSPC, f'no room for shard {shard.number + 1} of {shard.count} of {shard.split}'
        ) from None
    finally:
        for path in (draft, draft_note):
            path.unlink(missing_ok=True)


def stop_writing(folder: pathlib.Path) -> None:
    """Called in another thread when the process ends: a shard that is being renamed is finished,
    then no other is."""
    _naming.acquire()  # never released
    for path in folder.iterdir():
        if path.name.removesuffix('.json').endswith(_draft_ending()):
            path.unlink(missing_ok=True)


def _draft_ending():
    """The end of a draft's name, so that two machines may write the same shard at once: files get
    their final names when they are whole."""
    return f'.{socket.gethostname()}.{os.getpid()}'


def _check_count(path, count):
    """OSError unless the file holds all records: where the disk was full, the writer may not have
    noticed."""
    found = array_record_module.ArrayRecordReader(os.fspath(path))
    try:
        if found.num_records() != count:
            raise OSError(errno.ENOSPC, f'{count} records written, {found.num_records()} found')
    finally:
        found.close()


def _write_records(path, records):
    """(number of records, their bytes). Not compressed: JPEG does not shrink, and reading and
    writing are twice as fast."""
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


def _is_disk_full(error):
    """Also reads the message, because the errors of the writer, C++ code, have no number."""
    words = str(error)
    return (
        (isinstance(error, OSError) and error.errno in DISK_FULL)
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
    """Removes the notes, which only an unfinished build needs. Call it when the dataset has its
    final name, so that a kill never costs a shard."""
    for path in folder.glob('*.array_record-*.json'):
        path.unlink()
