"""How a command ends before its time. Ctrl-C, SIGTERM and a closed terminal: one line, exit status
130, 143 or 129, and nothing that was finished is lost. Wrong input: one line, status 1.

It imports nothing slow, so that a command can call `on_signals` before it imports the rest.
"""

from __future__ import annotations

import atexit
import contextlib
import dis
import os
import pathlib
import select
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn, TextIO

from fsar_jax.messages import is_lost_process, is_out_of_memory, one_line, printable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What a run in a workdir prints, see `on_signals`.
RUN_STOPPED = 'what was finished is kept, the same command goes on from there'
TEST_STOPPED = 'no results were written, the same command tests from the start'
PATIENCE = 15.0  # seconds for what is to be finished first; schedulers kill after 30
PACKAGE = pathlib.Path(__file__).parent
PYTHON = sysconfig.get_path('stdlib')
LIBRARIES = {'site-packages', 'dist-packages'}  # the folders of installed packages
_finish_first: list[Callable[[], None]] = []
_message = ['']  # of `on_signals`
_listening: list[int] = []  # once there is one, the end of a pipe that Python writes signals to


def on_signals(message: str) -> None:
    """From now on SIGINT, SIGTERM and SIGHUP end the process with a line that contains `message`,
    and with status 130, 143 and 129.

    To be called in the main thread, and again after a library that takes the signals for itself. A
    signal that is ignored (nohup, a shell's background jobs) stays ignored. A second signal ends
    the process at once.

    No exception is raised in the main thread, because it may be importing, compiling (which ignores
    signals for minutes), or in a library that swallows exceptions. Instead a thread waits for the
    signal, then at most PATIENCE seconds for what `finish_first` names, and ends the process
    without shutting the interpreter down. During a shutdown, threads of JAX, Grain and Orbax that
    still run use what is gone already, which now and then is a segmentation fault. So files must be
    whole at every moment, as for a kill.

    After the last line of the program, while the interpreter shuts down, the signals are ignored,
    because everything is done and the exit status should say so.
    """
    safe_streams()
    say_on_signals(message)
    reading = None
    if not _listening:
        reading, writing = os.pipe()  # neither is inherited by other processes
        os.set_blocking(writing, False)
        _listening.append(writing)
        atexit.register(_ignore_signals)
    signal.set_wakeup_fd(_listening[0], warn_on_full_buffer=False)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    if reading is not None:  # last: a signal that comes before the thread waits in the pipe for it
        threading.Thread(target=_wait_for_signal, args=(reading,), daemon=True).start()


def say_on_signals(message: str) -> None:
    """From now on this is the message of `on_signals`."""
    _message[0] = message


@contextlib.contextmanager
def errors_in_one_line(
    unless: Callable[[], bool] = lambda: False, flag: str = ''
) -> Iterator[None]:
    """In the block, what is wrong with the input ends the process with one line on stderr and
    status 1. Where nobody reads its output any more (`| head`), it ends without a word, with the
    status that a shell gives to such programs, 141.

    Other exceptions are faults of the code and keep their traceback, but for a device that has too
    little memory, and for another process of the run that is gone. So does every one where
    `unless()` is true; `flag` is what makes it so. What a library raises, such as JAX at a wrong
    shape in a stage, is a line that names the place.
    """
    safe_streams()
    try:
        try:
            yield
        except SystemExit:
            _flush(sys.stdout)
            raise
        _flush(sys.stdout)
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        if is_lost_process(error) and not unless():
            _leave_the_others(error)
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        unread = isinstance(error, BrokenPipeError) and not _is_read(sys.stdout)
        if unless() and not unread:
            raise
        try:
            _flush(sys.stdout)
        except OSError:  # a second error at the last flush would be a second line
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if place := _call_of_library(error):
            place = f' (at {place}' + (f'; {flag} shows the traceback)' if flag else ')')
        sys.exit(128 + signal.SIGPIPE if unread else f'error: {one_line(error)}{place}')


def _leave_the_others(error: BaseException) -> NoReturn:
    """Ends a process that another one of its run has left. At the usual end JAX would wait a minute
    for that one, and then abort."""
    words = printable(one_line(error), 200)
    with contextlib.suppress(OSError):
        _flush(sys.stdout)
    with contextlib.suppress(OSError):
        os.write(
            2,
            f'error: another process of this run is gone ({words}): see what it printed, and start '
            f'all of them again: {_message[0]}\n'.encode(),
        )
    os._exit(1)


def _call_of_library(error: BaseException) -> str:
    """'FILE:LINE', the innermost line of this package or of a user, where it called a library that
    raised a ValueError. '' for other errors, whose words are meant for the user."""
    place, raises, known = '', True, isinstance(error, ValueError) and not is_out_of_memory(error)
    frames = error.__traceback__
    while frames is not None and known:
        code = frames.tb_frame.f_code
        file = pathlib.Path(code.co_filename)
        ours = file.is_relative_to(PACKAGE)  # in whichever folder it is installed
        library = not ours and LIBRARIES & set(file.parts)
        if ours or not (library or file.is_relative_to(PYTHON)) and file.is_absolute():
            place = f'{printable(file, 1000)}:{frames.tb_lineno}'
            # JAX takes its own frames away, so that the last one may be that of a call.
            raises = 'RAISE' in dis.opname[code.co_code[frames.tb_lasti]]
        else:
            raises = not library
        frames = frames.tb_next
    return '' if raises else place


def safe_streams() -> None:
    """Lets a program print what it has to. Started without stdout or stderr (`>&-`), it prints to
    nowhere: else the next file that it opens would have their number, and other code would print
    into it. A terminal of another encoding gets '\\xb1' for '±', and no error."""
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, 'w'))
        elif hasattr(stream, 'reconfigure') and 'utf' not in (stream.encoding or '').lower():
            stream.reconfigure(errors='backslashreplace')


def _flush(stream: TextIO | None) -> None:
    if stream is not None:  # as where the program was started without one
        stream.flush()


def _is_read(stream: TextIO | None) -> bool:
    """False for a pipe whose other end is closed."""
    try:
        number = stream.fileno() if stream is not None else None
    except (OSError, ValueError):  # no file of the system, or closed
        number = None
    if number is None:
        return True
    poll = select.poll()
    poll.register(number, select.POLLOUT)  # macOS says nothing where nothing is asked for
    gone = select.POLLERR | select.POLLHUP | select.POLLNVAL
    return not any(event & gone for _, event in poll.poll(0))


@contextlib.contextmanager
def finish_first(wait: Callable[[], None]) -> Iterator[None]:
    """In the block, a signal ends the process after `wait()`, which is called in another thread."""
    _finish_first.append(wait)
    try:
        yield
    finally:
        _finish_first.remove(wait)


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _wait_for_signal(pipe: int) -> None:
    number = _next_signal(pipe)
    over = threading.Event()

    def at_next_signal() -> None:
        _next_signal(pipe)
        over.set()

    for target in (lambda: _finish(over), at_next_signal):
        threading.Thread(target=target, daemon=True).start()
    over.wait(PATIENCE)
    _leave(number, _message[0])


def _next_signal(pipe: int) -> int:
    while (number := os.read(pipe, 1)[0]) not in SIGNALS:
        pass
    return number


def _finish(over: threading.Event) -> None:
    try:
        for wait in reversed(_finish_first):
            wait()
        _flush(sys.stdout)
    finally:
        over.set()


def _leave(number: int, message: str) -> NoReturn:
    how = 'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name
    new_line = '\n' if os.isatty(2) else ''  # after the bar, and the terminal's ^C
    with contextlib.suppress(OSError):  # not through sys.stderr, whose lock another thread may hold
        os.write(2, f'{new_line}stopped ({how}): {message}\n'.encode())
    os._exit(128 + number)
