"""The record of one video: its stored frames as JPEG, and where they come from.

A record is one entry of an ArrayRecord file. Its frames stay encoded when it is read, so that using
8 of them decodes 8.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fsar_jax.data.frames import encode_jpeg, resize_short_side
from fsar_jax.data.frames_feature import Frames
from fsar_jax.ingest.video_files import read_video


@dataclasses.dataclass(frozen=True)
class RecordSettings:
    """How a file becomes a record; the dataset's metadata keep it.

    short_side: of the stored frames, in pixels; 0 keeps the size of the file.
    max_frames: how many frames are stored, evenly spaced over the clip; 0 stores all.
    min_frames: a clip with fewer frames is 'too short'.
    jpeg_quality: 1..100.
    square_pixels: 1 stores frames as players show them, stretched where the file's pixels are not
        square; 0 stores them as coded.
    """

    short_side: int = 256
    max_frames: int = 64
    min_frames: int = 8
    jpeg_quality: int = 95
    square_pixels: int = 1

    def __post_init__(self):
        if self.short_side < 0 or self.max_frames < 0 or self.min_frames < 1:
            raise ValueError(
                f'short_side={self.short_side} and max_frames={self.max_frames} must be at least '
                f'0, min_frames={self.min_frames} at least 1'
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f'jpeg_quality={self.jpeg_quality} must be from 1 to 100')
        if self.square_pixels not in (0, 1):
            raise ValueError(f'square_pixels={self.square_pixels} must be 0 or 1')


def record_features(
    class_names: list[str] | None = None, **truth: tfds.features.FeatureConnector
) -> tfds.features.FeaturesDict:
    """Features of a record; `truth` are additional ones, of a dataset that knows more about its
    clips.

    frames are not tfds' own Image or Video features, which need TensorFlow.
    """
    return tfds.features.FeaturesDict(
        {
            'frames': Frames(doc='the stored frames, RGB; JPEG on disk'),
            'label': tfds.features.ClassLabel(names=class_names, doc='the class'),
            'video_id': tfds.features.Text(doc='`<class>/<video>`'),
            'num_frames': number(np.int32, 'how many frames are stored'),
            'source_frames': number(np.int32, 'how many frames the file has'),
            'frame_index': tfds.features.Sequence(
                np.int32, doc='which frames of the file are stored'
            ),
            'source_stream': number(np.int32, 'index of the video stream in the file'),
            'fps': number(np.float32, 'frames per second of the file; 0 where it does not say'),
            'width': number(np.int32, 'of the stored frames, in pixels'),
            'height': number(np.int32, 'of the stored frames, in pixels'),
            'decode_errors': number(np.int32, 'packets of the file that could not be decoded'),
            **truth,
        }
    )


def number(dtype: type[np.generic], doc: str) -> tfds.features.FeatureConnector:
    """A feature of one number per record; `doc` says what it is."""
    return tfds.features.Tensor(shape=(), dtype=dtype, doc=doc)


def file_record(source: Any, settings: RecordSettings) -> dict:
    """`record_from_file` of a VideoSource whose origin is the path of a file."""
    return record_from_file(source.origin, source.video_id, source.label, settings)


def record_from_file(
    path: str | os.PathLike, video_id: str, label: int, settings: RecordSettings
) -> dict:
    """Decodes, resizes and encodes one file; VideoError where it gives no usable clip."""
    size: tuple[int, ...] = ()

    def store(frame):
        nonlocal size
        if settings.short_side:
            frame = resize_short_side(frame, settings.short_side)
        size = frame.shape
        return encode_jpeg(frame, settings.jpeg_quality)

    video = read_video(
        path, settings.max_frames, settings.min_frames, store, bool(settings.square_pixels)
    )
    return {
        'frames': video.frames,
        'label': label,
        'video_id': video_id,
        'num_frames': len(video.frames),
        'source_frames': video.source_frames,
        'frame_index': video.frame_index,
        'source_stream': video.source_stream,
        'fps': video.fps,
        'width': size[1],
        'height': size[0],
        'decode_errors': video.decode_errors,
    }
