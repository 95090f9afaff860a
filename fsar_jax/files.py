"""Reads paths from flags, and writes files completely or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from fsar_jax.messages import one_line, printable


def local_path(given: str | os.PathLike, flag: str) -> pathlib.Path:
    """The path that a flag gives, with '~' and '~user' expanded.

    flag: its name, for the error: '--workdir' or 'config.data.dir'.

    Raises:
      ValueError: an address such as gs://bucket/runs, which a pathlib.Path would turn into a local
        folder 'gs:/bucket/runs'; or a user that does not exist.
    """
    text = os.fspath(given)
    scheme = re.match(r'([A-Za-z][\w+.-]*):/', text)
    if scheme:
        raise ValueError(
            f'{flag}={printable(text)}: {scheme[1]}:// addresses are not read or written here, '
            'only paths: mount the bucket (gcsfuse, s3fs) or copy what is there, and give the '
            'folder'
        )
    path = pathlib.Path(text)
    try:
        return path.expanduser() if text.startswith('~') else path  # './~a' is a file '~a'
    except RuntimeError:
        raise ValueError(
            f"{flag}={printable(text)}: there is no such user; './~name' names a file that is "
            'called so'
        ) from None


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the path to an OSError of the block that has none, as those of `write` and `close`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file under another name, then renames it. So a kill or a full disk leaves the old
    file or the new one, never half of one.

    Raises:
      OSError: with the path; the old file is as it was.
    """
    path = pathlib.Path(path)
    draft = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(draft, 'wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError) and error.errno is not None:  # it names the draft, or nothing
            raise type(error)(error.errno, error.strerror, os.fspath(path)) from error
        raise


def read_json(path: str | os.PathLike, what: str) -> Any:
    """The content of a JSON file.

    what: what the file is and what to do if it is damaged, for the error.

    Raises:
      OSError: with the path.
      ValueError: one line: file, line and column, `what`.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        where = f'line {error.lineno}, column {error.colno}'
        raise ValueError(
            f'{printable(path, 1000)} is damaged or cut ({where}: {error.msg}): {what}'
        ) from None
    # Not UTF-8, a number of 5,000 digits, lists in lists in lists.
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'{printable(path, 1000)} is damaged ({one_line(error)}): {what}'
        ) from None
