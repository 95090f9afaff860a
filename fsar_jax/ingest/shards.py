"""Writes shards to disk, one at a time; a finished shard is never touched again.

A shard is an ArrayRecord file (or TFRecord, for tf.data) and, beside it, a JSON note of what it
holds and what was left out. The note is written last: a shard without a note does not count and is
written again. The note also has a fingerprint of everything that decides the records, so that
shards of another list of videos or of other settings are never used.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import socket
import struct
import threading
from collections.abc import Iterable

from array_record.python import array_record_module

from fsar_jax.checksums import sha256_of
from fsar_jax.messages import printable

_naming = threading.Lock()  # held while files of shards are created or renamed

FILE_FORMATS = ('array_record', 'tfrecord')
_OF_SHARD = re.compile(rf"\.({'|'.join(FILE_FORMATS)})-\d")  # in the name of a shard or its note

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """The disk is full; finished shards are kept."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Shard `number` of the `count` shards of a split; `sources` are its VideoSources, in order.
    `file_format` is one of FILE_FORMATS."""

    split: str
    number: int
    count: int
    file_name: str
    sources: tuple
    fingerprint: str
    file_format: str = 'array_record'


def cut_into_shards(
    dataset: str,
    splits: dict[str, list],
    length: int,
    decides: dict,
    file_format: str = 'array_record',
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
            file_name = f'{dataset}-{split}.{file_format}-{number:05d}-of-{count:05d}'
            shards.append(Shard(split, number, count, file_name, part, fingerprint, file_format))
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
        write, count_in = _WRITERS[shard.file_format]
        count, size = write(draft, records)
        with _naming:
            if (found := count_in(draft)) != count:  # a writer may not notice that a disk is full
                raise OSError(errno.ENOSPC, f'{count} records written, {found} found')
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


def _array_records(path):
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


def _write_array_records(path, records):
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


def _tf_records(path):
    """How many whole records a file of TensorFlow holds: each is its length in 8 bytes, a checksum
    of 4, the content, and a checksum of 4."""
    count, end = 0, os.path.getsize(path)
    with open(path, 'rb') as file:
        while len(head := file.read(12)) == 12:
            if file.seek(struct.unpack('<Q', head[:8])[0] + 4, os.SEEK_CUR) > end:
                break
            count += 1
    return count


def _write_tf_records(path, records):
    """(number of records, their bytes)."""
    import tensorflow as tf  # `check_can_write` knows that it is there

    count = size = 0
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for record in records:
            writer.write(record)
            count, size = count + 1, size + len(record)
    with open(path, 'rb') as file:
        os.fsync(file.fileno())
    return count, size


# file format -> (writer, number of records in a file)
_WRITERS = {
    'array_record': (_write_array_records, _array_records),
    'tfrecord': (_write_tf_records, _tf_records),
}


def check_can_write(file_format: str) -> None:
    """ValueError, one line, unless shards of this format can be written here."""
    if file_format not in FILE_FORMATS:
        raise ValueError(
            f"file format '{printable(file_format)}' is not one of {', '.join(FILE_FORMATS)}"
        )
    if file_format == 'tfrecord' and importlib.util.find_spec('tensorflow') is None:
        raise ValueError(
            'file format tfrecord needs TensorFlow, which is not installed: pip install '
            'tensorflow-cpu, or build array_record, which needs none'
        )


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
        if _OF_SHARD.search(path.name) and path.name.removesuffix('.json') not in keep:
            path.unlink()


def remove_notes(folder: pathlib.Path) -> None:
    """Removes the notes, which only an unfinished build needs. Call it when the dataset has its
    final name, so that a kill never costs a shard."""
    for path in notes_in(folder):
        path.unlink()


def notes_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The notes of finished shards."""
    return [
        path
        for path in folder.glob('*.json')
        if _OF_SHARD.search(path.name) and not path.name.startswith('.')
    ]
