"""Processes that read videos: in order, a few ahead, and without the file that ends the one that
reads it."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import errno
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator

import cv2

from fsar_jax.ingest.video_files import VideoError
from fsar_jax.stopping import finish_first


@contextlib.contextmanager
def ordered_pool(processes: int, make_record) -> Iterator[Callable]:
    """A function that maps sources to (record, None) or (None, VideoError): lazily, in order, a few
    videos ahead.

    Args:
      processes: 0 reads in this process.
      make_record: source -> record, or raises VideoError; must pickle.

    Raises:
      ChildProcessError: by the function, where workers die whatever they do.
    """
    attempt = functools.partial(_attempt, make_record)
    if not processes:
        yield functools.partial(map, attempt)
        return
    before, starting = set(multiprocessing.active_children()), threading.Lock()
    with _quiet_tracker():
        pool, single = _pool(processes), _pool(1)  # which starts with its first file

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
        with starting, _without_ctrl_c():
            try:
                return pool.submit(attempt, source)
            except concurrent.futures.process.BrokenProcessPool:
                pool.shutdown()
                pool = _pool(processes)
                return pool.submit(attempt, source)

    def result(source, future):
        try:
            return future.result()
        except concurrent.futures.process.BrokenProcessPool:
            return alone(source)

    def alone(source):
        """A worker died, of this file or of another that was read then: in a process of its own the
        guilty one shows."""
        nonlocal single
        try:
            with starting, _without_ctrl_c():
                future = single.submit(attempt, source)
            return future.result()
        except concurrent.futures.process.BrokenProcessPool:
            single.shutdown()
            single = _pool(1)
        try:
            with starting, _without_ctrl_c():
                future = single.submit(os.getpid)
            future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise ChildProcessError(
                'worker processes die whatever they do: too little memory, or a script that starts '
                "a build outside if __name__ == '__main__'; --processes=0 does without them"
            ) from None
        return None, VideoError('ended the process', 'out of memory, or the decoder crashes')

    def kill():
        # for good: nothing starts any more, however many ends of processes are noticed
        starting.acquire()
        for child in set(multiprocessing.active_children()) - before:
            child.kill()

    try:
        with finish_first(kill):
            yield run
    except BaseException:
        kill()  # a video that nobody waits for any more may take minutes
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        single.shutdown()


def _attempt(make_record, source):
    """(record, None) or (None, VideoError)."""
    try:
        if source.origin is None:
            raise VideoError('missing')
        return make_record(source), None
    except VideoError as error:
        return None, error
    except MemoryError:  # a header may claim anything
        return None, VideoError('unreadable', os.strerror(errno.ENOMEM))
    # Of a decoder, which may raise anything: one file must not end the build.
    except Exception as error:
        return None, VideoError(
            'decoder failed', ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        )


def _pool(processes):
    # An executor, not multiprocessing.Pool: when a decoder crashes or memory runs out, Pool waits
    # for ever.
    return concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context('spawn'), _start_worker
    )


@contextlib.contextmanager
def _without_ctrl_c():
    """Processes that start in the block never see SIGINT, which a terminal sends to all of them,
    from their first moment on."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _quiet_tracker():
    """multiprocessing's resource tracker, a process that starts in the block, tidies up after a
    command that a signal ended at once, and would complain that it has to."""
    filters = os.environ.get('PYTHONWARNINGS')
    os.environ['PYTHONWARNINGS'] = ','.join(filter(None, (filters, 'ignore:resource_tracker')))
    try:
        yield
    finally:
        if filters is None:
            del os.environ['PYTHONWARNINGS']
        else:
            os.environ['PYTHONWARNINGS'] = filters


def _start_worker():
    # Ctrl-C is for the main process, which ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)  # there is a process for each core already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Workers outlive a killed parent otherwise."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
