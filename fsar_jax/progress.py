"""What a run prints and logs: progress bar, log lines, JSONL, TensorBoard.

Only process 0 prints and writes.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import jax
import tqdm
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from fsar_jax.files import naming, write_whole
from fsar_jax.messages import printable

METRICS_FILE = 'metrics.jsonl'


class Progress:
    """A progress bar with units per second and time left. If the output is not a terminal, it
    prints a line every half minute.

    Use it as a context manager.

    Args:
      total: number of units in all.
      title: what is going on, e.g. 'training'.
      unit: singular, e.g. 'episode'.
      initial: units that a resumed run did before; they do not count for the speed.
      stream: where to write; None is standard error.
      line_seconds: time between lines when the stream is no terminal.
      clock: seconds, monotonic; tests pass their own.
    """

    def __init__(
        self,
        total: int,
        title: str,
        unit: str,
        initial: int = 0,
        stream: TextIO | None = None,
        line_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._title, self._unit = total, title, unit
        self._done = self._initial = initial
        self._stream = sys.stderr if stream is None else stream
        self._line_seconds, self._clock = line_seconds, clock
        self._started = self._printed = clock()
        self._silent = jax.process_index() != 0
        self._bar = None
        if not self._silent and self._stream.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=initial,
                desc=title,
                unit=unit,
                file=self._stream,
                dynamic_ncols=True,
            )

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, units: int = 1) -> None:
        """Counts `units` more as done."""
        self._done += units
        if self._bar is not None:
            self._bar.update(units)
        elif not self._silent and self._clock() - self._printed >= self._line_seconds:
            self._printed = self._clock()
            print(self._line(), file=self._stream, flush=True)

    def _line(self) -> str:
        rate = (self._done - self._initial) / (self._clock() - self._started)
        left = tqdm.tqdm.format_interval((self._total - self._done) / rate)
        unit = self._unit + 's'
        return f'{self._title}: {self._done}/{self._total} {unit}, {rate:.1f} {unit}/s, {left} left'


class MetricWriter:
    """Writes scalars by step: to `<directory>/metrics.jsonl`, to TensorBoard event files beside it,
    and as log lines.

    Use it as a context manager. A file that cannot be written raises OSError, with its path.

    Args:
      directory: made when absent.
      log_steps: a log line is printed for steps that are a multiple of this.
      resume_step: the step from which the run continues. Lines of later steps, which a killed run
        has left, are dropped, and so is a last line that was cut short; TensorBoard does the same.
        0 starts from nothing.
      stream: where log lines go; None is standard output.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        log_steps: int = 1,
        resume_step: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self._log_steps = log_steps
        self._stream = stream
        self._file: TextIO | None = None
        self._events: Any = None
        if jax.process_index() == 0:
            self._directory = pathlib.Path(directory)
            self._directory.mkdir(parents=True, exist_ok=True)
            self._path = self._directory / METRICS_FILE
            for damaged in _drop_lines_after(self._path, resume_step):
                print(f'note: {damaged}: left out', file=self._stream or sys.stdout, flush=True)
            self._file = self._path.open('a', encoding='utf-8')
            # Not tensorboardX.SummaryWriter: where its thread fails, as on a full disk, it waits
            # for the thread for ever.
            self._events = EventsWriter(str(self._directory / 'events'))
            started = SessionLog(status=SessionLog.START)  # later steps are hidden
            self._write_event(Event(step=resume_step + 1, session_log=started))

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of one step, which may be numpy's or JAX's. One that is not finite is
        null in the JSONL file."""
        if self._file is None:
            return
        scalars = {name: float(value) for name, value in scalars.items()}
        strict = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        with naming(self._path):
            self._file.write(json.dumps({'step': step, **strict}, allow_nan=False) + '\n')
            self._file.flush()
        for name, value in scalars.items():
            self._write_event(Event(step=step, summary=scalar(name, value)))
        if step % self._log_steps == 0:
            shown = '  '.join(f'{name} {value:.4g}' for name, value in scalars.items())
            tqdm.tqdm.write(f'step {step}  {shown}', file=self._stream)  # above a bar

    def flush(self) -> None:
        """Puts on disk what was written."""
        if self._file is not None:
            with naming(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the files."""
        file, self._file = self._file, None
        if file is None:
            return
        with contextlib.ExitStack() as both:
            both.enter_context(naming(self._directory))
            both.callback(self._events.close)
            both.enter_context(naming(self._path))
            both.callback(file.close)

    def _write_event(self, event):
        event.wall_time = time.time()
        with naming(self._directory):
            self._events.write_event(event)
            self._events.flush()


def read_metrics(directory: str | os.PathLike[str]) -> list[dict]:
    """The lines of metrics.jsonl, oldest first: {'step': int, name: float or None, ...}. A last
    line that was cut short by a kill is left out.

    Raises:
      OSError: with the path.
      ValueError: another line is damaged; one line with the file and the number of the line.
    """
    path = pathlib.Path(directory) / METRICS_FILE
    lines, damaged = _lines(path)
    if damaged:
        raise ValueError(f'{damaged[0]}: remove the line')
    return lines


def _lines(path: pathlib.Path) -> tuple[list[dict], list[str]]:
    """The lines of the file, and in words those that are damaged. A last line without its end, as a
    kill leaves it, is in neither."""
    lines, damaged = [], []
    for number, line in enumerate(path.read_bytes().split(b'\n'), 1):
        try:
            scalars = json.loads(line)
            if type(scalars['step']) is not int:
                raise ValueError
            lines.append(scalars)
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged.append((number, line))
    # What follows the last line break is nothing, or a line that was cut short.
    if damaged and damaged[-1][0] == number:
        damaged.pop()
    return lines, [
        f'{printable(path, 1000)} line {number} is no metrics of a step: '
        f'{printable(line.decode(errors="replace"), 60)!r}'
        for number, line in damaged
        if line.strip()
    ]


def _drop_lines_after(path: pathlib.Path, step: int) -> list[str]:
    """Leaves the lines up to `step` in the file. Returns in words those that were damaged."""
    if not path.exists():
        return []
    lines, damaged = _lines(path)
    write_whole(path, ''.join(json.dumps(line) + '\n' for line in lines if line['step'] <= step))
    return damaged
