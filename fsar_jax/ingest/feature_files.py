"""Writes the files of extracted features (fsar_jax/data/features.py says what they hold).

features.json is written first, and again whenever a file is finished: a file that it does not list
under 'done' does not count, and is written again. Slices (--shards), which may run at once, leave a
note beside each file in its place, until all files are finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import socket
from collections.abc import Iterable, Iterator

import numpy as np

from fsar_jax.checksums import SUMS, sha256_of
from fsar_jax.data.features import HEADER, Header, Shard, npy_header
from fsar_jax.files import naming, write_whole
from fsar_jax.ingest.shards import DISK_FULL
from fsar_jax.messages import printable

LOCKS = '.lock', '.slices'
# What a killed extraction computes again is at most a file; a reader opens them all.
FRAMES_PER_FILE, FILES_PER_SPLIT = 4096, 128
_DRAFT, _NOTE = '.part', '.sha256'


def cut_into_files(num_frames: list[int], videos_per_file: int = 0) -> list[int]:
    """How many clips each file of a split holds.

    Args:
      num_frames: of each clip.
      videos_per_file: 0 for so many that a file has 4,096 frames, or more where there would be more
        than 128 files.
    """
    videos, frames = len(num_frames), sum(num_frames)
    if not videos:
        return []
    wanted = max(FRAMES_PER_FILE, frames / FILES_PER_SPLIT)
    each = videos_per_file or max(1, round(wanted * videos / frames))
    return [min(each, videos - first) for first in range(0, videos, each)]


def write_header(folder: pathlib.Path, header: Header) -> None:
    """Writes features.json. OSError with the path."""
    write_whole(folder / HEADER, json.dumps(dataclasses.asdict(header), ensure_ascii=False) + '\n')


def write_note(folder: pathlib.Path, shard: Shard, digest: str) -> None:
    """Notes that a file is finished, beside it. OSError with the path."""
    write_whole(folder / f'{shard.file}{_NOTE}', digest)


def read_notes(folder: pathlib.Path) -> dict[str, str]:
    """{file: SHA-256} of the files that have a note."""
    found = {}
    for path in folder.glob(f'*.npy{_NOTE}'):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile, as all are finished
            found[path.name.removesuffix(_NOTE)] = path.read_text()
    return found


def remove_notes(folder: pathlib.Path) -> None:
    """Removes the notes, which features.json has taken over."""
    for path in folder.glob(f'*.npy{_NOTE}'):
        path.unlink(missing_ok=True)


def write_shard(
    folder: pathlib.Path,
    header: Header,
    shard: Shard,
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
) -> str:
    """Writes a file under another name, and gives it its own when it is whole.

    Args:
      blocks: (row numbers [n], features [n, C] or [n, h, w, C]) in any order, each row once.

    Returns:
      Its SHA-256.

    Raises:
      OSError: with the path; nothing of this file is left.
    """
    # Two machines may write the same file at once, when the one is thought to be lost.
    by = f'{socket.gethostname()}.{os.getpid()}'
    draft, stored = folder / f'.{shard.file}.{by}{_DRAFT}', header.dtypes[1]
    row_bytes = header.num_bytes([shard]) // shard.rows
    try:
        with naming(draft), open(draft, 'wb') as file:
            start = file.write(npy_header(header, shard))
            for rows, features in blocks:
                for first, end in _runs(rows):
                    file.seek(start + int(rows[first]) * row_bytes)
                    file.write(np.ascontiguousarray(features[first:end]).view(stored).data)
            file.flush()
            os.fsync(file.fileno())
        digest = sha256_of(draft)
        draft.replace(folder / shard.file)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise OSError(
            f'the disk is full ({printable(folder, 1000)}): {len(header.done)} files are finished '
            'and kept, make room and give the same command again'
        ) from None
    finally:
        draft.unlink(missing_ok=True)
    return digest


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, end) of the parts of `rows` in which each is one more than the one before."""
    ends = [*(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)]
    return zip([0, *ends[:-1]], ends)


def remove_drafts(folder: pathlib.Path) -> None:
    """Removes what a killed extraction has left of a file."""
    for path in folder.glob(f'.*.npy*{_DRAFT}'):
        path.unlink()


def remove_features(folder: pathlib.Path) -> None:
    """Removes the features in a folder, the description first."""
    for path in [folder / HEADER, folder / SUMS, *folder.glob('*-?????-of-?????.npy')]:
        path.unlink(missing_ok=True)
    remove_notes(folder)


def strangers(folder: pathlib.Path) -> list[str]:
    """Names of what lies in a folder that an extraction has not written."""
    own = lambda name: name in LOCKS or (name.startswith('.') and name.endswith(_DRAFT))
    return sorted(path.name for path in folder.iterdir() if not own(path.name))


def beside_features(folder: pathlib.Path) -> list[str]:
    """Names of what `remove_features` would leave of a folder of features."""
    features = re.compile(rf'.*-\d{{5}}-of-\d{{5}}\.npy({re.escape(_NOTE)})?')
    return [
        name
        for name in strangers(folder)
        if name not in (HEADER, SUMS) and not features.fullmatch(name)
    ]
