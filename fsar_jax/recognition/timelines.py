"""What a long recording shows when: windows that slide over it."""

from __future__ import annotations

import itertools
import numbers
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from fsar_jax.ingest.clip_reader import stored_frame
from fsar_jax.ingest.video_files import VideoError, frames_at, open_recording
from fsar_jax.messages import printable
from fsar_jax.progress import Progress
from fsar_jax.recognition.answers import Segment, Timeline, Window
from fsar_jax.recognition.models import Embedding, Model

AHEAD = 32  # frames that are decoded ahead of the model
SHORTEST = 0.01  # seconds of a window and a stride: less than a frame lasts
SAME_TIME = 1e-4  # seconds: two windows share the frame at such times


def timeline(
    path: str | os.PathLike,
    model: Model,
    shares_of: Callable[[Embedding], dict[str, float]],
    window: float,
    stride: float,
    unknown_below: float | None,
) -> Timeline:
    """See `Recognizer.timeline`. VideoError where the recording cannot be read.

    shares_of: the embedding of a window → {class: probability}.
    """
    recording = open_recording(path)
    starts = window_starts(recording.seconds, window, stride)
    length = min(window, recording.seconds)
    times, rows = frame_times(starts, length, model.window_places)
    records = model.records
    frames = ahead(
        frames_at(
            recording, times, lambda rgb: stored_frame(rgb, records), bool(records.square_pixels)
        )
    )
    windows = []
    name = os.path.basename(os.fspath(path))
    with Progress(len(starts), f'recognising {printable(name, 40)}', 'window') as progress:
        for start, embedding in zip(starts, model.embed_windows(frames, rows), strict=True):
            shares = shares_of(embedding)
            best = max(shares, key=shares.__getitem__)
            probability = shares[best]
            unknown = unknown_below is not None and probability < unknown_below
            windows.append(
                Window(
                    start=float(start),
                    end=float(min(start + length, recording.seconds)),
                    label=None if unknown else best,
                    best=best,
                    unknown=unknown,
                    probability=probability,
                    probabilities=shares,
                )
            )
            progress.advance()
    shown = printable(os.fspath(path), 1000)
    return Timeline(shown, recording.seconds, windows, merged(windows, recording.seconds))


def window_starts(seconds: float, window: float, stride: float) -> np.ndarray:
    """Where windows begin, float [N], in seconds: at 0, stride, 2 stride, … as long as a window
    fits, and one that ends with the recording. One window where the recording is shorter."""
    last = max(0.0, seconds - window)
    starts = np.arange(0, last + SAME_TIME, stride)
    return np.append(starts, last) if last - starts[-1] > SAME_TIME else starts


def frame_times(
    starts: np.ndarray, length: float, places: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The frames that the windows show.

    Args:
      starts: [N]; length: of every window, seconds.
      places: [L], where in a window its frames lie, ascending, 0 … 1.

    Returns:
      (the times of the distinct frames, ascending [F]; for each window which of them it shows, int
      [L]).
    """
    times = starts[:, None] + places * length
    ticks, rows = np.unique(np.round(times / SAME_TIME).astype(np.int64), return_inverse=True)
    return ticks * SAME_TIME, list(rows.reshape(times.shape))


def merged(windows: list[Window], seconds: float) -> list[Segment]:
    """Neighbouring windows with the same answer, as segments. One ends, and the next begins, half
    way between the middles of the two windows."""
    groups = [list(group) for _, group in itertools.groupby(windows, lambda w: w.label)]
    middle = lambda w: (w.start + w.end) / 2
    cuts = [(middle(a[-1]) + middle(b[0])) / 2 for a, b in itertools.pairwise(groups)]
    return [
        Segment(start, end, group[0].label, float(np.mean([w.probability for w in group])))
        for group, start, end in zip(groups, [0.0, *cuts], [*cuts, seconds])
    ]


def ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The same items, made in another thread, at most AHEAD before they are taken; an exception
    comes in its place."""
    made: queue.Queue = queue.Queue(AHEAD)
    over = threading.Event()

    def put(item):
        while not over.is_set():
            try:
                return made.put(item, timeout=0.1)
            except queue.Full:
                pass

    def make():
        try:
            for item in items:
                put((item, None))
                if over.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        over.set()
        thread.join()


def check_times(window: float, stride: float) -> None:
    """ValueError unless both are at least SHORTEST: of shorter ones a recording has millions."""
    for name, value in (('window', window), ('stride', stride)):
        if not (isinstance(value, numbers.Real) and SHORTEST <= value < float('inf')):
            raise ValueError(
                f'{name}={printable(value)} must be a number of seconds, at least {SHORTEST}'
            )


def reason_no_clock(path: object) -> VideoError | None:
    """Why a clip has no times: it is an array or a folder; None of a file."""
    if isinstance(path, (str, os.PathLike)):
        if not os.path.isdir(path):
            return None
        return VideoError('not a video', 'a folder of frames has no times: give the video itself')
    return VideoError('not a video', 'an array has no times: give the path of a video')
