"""Reads single clips for a model: a video file, a folder of JPEG frames, or an array.

The result is what a dataset build would have stored of the clip (fsar_jax/ingest/records.py), but
only of the frames that a test uses. So a clip gives the same pixels here as in an evaluation of a
dataset that was built from it.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.data.frames import decode_jpeg, encode_jpeg, resize_short_side
from fsar_jax.ingest.frame_files import FrameFolder, is_frame, record_from_frames
from fsar_jax.ingest.records import RecordSettings
from fsar_jax.ingest.video_builder import VideoSource
from fsar_jax.ingest.video_files import VideoError, kept_frames, read_video
from fsar_jax.ingest.workers import ordered_pool, try_source
from fsar_jax.machine import usable_cores

Clip = str | os.PathLike | np.ndarray

THUMBNAIL_HEIGHT, THUMBNAIL_QUALITY = 128, 85
WIDEST_THUMBNAIL = 16  # times as long as wide; JPEG has a limit, and pages have a width


@dataclasses.dataclass(frozen=True)
class ReadSettings:
    """Which frames of a clip are read, and how they are stored.

    Attributes:
      records: how a dataset build stores a clip.
      length: L, how many of the stored frames a model is given.
      sampling: which, one of fsar_jax.data.frame_sampling.RULES; the test rule, nothing is random.
    """

    records: RecordSettings
    length: int
    sampling: str

    def used(self, source_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a file with so many frames: (indices in the file of those that a build stores,
        int32 [stored]; indices of the L used ones among these, int32 [L], ascending)."""
        stored = kept_frames(source_frames, self.records.max_frames)
        return stored, frame_indices(len(stored), self.length, self.sampling)

    def keep(self, source_frames: int) -> np.ndarray:
        """Indices in the file of the used frames, without repeats, for `read_video`."""
        if not source_frames:
            return np.empty(0, np.int32)
        stored, used = self.used(source_frames)
        return stored[np.unique(used)]


@dataclasses.dataclass(frozen=True, eq=False)
class ReadClip:
    """What was read of a clip.

    Attributes:
      frames: JPEG bytes of the used frames, {index among the stored frames: bytes}.
      num_frames: how many frames a build would store.
      used: int32 [L], index among the stored frames of each frame that a model is given.
      thumbnails: JPEG bytes of these L frames, THUMBNAIL_HEIGHT pixels high.
      fps: of the file; 0 where it does not say, of frames and of arrays.
      source_frames: frames of the file.
    """

    frames: dict[int, bytes]
    num_frames: int
    used: np.ndarray
    thumbnails: list[bytes]
    fps: float
    source_frames: int

    @functools.cached_property
    def sha256(self) -> str:
        """Of the pixels that are used: equal for two copies of a clip, whatever their names."""
        digest = hashlib.sha256()
        for index in sorted(self.frames):
            digest.update(self.frames[index])
        return digest.hexdigest()


def read_clip(clip: Clip, settings: ReadSettings) -> ReadClip:
    """Reads one clip.

    clip: a path of a video or of a folder of JPEG frames, or uint8 [T, H, W, 3] RGB.

    Raises:
      VideoError: it gives no usable clip; the reason is in fsar_jax.ingest.video_files.REASONS.
      ValueError: an array of another type or shape, or PyAV is too old.
    """
    if isinstance(clip, np.ndarray):
        return _read_array(clip, settings)
    path = pathlib.Path(clip)
    if path.is_dir():
        return _read_folder(path, settings)
    return _read_file(path, settings)


def read_clips(
    clips: Iterable[Clip], settings: ReadSettings, processes: int = 0
) -> Iterator[tuple[ReadClip | None, VideoError | None]]:
    """(clip, None) or (None, why it cannot be used) for each, in order, some of them ahead.

    processes: how many read files; a file that crashes the decoder then only ends one of them. 0:
      threads of this process read.
    """
    sources = [VideoSource('', 0, clip, '') for clip in clips]
    make = functools.partial(_of_source, settings=settings)
    if processes and not any(isinstance(source.origin, np.ndarray) for source in sources):
        with ordered_pool(min(processes, len(sources)), make) as run:
            yield from run(sources)
        return
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        yield from pool.map(functools.partial(try_source, make), sources)


def decoded(jpegs: Iterable[bytes]) -> np.ndarray:
    """JPEG bytes of L frames of one size → uint8 [L, H, W, 3]; [0, 0, 0, 3] of none."""
    frames = [decode_jpeg(data) for data in jpegs]
    return np.stack(frames) if frames else np.empty((0, 0, 0, 3), np.uint8)


def as_clip(clip: object) -> Clip:
    """A path, or uint8 [T, H, W, 3].

    Raises:
      ValueError: one line: it is neither.
    """
    if isinstance(clip, (str, os.PathLike)):
        return clip
    array = np.asarray(clip)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        kind = f'{array.dtype} {list(array.shape)}' if array.ndim else type(clip).__name__
        raise ValueError(
            f'a clip is a path or an array uint8 [frames, height, width, 3] (RGB), not {kind}'
        )
    return array


def _of_source(source: VideoSource, settings: ReadSettings) -> ReadClip:
    return read_clip(source.origin, settings)


def stored_frame(frame: np.ndarray, records: RecordSettings) -> bytes:
    """uint8 [H, W, 3] → JPEG bytes as a build stores them."""
    if records.short_side:
        frame = resize_short_side(frame, records.short_side)
    return encode_jpeg(frame, records.jpeg_quality)


def _stored(frame, records):
    """(JPEG bytes as a build stores them, those of the thumbnail)."""
    if records.short_side:
        frame = resize_short_side(frame, records.short_side)
    return stored_frame(frame, records), thumbnail(frame)


def thumbnail(frame: np.ndarray) -> bytes:
    """uint8 [H, W, 3] → JPEG bytes of a picture whose short side is THUMBNAIL_HEIGHT, of the middle
    of one that is more than WIDEST_THUMBNAIL times as long as it is wide."""
    height, width = frame.shape[:2]
    most = WIDEST_THUMBNAIL * min(height, width)
    top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
    frame = frame[top : top + most, left : left + most]
    return encode_jpeg(resize_short_side(frame, THUMBNAIL_HEIGHT), THUMBNAIL_QUALITY)


def _clip(stored, num_frames, used, fps, source_frames) -> ReadClip:
    """stored: [(bytes, thumbnail)] of the distinct used frames, in order."""
    distinct, which = np.unique(used, return_inverse=True)
    return ReadClip(
        frames={int(index): data for index, (data, _) in zip(distinct, stored, strict=True)},
        num_frames=num_frames,
        used=used,
        thumbnails=[stored[i][1] for i in which],
        fps=fps,
        source_frames=source_frames,
    )


def _read_file(path, settings):
    records = settings.records
    video = read_video(
        path,
        min_frames=1,
        convert=functools.partial(_stored, records=records),
        square_pixels=bool(records.square_pixels),
        keep=settings.keep,
    )
    stored, used = settings.used(video.source_frames)
    return _clip(video.frames, len(stored), used, video.fps, video.source_frames)


def _read_folder(path, settings):
    if not any(is_frame(name) for name in os.listdir(path)):
        raise VideoError('not a video', 'a folder without .jpg frames')
    records = dataclasses.replace(settings.records, min_frames=1)
    record = record_from_frames(FrameFolder(os.fspath(path)), '', 0, records)
    used = frame_indices(record['num_frames'], settings.length, settings.sampling)
    frames = [record['frames'][i] for i in np.unique(used)]
    stored = [(data, thumbnail(decode_jpeg(data))) for data in frames]
    return _clip(stored, record['num_frames'], used, 0.0, record['source_frames'])


def _read_array(frames, settings):
    stored, used = settings.used(len(frames))
    converted = [_stored(frames[i], settings.records) for i in settings.keep(len(frames))]
    return _clip(converted, len(stored), used, 0.0, len(frames))
