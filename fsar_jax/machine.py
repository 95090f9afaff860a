"""What a process may use of its machine: cores, threads, and files that only one process at a time
may work on."""

import _thread
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import sys
import threading
from collections.abc import Iterator

from fsar_jax.messages import printable

# Parameters of glibc's mallopt.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8

_kept: list[bool] = []  # not empty while this process keeps all freed memory

# Of Lustre without -o flock, and of NFS without its lock service.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def usable_cores() -> int:
    """How many cores this process may use. A job (Slurm, taskset) may have only some of the cores
    of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def keep_freed_memory() -> bool:
    """Lets the process keep memory that it frees for what it asks for next. To be called before the
    threads that compute start.

    A training step on a CPU frees large arrays and asks for as large ones all the time. glibc gives
    those above 32 MB back to the system, which then has to find and clear each page of them again.
    Kept, they take up to twice the memory: small arrays settle in what was freed.
    `give_back_freed_memory` ends it. Nothing changes without glibc (macOS, Alpine), or where the
    environment says how memory is kept (MALLOC_..., GLIBC_TUNABLES).

    Returns:
      Whether it does from now on.
    """
    # With more than one arena, that of a thread would give back what the thread has freed.
    kept = _set_malloc((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1))
    _kept[:] = [True] * kept
    return kept


def keep_what_readers_free() -> bool:
    """Keeps up to 1 GiB of what is freed, unless `keep_freed_memory` keeps all of it. Otherwise
    reading records and frames spends most of its time on page faults. Whether it does."""
    return not _kept and _set_malloc((MMAP_THRESHOLD, 2**25), (TRIM_THRESHOLD, 2**30))


def give_back_freed_memory() -> bool:
    """Undoes `keep_freed_memory`, for what is freed from now on. Whether it does."""
    size = 2**25  # where glibc's own limits end up in a process with large arrays
    limits = (MMAP_MAX, 2**16), (MMAP_THRESHOLD, size), (TRIM_THRESHOLD, 2 * size)
    _kept.clear()
    return _set_malloc((ARENA_MAX, 0), *limits)


def _set_malloc(*parameters):
    if any(name.startswith('MALLOC_') or name == 'GLIBC_TUNABLES' for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False
    return all([mallopt(*x) for x in parameters])


@functools.cache
def start_reader_threads() -> None:
    """Makes sure that ArrayRecord files can be opened for reading. To be called before a process
    opens the first one, and while there is memory to spare.

    Opening a file starts 64 threads, however many cores there are. If one of them cannot be started
    (each reserves `ulimit -s`, 8 MB, for its stack), ArrayRecord waits for ever for the others. So
    this starts as many threads first, and some more for what else it takes.

    Raises:
      OSError: the threads cannot be started.
    """
    gate, ended, started = _thread.allocate_lock(), threading.Semaphore(0), 0
    gate.acquire()

    def thread():
        with gate:
            pass
        ended.release()

    try:
        for _ in range(64 + 8):
            # A threading.Thread may itself wait for ever, for a thread that has no memory to start.
            _thread.start_new_thread(thread, ())
            started += 1
    except (RuntimeError, MemoryError):
        raise OSError(
            'the 64 threads that read ArrayRecord files cannot all be started: raise the limit on '
            'memory (ulimit -v) or on processes (ulimit -u); ulimit -s 512 and MALLOC_ARENA_MAX=1 '
            'make each need less memory'
        ) from None
    finally:
        gate.release()
        for _ in range(started):
            ended.acquire()
    from array_record.python import array_record_module  # has no wheel for some platforms

    # Its threads start now; later something else may have taken the room.
    reader = array_record_module.ArrayRecordReader(os.devnull)
    with contextlib.suppress(RuntimeError):  # it is no file of records
        reader.close()


@contextlib.contextmanager
def file_lock(
    path: str | os.PathLike, busy: str | None = None, *, shared: bool = False
) -> Iterator[None]:
    """Holds a lock on `path`, an empty file, until the block or the process ends, however that
    ends. Where the file system has no locks, a warning is printed and the block runs.

    Args:
      busy: the error where another process holds it; None waits until it lets go.
      shared: others may hold it too, if they share it.

    Raises:
      ValueError: `busy`.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if busy else 0)
    # On NFS a shared lock needs a file opened for reading, an exclusive one a file for writing.
    with open(path, 'a+') as file:
        try:
            fcntl.flock(file, kind)
        except BlockingIOError:
            raise ValueError(busy) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(
                f'{printable(path, 1000)}: this file system has no locks, do not start the same '
                'work twice at once',
                file=sys.stderr,
            )
        yield
