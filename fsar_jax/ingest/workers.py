"""Worker processes that read videos: in order, a few ahead, and leaving out files that crash the
process that reads them."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import errno
import functools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cv2

from fsar_jax.ingest.video_files import VideoError
from fsar_jax.stopping import finish_first

_script = threading.Lock()  # held while __main__ is without its file


@contextlib.contextmanager
def ordered_pool(processes: int, make_record: Callable[..., Any]) -> Iterator[Callable]:
    """Gives a function that maps sources to (record, None) or (None, VideoError): lazily, in order,
    reading a few videos ahead.

    Args:
      processes: how many; 0 reads in this process.
      make_record: source -> record, or raises VideoError; must pickle.

    Raises:
      ChildProcessError: the function raises it where workers die whatever they do.
    """
    attempt = functools.partial(try_source, make_record)
    if not processes:
        yield functools.partial(map, attempt)
        return
    before, lock = set(multiprocessing.active_children()), threading.Lock()
    folder = _import_folder(make_record)
    script = b'__main__' in pickle.dumps(make_record)

    @contextlib.contextmanager
    def starting():
        with lock, _without_ctrl_c(), contextlib.nullcontext() if script else _without_script():
            yield

    with _quiet_tracker():
        pool, single = _pool(processes, folder), _pool(1, folder)  # each starts with its first file

    def run(sources):
        pending = collections.deque()
        for source in sources:
            pending.append((source, submit(source)))
            if len(pending) >= 4 * processes:
                yield result(*pending.popleft())
        while pending:
            yield result(*pending.popleft())

    def submit(source):
        nonlocal pool
        with starting():
            try:
                return pool.submit(attempt, source)
            except concurrent.futures.process.BrokenProcessPool:
                pool.shutdown()
                pool = _pool(processes, folder)
                return pool.submit(attempt, source)

    def result(source, future):
        try:
            return future.result()
        except concurrent.futures.process.BrokenProcessPool:
            return alone(source)

    def alone(source):
        """Reads a file in a process of its own, after a worker died: that shows whether this file
        is to blame, or another that was read at the time."""
        nonlocal single
        try:
            with starting():
                future = single.submit(attempt, source)
            return future.result()
        except concurrent.futures.process.BrokenProcessPool:
            single.shutdown()
            single = _pool(1, folder)
        try:
            with starting():
                future = single.submit(os.getpid)
            future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise ChildProcessError(
                'worker processes die whatever they do: too little memory, or a script that starts '
                "a build outside if __name__ == '__main__'; processes=0 does without them"
            ) from None
        return None, VideoError('ended the process', 'out of memory, or the decoder crashes')

    def kill():
        lock.acquire()  # never released: no process starts any more
        for child in set(multiprocessing.active_children()) - before:
            child.kill()

    try:
        with finish_first(kill):
            yield run
    except BaseException:
        kill()  # a video whose record nobody waits for may take minutes
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        single.shutdown()


def try_source(make_record: Callable[..., Any], source: Any) -> tuple[Any, VideoError | None]:
    """(record, None) or (None, VideoError): whatever goes wrong in a file is its own fault.

    source: with `origin`, None where there is no such file.
    """
    try:
        if source.origin is None:
            raise VideoError('missing')
        return make_record(source), None
    except VideoError as error:
        return None, error
    except MemoryError:  # a header may claim any size
        return None, VideoError('unreadable', os.strerror(errno.ENOMEM))
    except Exception as error:  # decoders may raise anything; one file must not end the build
        return None, VideoError(
            'decoder failed', ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        )


def _import_folder(make_record):
    """The folder from which this process imported the package of a function: `tfds build` removes
    it from sys.path once the builder is imported, and workers import it again."""
    function = make_record.func if isinstance(make_record, functools.partial) else make_record
    name = getattr(function, '__module__', None) or '__main__'
    package = sys.modules.get(name.partition('.')[0])
    file = getattr(package, '__file__', None)
    if name == '__main__' or file is None:  # the pool itself cares for the first
        return None
    path = pathlib.Path(file).absolute()
    return str(path.parents[1] if path.name == '__init__.py' else path.parent)


def _pool(processes, folder=None):
    # Not a multiprocessing.Pool, which waits for ever when a decoder crashes or memory runs out.
    return concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context('spawn'), _start_worker, (folder,)
    )


@contextlib.contextmanager
def _without_ctrl_c():
    """Processes that start in the block never see SIGINT, which a terminal sends to all processes:
    not even while they start."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _without_script():
    """Processes that start in the block do not import the script of this one, which may be without
    `if __name__ == '__main__'` and would start the same work again."""
    with _script:
        main = vars(sys.modules['__main__'])
        kept = {key: main[key] for key in ('__spec__', '__file__') if key in main}
        main.update(dict.fromkeys(kept))
        try:
            yield
        finally:
            main.update(kept)


@contextlib.contextmanager
def _quiet_tracker():
    """Silences multiprocessing's resource tracker, a process that starts in the block: it cleans up
    after a command that a signal ended, and would print a warning about it."""
    filters = os.environ.get('PYTHONWARNINGS')
    os.environ['PYTHONWARNINGS'] = ','.join(filter(None, (filters, 'ignore:resource_tracker')))
    try:
        yield
    finally:
        if filters is None:
            del os.environ['PYTHONWARNINGS']
        else:
            os.environ['PYTHONWARNINGS'] = filters


def _start_worker(folder):
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)
    # Ctrl-C is for the main process, which ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)  # there is a process for each core already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Ends this worker when its parent was killed; otherwise it would live on."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
