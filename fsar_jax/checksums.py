"""SHA256SUMS of a built dataset: one line per file, as `sha256sum` writes them and `sha256sum -c
SHA256SUMS` checks them.

ArrayRecord files hold checksums of their records, which every read checks; this covers the index,
the class names and what lies between the records too.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Mapping

from fsar_jax.files import naming, write_whole
from fsar_jax.messages import printable

SUMS = 'SHA256SUMS'


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, hexadecimal. OSError with the path."""
    with naming(path), open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def write_sums(folder: pathlib.Path, known: Mapping[str, str | None] | None = None) -> None:
    """Writes SHA256SUMS of the files in `folder`, leaving out hidden ones and the notes of shards
    (fsar_jax/ingest/shards.py).

    known: {name: digest} of files that need not be read again.
    """
    known = known or {}
    names = (
        path.name
        for path in folder.iterdir()
        if path.is_file()
        and path.name != SUMS
        and not re.search(r'^\.|\.(array_record|tfrecord)-.*\.json$', path.name)
    )
    _write(folder, {name: known.get(name) or sha256_of(folder / name) for name in names})


def renew_sum(folder: pathlib.Path, name: str) -> None:
    """Writes SHA256SUMS again with the checksum that one of the files has now; those of the others
    stay, so that damage is still seen. Nothing where there is no SHA256SUMS."""
    sums = read_sums(folder)
    if sums is not None:
        _write(folder, sums | {name: sha256_of(folder / name)})


def _write(folder, sums):
    write_whole(folder / SUMS, ''.join(f'{sums[name]}  {name}\n' for name in sorted(sums)))


def read_sums(folder: pathlib.Path) -> dict[str, str] | None:
    """{name: digest}; None where the dataset was built before there were such files.

    Raises:
      ValueError: a line that is none, with its number.
    """
    try:
        lines = (folder / SUMS).read_text(encoding='utf-8', errors='surrogateescape').splitlines()
    except FileNotFoundError:
        return None
    sums = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r'([0-9a-f]{64})  ([^/]+)', line)
        if not match:
            raise ValueError(f'line {number} is not a checksum and a name ({printable(line, 40)})')
        sums[match[2]] = match[1]
    return sums
