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
        folder 'gs:/bucket/runs'; a user that does not exist; or '', as of a shell variable that is
        not set.
    """
    text = os.fspath(given)
    if not text:
        raise ValueError(f'{flag} is empty: give a path, or leave it out')
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
    file or the new one, never half of one. A link stays one, to the new file.

    Raises:
      OSError: with the path; the old file is as it was.
    """
    path = pathlib.Path(path)
    written = _behind_links(path)
    draft = _draft(written)
    try:
        with open(draft, 'wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(written)
    except BaseException as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError) and error.errno is not None:  # it names the draft, or nothing
            raise type(error)(error.errno, error.strerror, os.fspath(path)) from error
        raise


def _behind_links(path):
    return pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path


def _draft(path):
    return path.with_name(f'.{path.name}.{os.getpid()}.tmp')


def check_output(path: pathlib.Path, flag: str) -> None:
    """Checks that `write_whole` will be able to write a file there, before the work whose result it
    is to hold. Nothing is left of the trial.

    flag: that names it, for the error: '--out'.

    Raises:
      ValueError, OSError: one line: it is a folder or a device, its folder does not exist, or the
        disk is full or read-only.
    """
    shown = f'{flag}={printable(path, 1000)}'
    path = _behind_links(path)
    if path.is_dir() or not path.parent.is_dir():
        wrong = 'is a folder' if path.is_dir() else 'lies in a folder that does not exist'
        raise ValueError(f'{shown} {wrong}: name a file')
    # A file is written by renaming, which would put it in the place of a device.
    if str(path).startswith('/dev/') or path.exists() and not path.is_file():
        raise ValueError(f'{shown} is a device or a pipe: name a file')
    _try_to_write(_draft(path), shown)


def check_output_folder(folder: pathlib.Path, flag: str) -> None:
    """The same for a folder, which need not exist yet; it is not made."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    shown = f'{flag}={printable(folder, 1000)}'
    if not there.is_dir():
        raise ValueError(f'{shown} is a file, or lies below one: name a folder')
    _try_to_write(there / f'.{os.getpid()}.tmp', shown)


def _try_to_write(draft, shown):
    try:
        with open(draft, 'wb') as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f'{shown} cannot be written: {error.strerror}') from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


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
