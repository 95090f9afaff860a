"""What a command does before its first computation, so that computing is fast: it keeps compiled
programs for the next start (JAX's persistent compilation cache), and on a CPU its memory."""

import contextlib
import hashlib
import os
import pathlib
import platform
import time
import warnings
import zlib
from typing import Any

import jax

from fsar_jax.machine import give_back_freed_memory, keep_freed_memory
from fsar_jax.mesh import check_devices

LIMIT = 2 * 2**30  # bytes of a folder at the start of a process
UNFINISHED = 120.0  # seconds in which a file may still be in the hands of its writer


def prepare(keep: bool = True) -> None:
    """What a command does before its first computation.

    keep: config.keep_programs.

    Raises:
      ValueError: JAX cannot start its devices.
    """
    if keep:
        keep_programs()
    keep_freed_memory()  # before the backend starts its threads
    check_devices()
    if jax.default_backend() != 'cpu':
        give_back_freed_memory()


def keep_programs() -> None:
    """From now on, programs that this process compiles are kept in a folder of the user, and those
    that another process has kept are not compiled again.

    The folder is `programs_folder()`, or JAX_COMPILATION_CACHE_DIR where that is set;
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. Call it before the first computation. It never
    fails: where the folder cannot be written, everything is compiled as usual. Several processes
    may use the folder at once.
    """
    warnings.filterwarnings('ignore', message='Error (reading|writing) persistent compilation')
    config: Any = jax.config  # whose options have no types in older releases
    if not config.jax_enable_compilation_cache or config.jax_compilation_cache_dir:
        return
    try:
        folder = programs_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            return
        tidy(folder)
    except (OSError, RuntimeError):  # the latter where the user has no home
        return
    config.update('jax_compilation_cache_dir', str(folder))
    # However fast it was compiled: a run has hundreds of small programs.
    config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def programs_folder() -> pathlib.Path:
    """$XDG_CACHE_HOME/fsar_jax/programs/<machine>, with ~/.cache where that is not set.

    <machine> names the kind of processor: homes are shared between machines, and a program for one
    CPU may end in an illegal instruction on another. JAX itself tells versions and devices apart.

    Raises:
      RuntimeError: the user has no home.
    """
    given = pathlib.Path(os.environ.get('XDG_CACHE_HOME', ''))
    cache = given if given.is_absolute() else pathlib.Path.home() / '.cache'
    return cache / 'fsar_jax/programs' / f'{platform.machine()}-{_processor()}'


def tidy(folder: pathlib.Path, limit: int = LIMIT) -> None:
    """Removes programs that a killed process left half written, which JAX would neither read nor
    write again, and the longest unused ones of what is above `limit` bytes.

    Raises:
      OSError: the folder cannot be read or written.
    """
    now, checked = time.time(), folder / 'checked'
    since = checked.stat().st_mtime if checked.exists() else 0.0
    files = []
    for path in folder.glob('*-cache'):
        with contextlib.suppress(FileNotFoundError):  # another process removes it
            known = path.stat()
            if since <= known.st_mtime < now - UNFINISHED and not _whole(path):
                path.unlink()
            else:
                files.append((max(known.st_atime, known.st_mtime), known.st_size, path))
    size = sum(size for _, size, _ in files)
    for _, of_file, path in sorted(files):
        if size <= limit:
            break
        path.unlink(missing_ok=True)
        size -= of_file
    checked.touch()
    os.utime(checked, (now, now - UNFINISHED))


def _whole(path: pathlib.Path) -> bool:
    """Whether a file can be decompressed; of another format than zlib's, whether it has content."""
    content = path.read_bytes()
    if content[:1] != b'\x78':
        return bool(content)
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True


def _processor() -> str:
    """Twelve digits that tell kinds of processors apart: of model and instructions."""
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text(errors='replace').splitlines()
    except OSError:
        lines = [f'model name {platform.processor()} {platform.system()}']
    kinds = ('model name', 'cpu family', 'model\t', 'flags', 'Features', 'CPU part')
    # Of each kind the first, which is that of the first core.
    first = [next((line for line in lines if line.startswith(kind)), '') for kind in kinds]
    return hashlib.sha256('\n'.join(first).encode()).hexdigest()[:12]
