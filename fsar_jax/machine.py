"""What a process may use of its machine: the cores of its job, threads, and files that one process
at a time works on."""

import _thread
import contextlib
import errno
import fcntl
import functools
import os
import sys
import threading

from fsar_jax.messages import printable

NO_LOCKS = (
    errno.ENOSYS,
    errno.ENOLCK,
    errno.EOPNOTSUPP,
)  # Lustre without -o flock, NFS without its lock service


def usable_cores() -> int:
    """How many cores this process may run on: those of its job (Slurm, taskset), which may be a few
    of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@functools.cache
def start_reader_threads() -> None:
    """To be called before the first ArrayRecord file of a process is opened for reading, and while
    there is memory to spare.

    Opening one starts 64 threads, however many cores there are. Where one of them cannot be started
    (each reserves `ulimit -s`, 8 MB, for its stack) it waits for ever for those that were. So as
    many are tried before, and some more, for what else it takes.

    Raises:
      OSError: they cannot be started.
    """
    gate, ended, started = _thread.allocate_lock(), threading.Semaphore(0), 0
    gate.acquire()

    def thread():
        with gate:
            pass
        ended.release()

    try:
        for _ in range(64 + 8):
            _thread.start_new_thread(
                thread, ()
            )  # a threading.Thread may wait for ever itself, for one that has no memory to start
            started += 1
    except (RuntimeError, MemoryError):
        raise OSError(
            'the 64 threads that read ArrayRecord files cannot all be started: raise the limit on '
            'memory '
            '(ulimit -v) or on processes (ulimit -u); ulimit -s 512 and MALLOC_ARENA_MAX=1 make '
            'each need less memory'
        ) from None
    finally:
        gate.release()
        for _ in range(started):
            ended.acquire()
    from array_record.python import array_record_module  # has no wheel for some platforms

    reader = array_record_module.ArrayRecordReader(
        os.devnull
    )  # now, as later something else may have taken the room
    with contextlib.suppress(RuntimeError):  # no file of records
        reader.close()


@contextlib.contextmanager
def file_lock(path: str | os.PathLike, busy: str | None = None, *, shared: bool = False):
    """Holds `path`, an empty file, until the block or the process ends, however that ends.

    busy: the error where another process holds it; None waits until it lets go.  shared: others may
    hold it too, if they share it. Where the file system has no locks, a warning is printed and the
    block runs.

    Raises:
      ValueError: `busy`.
    """
    with (
        open(path, 'a+') as file
    ):  # NFS gives a shared lock to those who may read, an exclusive one to those who may write
        try:
            fcntl.flock(
                file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if busy else 0)
            )
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
