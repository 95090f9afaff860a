"""What a process may use of its machine: the cores of its job, and files that one process at a time works on."""

import contextlib
import errno
import fcntl
import os
import sys

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre without -o flock, NFS without its lock service


def usable_cores() -> int:
    """How many cores this process may run on: those of its job (Slurm, taskset), which may be a few of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@contextlib.contextmanager
def file_lock(path: str | os.PathLike, busy: str | None = None, *, shared: bool = False):
    """Holds `path`, an empty file, until the block or the process ends, however that ends.

    busy: the error where another process holds it; None waits until it lets go.  shared: others may hold it too, if they share it.
    Where the file system has no locks, a warning is printed and the block runs.

    Raises:
      ValueError: `busy`.
    """
    with open(path, 'a+') as file:  # NFS gives a shared lock to those who may read, an exclusive one to those who may write
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise ValueError(busy) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(f'{path}: this file system has no locks, do not start the same work twice at once', file=sys.stderr)
        yield
