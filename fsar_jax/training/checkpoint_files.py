"""Reads and checks the files of a run's checkpoints: are they as they were written, and what do
they contain?

`<directory>/<step>/` is a checkpoint: Orbax's files, and checksums.json, which holds the SHA-256 of
each of them, of the state, and of itself. `<directory>/config.json` holds the settings of the run.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
from concurrent import futures

import numpy as np

from fsar_jax.checksums import sha256_of
from fsar_jax.config import flatten
from fsar_jax.files import read_json, write_whole
from fsar_jax.messages import one_line, printable
from fsar_jax.named_arrays import state_hash
from fsar_jax.stage import ArrayTree
from fsar_jax.training import orbax_files

CONFIG_FILE = 'config.json'
CHECKSUMS_FILE = 'checksums.json'  # in each checkpoint


class DamagedCheckpoint(ValueError):
    """A checkpoint that is not what was saved, or cannot be read. One line."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself, the content of CHECKSUMS_FILE.

    Attributes:
      metrics: as given to `Checkpoints.save`.
      state: `state_hash` of the arrays. None, like `files`, in a checkpoint of a release that kept
        no checksums.
      files: {path in the checkpoint: SHA-256}.
    """

    metrics: dict
    state: str | None
    files: dict[str, str] | None


def step_directories(directory: pathlib.Path) -> list[pathlib.Path]:
    """The entries that are named like steps, ascending."""
    if not directory.is_dir():
        return []
    named = [path for path in directory.iterdir() if re.fullmatch('0|[1-9][0-9]*', path.name)]
    return sorted(named, key=lambda path: int(path.name))


def saved_settings(directory: str | os.PathLike[str]) -> dict:
    """{'model.matcher.name': value, …}: the settings of the run that wrote the checkpoints in
    `directory`; {} where there are none. It reads the files and nothing else.

    Raises:
      ValueError, OSError: config.json is damaged or cannot be read: one line, with the file and
        what to do.
    """
    directory = pathlib.Path(directory)
    path = directory / CONFIG_FILE
    if not path.exists() or not step_directories(directory):
        return {}
    advice = (
        'these are the settings of the run; put back a copy, or delete the file and go on training '
        'with the same command, which writes it anew'
    )
    settings = read_json(path, advice)
    if not isinstance(settings, dict):
        raise ValueError(f'{printable(path, 1000)} is damaged (no settings by name): {advice}')
    return flatten(settings)


def write_manifest(path: pathlib.Path, metrics: dict, arrays: dict[str, np.ndarray]) -> None:
    """Writes the manifest of a checkpoint whose other files are complete.

    Args:
      path: of the checkpoint.
      arrays: of the state, by name.
    """
    manifest = {'metrics': metrics, 'state': state_hash(arrays), 'files': _file_hashes(path)}
    write_whole(path / CHECKSUMS_FILE, sealed(manifest))


def read_manifest(path: pathlib.Path) -> Manifest:
    """The manifest of a checkpoint. It may be right although other files are damaged, see
    `check_files`.

    Raises:
      DamagedCheckpoint: there is no manifest where one was written, or it is damaged.
    """
    with _as_damage(path):
        if not path.is_dir():
            raise ValueError('it is no directory')
        if (path / CHECKSUMS_FILE).is_file():  # reading a pipe would wait for ever
            return Manifest(**_unsealed((path / CHECKSUMS_FILE).read_bytes()))
        noted = orbax_files.noted_in(path)
        if noted is None or 'checksums' in noted:
            raise ValueError(f'{CHECKSUMS_FILE} is missing')
        metrics = path / 'metrics' / 'metrics'  # where earlier releases had them
        return Manifest(
            dict(json.loads(metrics.read_bytes())) if metrics.is_file() else {}, None, None
        )


def check_files(path: pathlib.Path, manifest: Manifest) -> None:
    """Raises DamagedCheckpoint where a file is not as it was written."""
    with _as_damage(path):
        found = _file_hashes(path, manifest.files or ())
        for name, expected in (manifest.files or {}).items():
            if found[name] != expected:
                raise ValueError(
                    f'{name} is {"not what was written" if found[name] else "missing"}'
                )


def read_description(path: pathlib.Path) -> tuple[Manifest, dict]:
    """A checkpoint's manifest, and Orbax's description of its arrays, a tree. Checks all files.

    Raises:
      DamagedCheckpoint.
    """
    manifest = read_manifest(path)
    check_files(path, manifest)
    with _as_damage(path):
        tree = orbax_files.description(path)
        if tree is None:
            raise ValueError('the description of its arrays is missing or damaged')
        return manifest, tree


def read_arrays(path: pathlib.Path, tree: ArrayTree, manifest: Manifest) -> dict[str, np.ndarray]:
    """{name: array} of a checkpoint.

    Args:
      tree, manifest: from `read_description`.

    Raises:
      DamagedCheckpoint: also where the arrays are not the ones that were saved.
    """
    with _as_damage(path):
        arrays = orbax_files.load(path, tree)
        if manifest.state not in (None, state_hash(arrays)):
            raise ValueError('the checksum of the state is another one')
        return arrays


def check_writable(directory: pathlib.Path) -> None:
    """Raises OSError, with the path, where files cannot be written in the directory."""
    probe = directory / '.writable'
    write_whole(probe, bytes(4096))
    probe.unlink()


def delete(path: pathlib.Path) -> None:
    """Deletes a file, a link or a whole directory, as far as that is allowed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def reason(error: BaseException) -> str:
    """What went wrong, for a message: the operating system's words where they are in the error,
    else the beginning of what Orbax or TensorStore says."""
    text = one_line(error)
    said = f'{text} {error}'  # TensorStore's words may have hundreds of characters before them
    for code in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.EMFILE,
    ):
        if os.strerror(code) in said:
            return os.strerror(code)
    text = text.partition(' [tensorstore_spec=')[0]
    return printable(text if len(text) < 200 else '…' + text[-199:])


def sealed(manifest: dict) -> bytes:
    """The content of CHECKSUMS_FILE: a manifest and its own checksum."""
    content = {'record': manifest, 'sha256': hashlib.sha256(_json(manifest)).hexdigest()}
    return json.dumps(content, indent=1, sort_keys=True).encode() + b'\n'


def _unsealed(content: bytes) -> dict:
    found = json.loads(content)
    if found['sha256'] != hashlib.sha256(_json(found['record'])).hexdigest():
        raise ValueError(f'{CHECKSUMS_FILE} is not what was written')
    return found['record']


def _json(value) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


@contextlib.contextmanager
def _as_damage(path):
    """Turns whatever Orbax, TensorStore or the file system raises of a damaged checkpoint into
    DamagedCheckpoint."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise DamagedCheckpoint(
            f'checkpoint {printable(path, 1000)} is damaged ({reason(error)})'
        ) from error


def _file_hashes(path, names=None) -> dict[str, str | None]:
    """{'state/_METADATA': SHA-256, …} of all files in a directory, or of these names, with None
    where there is no such file."""
    if names is None:
        names = sorted(str(file.relative_to(path)) for file in path.rglob('*') if file.is_file())

    def sha256(name):  # reading a pipe would wait for ever
        return sha256_of(path / name) if (path / name).is_file() else None

    with futures.ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(sha256, names), strict=True))
