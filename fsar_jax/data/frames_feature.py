"""The frames of a record as TFDS sees them: JPEG on disk, uint8 [L, H, W, 3] for who reads it.

Reading needs no TensorFlow. Two decoders of `as_data_source(split, decoders={'frames': …})` save
work: `tfds.decode.SkipDecoding()` keeps the JPEG bytes, and `TakeFrames(8)` decodes eight frames.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.data.frames import decode_jpeg, encode_jpeg


class Frames(tfds.features.FeatureConnector):
    """L frames of one size, uint8 [L, H, W, 3] RGB; stored as L JPEG byte strings.

    A builder may give the byte strings, or the frames as arrays, which are then encoded.
    """

    def get_tensor_info(self) -> tfds.features.TensorInfo:
        return tfds.features.TensorInfo(shape=(None, None, None, 3), dtype=np.uint8)

    def get_serialized_info(self) -> tfds.features.TensorInfo:
        return tfds.features.TensorInfo(shape=(None,), dtype=np.object_)

    def encode_example(self, example_data: Sequence[bytes | np.ndarray]) -> list[bytes]:
        return [
            bytes(frame) if isinstance(frame, (bytes, bytearray)) else encode_jpeg(frame)
            for frame in example_data
        ]

    def decode_example_np(self, example_data: Sequence[bytes]) -> np.ndarray:
        """JPEG byte strings -> uint8 [L, H, W, 3]; ValueError where one is damaged, or of another
        size than the first."""
        if not len(example_data):
            return np.empty((0, 0, 0, 3), np.uint8)
        first = decode_jpeg(example_data[0])
        frames = np.empty((len(example_data), *first.shape), np.uint8)
        frames[0] = first
        for i, data in enumerate(example_data[1:], 1):
            frame = decode_jpeg(data)
            if frame.shape != first.shape:
                raise ValueError(
                    f'frame {i} has {frame.shape[1]}x{frame.shape[0]} pixels, frame 0 has '
                    f'{first.shape[1]}x{first.shape[0]}: the record is damaged'
                )
            frames[i] = frame
        return frames

    def decode_example(self, example_data: Any) -> Any:
        """The same in a graph of TensorFlow: string [L] -> uint8 [L, H, W, 3]."""
        import tensorflow as tf  # only where somebody else has installed it

        # The decoder that `decode_jpeg` is: the pixels are equal.
        decode = lambda data: tf.io.decode_jpeg(data, channels=3, dct_method='INTEGER_ACCURATE')
        frames = tf.map_fn(decode, example_data, fn_output_signature=tf.uint8)
        return tf.ensure_shape(frames, (None, None, None, 3))


class TakeFrames(tfds.decode.Decoder):
    """Decodes some frames of each clip: `decoders={'frames': TakeFrames(8)}`.

    which: how many, evenly spaced from the first to the last (a shorter clip repeats frames); or a
        slice; or indices of frames; or a function from the number of frames of a clip to indices.
        In the place of indices, a mask says of each frame whether it is taken.
    """

    def __init__(self, which: int | slice | Sequence[int] | Callable[[int], Sequence[int]]) -> None:
        super().__init__()
        if hasattr(which, '__index__') and getattr(which, 'ndim', 0) == 0:
            which = operator.index(which)  # type: ignore[arg-type]
            if which < 1:
                raise ValueError(f'TakeFrames({which}): take at least 1 frame')
        elif not isinstance(which, slice) and not callable(which):
            _as_index(which)
        self.which = which

    def indices(self, num_frames: int) -> np.ndarray:
        """Which frames of a clip are taken, int [L]; IndexError where it has no such frame."""
        if isinstance(self.which, int):
            return frame_indices(num_frames, self.which, 'uniform')
        if isinstance(self.which, slice):
            return np.arange(num_frames)[self.which]
        which = self.which(num_frames) if callable(self.which) else self.which
        return np.arange(num_frames)[_as_index(which)]

    def decode_example_np(self, serialized_example: Sequence[bytes]) -> np.ndarray:
        taken = [serialized_example[i] for i in self.indices(len(serialized_example))]
        return self.feature.decode_example_np(taken)

    def decode_example(self, serialized_example: Any) -> Any:
        import tensorflow as tf

        indices = tf.numpy_function(
            lambda count: self.indices(int(count)).astype(np.int64),
            [tf.size(serialized_example)],
            tf.int64,
        )
        indices = tf.ensure_shape(indices, (None,))
        return self.feature.decode_example(tf.gather(serialized_example, indices))


def _as_index(which):
    """Indices of frames int [L], or a mask bool [num_frames]; ValueError for anything else."""
    found = np.asarray(which)
    if found.ndim == 1 and not len(found):
        return found.astype(np.int64)
    if found.ndim != 1 or found.dtype.kind not in 'iub':
        raise ValueError(
            f'TakeFrames takes a number of frames, a slice, or a list of indices, not {which!r:.80}'
        )
    return found


def stored_features(directory: str | os.PathLike) -> tfds.features.FeaturesDict:
    """The features of a built dataset, as its features.json says. Datasets of older versions call
    their frames a sequence of texts; here they are `Frames`, which reads the same bytes."""
    features = tfds.features.FeatureConnector.from_config(os.fspath(directory))
    if 'frames' not in features or isinstance(features['frames'], Frames):
        return features
    return tfds.features.FeaturesDict({**features, 'frames': Frames()})
