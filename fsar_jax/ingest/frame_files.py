"""Videos that come as JPEG files: a folder per video, or all of them in one uncompressed .zip.

Many people already have them from other codes. Frames are ordered by the numbers in their names.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import JpegImagePlugin

from fsar_jax.data.frames import decode_jpeg, encode_jpeg, resize_short_side
from fsar_jax.ingest.records import RecordSettings
from fsar_jax.ingest.video_files import MAX_PIXELS, VideoError, kept_frames
from fsar_jax.messages import one_line, printable

SUFFIXES = ('.jpg', '.jpeg')
LOCAL_HEADER = 30  # bytes of a member's header in a .zip before its name
MAX_BYTES = 2**28  # of a frame's file

# EXIF orientation -> the frame as it is meant to be seen
ORIENTATION = 274
UPRIGHT = {
    2: lambda frame: frame[:, ::-1],
    3: lambda frame: frame[::-1, ::-1],
    4: lambda frame: frame[::-1],
    5: lambda frame: frame.swapaxes(0, 1),
    6: lambda frame: np.rot90(frame, -1),
    7: lambda frame: np.rot90(frame.swapaxes(0, 1), 2),
    8: lambda frame: np.rot90(frame),
}


@dataclasses.dataclass(frozen=True, eq=False)
class FrameFolder:
    """A folder with the frames of one video."""

    path: str


@dataclasses.dataclass(frozen=True, eq=False)
class ZippedFrames:
    """The frames of one video in a .zip, in order: offsets of the members and their sizes, int64
    [N].

    Keeping numbers and no names takes 16 bytes per frame. Listing the .zip takes more for a moment,
    about 0.9 KB per frame inside `zipfile`.
    """

    path: str
    offsets: np.ndarray
    sizes: np.ndarray


def is_frame(name: str) -> bool:
    """Whether a file, or a member of a .zip, is a frame by its name. '._1.jpg', which macOS leaves
    beside it, is not."""
    return name.lower().endswith(SUFFIXES) and not name.rpartition('/')[2].startswith('.')


def is_decoded(origin: pathlib.Path | FrameFolder | ZippedFrames | None) -> bool:
    """Whether a video decoder makes the pixels of a video: not of JPEG files, nor of a missing
    file."""
    return origin is not None and not isinstance(origin, (FrameFolder, ZippedFrames))


def bytes_of(origin: pathlib.Path | FrameFolder | ZippedFrames | None) -> int:
    """Size in bytes of a video file, a FrameFolder or ZippedFrames; -1 where it is not known."""
    try:
        if isinstance(origin, FrameFolder):
            return sum(
                entry.stat().st_size for entry in os.scandir(origin.path) if is_frame(entry.name)
            )
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
      OSError: it cannot be read.
      ValueError: it is not a .zip, or its frames are compressed or encrypted.
    """
    videos: dict[Any, dict] = {}
    try:
        with open(path, 'rb', opener=_open_at_once) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except OSError:
        raise
    except Exception as error:  # zipfile has no common base for what is wrong with a file
        raise ValueError(
            f'{printable(path, 1000)} is not a .zip, or its end is missing: {one_line(error)}'
        ) from None
    for member in members:
        name = member.filename if '/' in member.filename else member.filename.replace('\\', '/')
        if not is_frame(name):
            continue
        encrypted = member.flag_bits & 1
        if encrypted or member.compress_type != zipfile.ZIP_STORED:
            state = 'encrypted' if encrypted else 'compressed, which costs time and saves no space'
            raise ValueError(
                f'{printable(path, 1000)}: {printable(name)} is {state}: extract it and give the '
                'folder, or zip it again with zip -0'
            )
        *parents, name = name.split('/')
        key = ('', '', *parents)[-2:]
        # Of two members of one name the later one counts, as for every program that extracts them.
        videos.setdefault(key, {})[name] = (
            frame_order(name),
            member.header_offset,
            member.file_size,
        )
    for (class_name, video), frames in sorted(videos.items()):
        _, offsets, sizes = zip(*sorted(frames.values()))
        yield (
            class_name,
            video,
            ZippedFrames(os.fspath(path), np.array(offsets, np.int64), np.array(sizes, np.int64)),
        )


def record_from_frames(
    source: FrameFolder | ZippedFrames, video_id: str, label: int, settings: RecordSettings
) -> dict:
    """The record of a video that comes as JPEG files; the fields are those of
    records.record_from_file, with fps 0.

    A frame that already has the wanted short side keeps its bytes: it is decoded to check that it
    is whole, but not encoded again. A frame with an EXIF orientation is turned upright, as viewers
    do, and CMYK becomes RGB.

    Raises:
      VideoError: 'missing', 'unreadable', 'too short', 'too large', 'decode errors', 'frame size
        changes' or 'no frames'.
    """
    count, read, names = _opened(source)
    if not count:
        raise VideoError('no frames', 'no .jpg')
    if count < settings.min_frames:
        raise VideoError('too short', f'{count} frames, at least {settings.min_frames} are needed')
    index, stored = kept_frames(count, settings.max_frames), []
    size: tuple[int, ...] = ()
    for i in index.tolist():
        which = f'frame {i} of {count}' + (f' ({names[i]})' if names else '')
        data = read(i, which)
        frame, as_stored = _decoded(data, which)
        if settings.short_side and min(frame.shape[:2]) != settings.short_side:
            frame, as_stored = resize_short_side(frame, settings.short_side), False
        if not as_stored:
            data = encode_jpeg(frame, settings.jpeg_quality)
        if size not in ((), frame.shape):
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


def _decoded(data, which) -> tuple[np.ndarray, bool]:
    """(uint8 [H, W, 3] RGB, upright; whether that is what decoding `data` gives)."""
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as header:
            (width, height), mode = header.size, header.mode
            orientation = header.getexif().get(ORIENTATION, 1)
    except Exception as error:  # Pillow may raise anything for the files of strangers
        raise VideoError(
            'decode errors', f'{which} is damaged, or not a JPEG file ({one_line(error)[:80]})'
        ) from None
    if width * height > MAX_PIXELS:  # 65500x65500 would take 13 GB
        raise VideoError('too large', f'{which} claims {width}x{height} pixels')
    try:
        frame = decode_jpeg(data)
    except ValueError:
        raise VideoError('decode errors', f'{which} is damaged') from None
    turned = UPRIGHT.get(orientation, np.asarray)(frame)
    return np.ascontiguousarray(turned), turned is frame and mode in ('RGB', 'L')


def _opened(source) -> tuple[int, Callable[[int, str], bytes], list[str]]:
    """(number of frames, function that reads one of them, their file names, [] in a .zip)."""
    if isinstance(source, ZippedFrames):
        return len(source.offsets), lambda i, which: _read_member(source, i, which), []
    try:
        names = sorted(filter(is_frame, os.listdir(source.path)), key=frame_order)
    except FileNotFoundError:
        raise VideoError('missing') from None
    except OSError as error:
        raise VideoError('unreadable', error.strerror or str(error)) from None
    return (
        len(names),
        lambda i, which: _read(os.path.join(source.path, names[i]), 0, None, which),
        names,
    )


def _read_member(source, i, which):
    offset, size = int(source.offsets[i]), int(source.sizes[i])
    header = _read(source.path, offset, LOCAL_HEADER, which)
    if header[:4] != b'PK\x03\x04':
        raise VideoError('decode errors', f'{which} is not where the index of the .zip has it')
    names = int.from_bytes(header[26:28], 'little') + int.from_bytes(header[28:30], 'little')
    return _read(source.path, offset + LOCAL_HEADER + names, size, which)


def _read(path, offset, size, which):
    """`size` bytes of a file from `offset` on; size None reads all of it."""
    try:
        with open(path, 'rb', opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise VideoError('decode errors', f'{which} is a pipe or a device, not a file')
            size = status.st_size if size is None else size
            if size > MAX_BYTES or offset + size > status.st_size:
                raise VideoError('decode errors', f'{which} claims {size:,} bytes')
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        raise VideoError('missing', which) from None
    except IsADirectoryError:
        raise VideoError('decode errors', f'{which} is a folder, not a file') from None
    except OSError as error:
        raise VideoError('unreadable', f'{which}: {error.strerror or error}') from None


def _open_at_once(path, flags):
    """Opens a file without waiting: a pipe would wait until somebody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
