"""Videos that come as JPEG files: a folder per video, or all of them in one .zip that is stored, not compressed.

What many people already have from other codes. Frames are taken in the order of the numbers in their names.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from fsar_jax.data.frames import decode_jpeg, encode_jpeg, resize_short_side
from fsar_jax.data.video_files import VideoError, kept_frames

SUFFIXES = ('.jpg', '.jpeg')
LOCAL_HEADER = 30  # bytes of a member's header in a .zip before its name


@dataclasses.dataclass(frozen=True, eq=False)
class FrameFolder:
    """A folder with the frames of one video."""

    path: str


@dataclasses.dataclass(frozen=True, eq=False)
class ZippedFrames:
    """The frames of one video in a .zip: int64 [N] offsets of the members and their sizes, in frame order.

    Numbers and no names: 16 bytes a frame. Listing them costs more for a moment, about 0.9 KB a frame inside `zipfile`.
    """

    path: str
    offsets: np.ndarray
    sizes: np.ndarray


def is_frame(name: str) -> bool:
    """Whether a file, or a member of a .zip, is one; '._1.jpg' is what macOS leaves beside it."""
    return name.lower().endswith(SUFFIXES) and not name.rpartition('/')[2].startswith('.')


def is_decoded(origin) -> bool:
    """Whether a video decoder makes the pixels of a video: not of JPEG files, nor of a video that is not there."""
    return origin is not None and not isinstance(origin, (FrameFolder, ZippedFrames))


def bytes_of(origin) -> int:
    """Size of what a video is made of: a file, a FrameFolder or ZippedFrames; -1 where that cannot be told."""
    try:
        if isinstance(origin, FrameFolder):
            return sum(entry.stat().st_size for entry in os.scandir(origin.path) if is_frame(entry.name))
        if isinstance(origin, ZippedFrames):
            return int(origin.sizes.sum())
        return os.stat(origin).st_size if isinstance(origin, (str, os.PathLike)) else -1
    except OSError:
        return -1


def frame_order(name: str) -> tuple:
    """Sorting key: 'frame_2.jpg' before 'frame_10.jpg'."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name))


def zipped_videos(path: str | os.PathLike) -> Iterator[tuple[str, str, ZippedFrames]]:
    """(class folder, video folder, its frames) of every folder with JPEG files, sorted.

    The class is '' where the .zip has no folder above those of the videos.

    Raises:
      ValueError: no .zip, or one with compressed frames.
    """
    videos = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not is_frame(member.filename):
                    continue
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(
                        f'{path}: {member.filename} is compressed; JPEG does not get smaller, and this costs time: '
                        'extract it and give the folder, or zip it again with zip -0'
                    )
                *parents, name = member.filename.split('/')
                key = ('', '', *parents)[-2:]
                videos.setdefault(key, []).append(
                    (frame_order(name), member.header_offset, member.file_size)
                )
    except zipfile.BadZipFile as error:
        raise ValueError(f'{path} is no .zip, or one whose end is missing: {error}') from None
    for (class_name, video), members in sorted(videos.items()):
        members.sort()
        _, offsets, sizes = zip(*members)
        yield (
            class_name,
            video,
            ZippedFrames(os.fspath(path), np.array(offsets, np.int64), np.array(sizes, np.int64)),
        )


def record_from_frames(source: FrameFolder | ZippedFrames, video_id: str, label: int, settings) -> dict:
    """The record of a video that comes as JPEG files; fields as of records.record_from_file, fps 0.

    A frame that has the wanted short side already keeps its bytes: it is decoded to see that it is whole, but not
    encoded again.

    Raises:
      VideoError: 'missing', 'too short', 'decode errors', 'frame size changes' or 'no frames'.
    """
    count, read = _opened(source)
    if not count:
        raise VideoError('no frames', 'no .jpg')
    if count < settings.min_frames:
        raise VideoError('too short', f'{count} frames, at least {settings.min_frames} are needed')
    index, stored, size = kept_frames(count, settings.max_frames), [], None
    for place, data in zip(index.tolist(), map(read, index.tolist())):
        try:
            frame = decode_jpeg(data)
        except ValueError:
            raise VideoError('decode errors', f'frame {place} of {count} is damaged') from None
        if settings.short_side and min(frame.shape[:2]) != settings.short_side:
            frame = resize_short_side(frame, settings.short_side)
            data = encode_jpeg(frame, settings.jpeg_quality)
        if size not in (None, frame.shape):
            raise VideoError(
                'frame size changes', f'{size[1]}x{size[0]}, then {frame.shape[1]}x{frame.shape[0]}'
            )
        size = frame.shape
        stored.append(data)
    return {
        'frames': stored,
        'label': label,
        'video_id': video_id,
        'num_frames': len(stored),
        'source_frames': count,
        'frame_index': index,
        'source_stream': 0,
        'fps': 0.0,
        'width': size[1],
        'height': size[0],
        'decode_errors': 0,
    }


def _opened(source) -> tuple[int, Callable[[int], bytes]]:
    """(frames there are, function that reads one)."""
    try:
        if isinstance(source, FrameFolder):
            folder = pathlib.Path(source.path)
            names = sorted(filter(is_frame, os.listdir(folder)), key=frame_order)
            return len(names), lambda i: _read(folder / names[i], 0, -1)
        return len(source.offsets), lambda i: _read_member(source, i)
    except FileNotFoundError:
        raise VideoError('missing') from None
    except OSError as error:
        raise VideoError('unreadable', error.strerror or str(error)) from None


def _read_member(source, i):
    offset, size = int(source.offsets[i]), int(source.sizes[i])
    header = _read(source.path, offset, LOCAL_HEADER)
    names = int.from_bytes(header[26:28], 'little') + int.from_bytes(header[28:30], 'little')
    return _read(source.path, offset + LOCAL_HEADER + names, size)


def _read(path, offset, size):
    try:
        with open(path, 'rb') as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        raise VideoError('missing') from None
    except OSError as error:
        raise VideoError('unreadable', error.strerror or str(error)) from None
