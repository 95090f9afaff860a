"""Frames: JPEG bytes, resizing, crop geometry. uint8 RGB throughout.

The published reader (TRX, reused by STRM and TA2N) resizes the short side, flips the clip with
probability 0.5, then crops it. Here the host crops and the device flips, because flipping is nearly
free on the device and slow in numpy. With `mirrored_crop_x` the host takes the mirror image of the
published crop, so that flipping it afterwards gives exactly the published pixels.
"""

from __future__ import annotations

import importlib.metadata
import io

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:  # no wheel for this platform: slower codecs, the same pixels
    simplejpeg = None  # type: ignore[assignment]
try:
    import cv2
except ImportError:
    cv2 = None  # type: ignore[assignment]


def codec_versions() -> dict[str, str]:
    """Versions of the packages that resize frames and encode JPEG here: {'pillow': '11.0.0',
    'simplejpeg': '1.9.0'}."""
    names = ['pillow'] if simplejpeg is None else ['pillow', 'simplejpeg']
    return {name: importlib.metadata.version(name) for name in names}


def decode_jpeg(data: bytes) -> np.ndarray:
    """JPEG bytes -> uint8 [H, W, 3] RGB. ValueError when the bytes are not a readable JPEG."""
    try:
        if simplejpeg is not None:
            return simplejpeg.decode_jpeg(data, colorspace='RGB', fastdct=False, fastupsample=False)
        if cv2 is not None:
            # The others do not turn frames by their EXIF data either.
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            frame = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
            if frame is None:  # how cv2 reports damage
                raise ValueError('cv2 could not decode it')
            return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        return np.array(Image.open(io.BytesIO(data)).convert('RGB'))
    except (ValueError, OSError) as error:
        raise ValueError(
            f'a frame of {len(data)} bytes is not a readable JPEG ({error})'
        ) from error
    except MemoryError as error:  # a damaged header may claim 65,500 x 65,500 pixels
        raise ValueError(
            f'a frame of {len(data)} bytes is not a readable JPEG, or is too large for the memory'
        ) from error


def encode_jpeg(frame: np.ndarray, quality: int = 95) -> bytes:
    """uint8 [H, W, 3] RGB -> JPEG bytes with 4:2:0 chroma; `quality` is 1..100."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(
            f'a frame to encode must be uint8 [H, W, 3], got {frame.dtype} {frame.shape}'
        )
    frame = np.ascontiguousarray(frame)
    if simplejpeg is not None:
        return simplejpeg.encode_jpeg(
            frame, quality=quality, colorspace='RGB', colorsubsampling='420', fastdct=False
        )
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, 'JPEG', quality=quality, subsampling=2)
    return buffer.getvalue()


def resized_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) after resizing the short side to `short_side` pixels; the long side is
    truncated, as published."""
    if min(width, height) == short_side:
        return width, height
    if width < height:
        return short_side, int(short_side * height / width)
    return int(short_side * width / height), short_side


def resize_short_side(frames: np.ndarray, short_side: int) -> np.ndarray:
    """Resizes uint8 [..., H, W, 3] so that its short side is `short_side` pixels.

    Uses PIL's BILINEAR, which averages over the covered area when it shrinks: the published pixels
    depend on that, and OpenCV's bilinear differs. Frames that already have that short side are
    returned as they are, not copied.
    """
    height, width = frames.shape[-3:-1]
    size = resized_size(width, height, short_side)
    if size == (width, height):
        return frames
    flat = [
        np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))
        for frame in frames.reshape(-1, height, width, 3)
    ]
    return np.stack(flat).reshape(*frames.shape[:-3], size[1], size[0], 3)


def centre_crop_offset(width: int, height: int, crop: int) -> tuple[int, int]:
    """(x, y) of the centre crop in pixels; halves are rounded to even, as published."""
    _check_crop(width, height, crop)
    return round((width - crop) / 2), round((height - crop) / 2)


def random_crop_limits(width: int, height: int, crop: int) -> tuple[int, int]:
    """Largest (x, y) of a random crop; offsets are drawn uniformly from 0 to these, both inclusive,
    x first."""
    _check_crop(width, height, crop)
    return width - crop, height - crop


def mirrored_crop_x(x: int, width: int, crop: int) -> int:
    """The x whose crop, flipped afterwards, equals the crop at `x` of the flipped frame."""
    return width - crop - x


def _check_crop(width, height, crop):
    if crop > min(width, height):
        raise ValueError(
            f'a crop of {crop} pixels does not fit in frames of {width}x{height}: lower '
            'config.episode.image_size, or raise config.data.resize to at least as much'
        )
