"""Reads single clips: the frames of a video that an episode uses, cropped, uint8."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from fsar_jax.data import frames as frame_tools
from fsar_jax.data.dataset import Videos
from fsar_jax.data.episodes import jitter_generator, jitter_seed
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.messages import printable


class Clips:
    """Reads clips of a dataset according to config.data and config.episode. Decodes only the frames
    that are used.

    Args:
      frames: L, number of frames to read of each clip; None for config.episode.frames. A sampler
        that chooses among more frames needs these (fsar_jax.stages.frames_read).

    Raises:
      ValueError: settings that no clip can meet.
    """

    def __init__(self, dataset: Videos, config: ConfigDict, frames: int | None = None) -> None:
        data, episode = config.data, config.episode
        if episode.image_size > data.resize:
            raise ValueError(
                f'config.episode.image_size={episode.image_size} is larger than the short side of '
                f'the frames, config.data.resize={data.resize}: lower the first or raise the second'
            )
        if data.crop not in ('random', 'centre'):
            raise ValueError(f"config.data.crop={data.crop!r} is not one of 'random', 'centre'")
        frame_indices(1, 1, data.sampling)  # a wrong rule is an error now, not in a loader thread
        self.dataset, self.length = dataset, frames or episode.frames
        self.size, self.short_side = episode.image_size, data.resize
        self.rule, self.random_crop, self.flip = data.sampling, data.crop == 'random', data.flip
        self.jitter_seed = jitter_seed(config)

    def empty(self, *leading: int) -> np.ndarray:
        """Room for clips: uint8 [*leading, L, S, S, 3], S = config.episode.image_size."""
        return np.empty((*leading, self.length, self.size, self.size, 3), np.uint8)

    def read_all(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(clips uint8 [..., L, S, S, 3], whether each still has to be flipped, bool [...]) of the
        videos at `positions`, int [...]."""
        clips, flips = self.empty(*positions.shape), np.zeros(positions.shape, bool)
        for index in np.ndindex(positions.shape):
            flips[index] = self.read(int(positions[index]), clips[index], rng)
        return clips, flips

    def read(self, position: int, out: np.ndarray, rng: np.random.Generator | None = None) -> bool:
        """Writes the clip into `out`, uint8 [L, S, S, 3]; returns whether it still has to be
        flipped. Without `rng`, it is the test view.

        Raises:
          OSError, ValueError: the record cannot be read, or a frame cannot be decoded.
        """
        dataset = self.dataset
        record, num_frames = dataset.read(int(position)), int(dataset.num_frames[position])
        try:
            if len(record['frames']) != num_frames:
                raise ValueError(
                    f'its record holds {len(record["frames"])} frames, the metadata says '
                    f'{num_frames}: {dataset.advice}'
                )
            jitter = rng or jitter_generator(self.jitter_seed, dataset, position)
            return self.view(record['frames'], num_frames, out, rng, jitter)
        except ValueError as error:
            name = printable(dataset.video_ids[position])
            raise ValueError(
                f"video '{name}' of {dataset.name} {dataset.split}: {error}"
            ) from error

    def view(
        self,
        stored: Sequence[bytes] | Mapping[int, bytes],
        num_frames: int,
        out: np.ndarray,
        rng: np.random.Generator | None = None,
        jitter: np.random.Generator | None = None,
    ) -> bool:
        """As `read`, of a clip whose stored frames are given as JPEG bytes: all `num_frames` of
        them, or at least those that `frame_indices` takes, by their index.

        jitter: what draws the frames; None for the fixed ones of the rule.
        """
        indices, shape = frame_indices(num_frames, self.length, self.rule, jitter), None
        for t, index in enumerate(indices):
            if t and index == indices[t - 1]:
                out[t] = out[t - 1]
                continue
            frame = self._frame(stored, index, shape)
            if t == 0:
                shape = frame.shape
                x, y, flip = self._draw(shape[1], shape[0], rng)
            out[t] = frame[y : y + self.size, x : x + self.size]
        return flip

    def read_views(self, position: int, start: int, end: int, views: int) -> np.ndarray:
        """Stored frames `start` … `end` − 1 of a video in each of its views: uint8 [views,
        end − start, S, S, 3], nothing left to flip.

        View 0 is the test view. What the others show depends only on the id of the video, on their
        number and on config.data: with crop 'random' each has a place of its own, and with `flip`
        those of odd numbers are mirrored.

        Raises:
          OSError, ValueError: as `read`.
        """
        name = self.dataset.video_ids[position]
        stored, shape = self.dataset.read(int(position))['frames'], None
        out = np.empty((views, end - start, self.size, self.size, 3), np.uint8)
        try:
            for t, index in enumerate(range(start, end)):
                frame = self._frame(stored, index, shape)
                if t == 0:
                    shape = frame.shape
                    places = [self._place(name, view, shape) for view in range(views)]
                for view, (x, y) in enumerate(places):
                    crop = frame[y : y + self.size, x : x + self.size]
                    out[view, t] = crop[:, ::-1] if self.flip and view % 2 else crop
        except ValueError as error:
            where = f'{self.dataset.name} {self.dataset.split}'
            raise ValueError(f"video '{printable(name)}' of {where}: {error}") from error
        return out

    def _place(self, name, view, shape):
        """(x, y) of the crop of a view."""
        if not view or not self.random_crop:
            return frame_tools.centre_crop_offset(shape[1], shape[0], self.size)
        digest = hashlib.sha256(name.encode()).digest()
        key = np.array([int.from_bytes(digest[:8], 'little'), view], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        limits = frame_tools.random_crop_limits(shape[1], shape[0], self.size)
        return tuple(int(rng.integers(0, limit, endpoint=True)) for limit in limits)

    def _frame(self, stored, index, shape):
        """A frame, decoded and resized; ValueError if it has not `shape`, unless that is None."""
        frame = frame_tools.resize_short_side(self._decode(stored[index]), self.short_side)
        if shape is not None and frame.shape != shape:
            raise ValueError(
                f'frame {index} is {frame.shape[1]}x{frame.shape[0]}, the others are '
                f'{shape[1]}x{shape[0]}: {self.dataset.advice}'
            )
        return frame

    def _decode(self, data):
        try:
            return frame_tools.decode_jpeg(data)
        except ValueError as error:
            raise ValueError(f'{error}: {self.dataset.advice}') from error

    def _draw(self, width, height, rng):
        """Crop offset and flip of one clip. The published order is flip, then crop: the host takes
        the mirrored crop."""
        if rng is None or not self.random_crop:
            x, y = frame_tools.centre_crop_offset(width, height, self.size)
        else:
            x, y = (
                int(rng.integers(0, limit, endpoint=True))
                for limit in frame_tools.random_crop_limits(width, height, self.size)
            )
        flip = rng is not None and self.flip and bool(rng.random() < 0.5)
        return frame_tools.mirrored_crop_x(x, width, self.size) if flip else x, y, flip
