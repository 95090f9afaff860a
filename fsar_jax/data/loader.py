"""From a dataset and episode indices to arrays: read, decode, resize and crop in parallel, ahead of
the device.

Grain reads one episode (or one video) per element, in order, in threads of this process (JPEG
decoding releases the interpreter lock) or, with config.data.num_workers, in worker processes.
Neither changes a byte of what comes out. `config.data.prefetch` batches are kept ready; at paper
size (16 episodes of 45 videos at 224 px) a batch is 0.9 GB. Worker processes hand their episodes
over in /dev/shm, which has to hold a little more than twice as much.

Everything is uint8. A training clip's view (frame jitter, then crop x, crop y, then flip, each only
where the config has it; support before query) comes from the VIEWS stream of its episode and is
shared by the frames of the clip. L is `frames_read(config)`: the frames of an episode, or as many
as a sampler chooses them from.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from fsar_jax.data import episodes as episode_lists
from fsar_jax.data import frames as frame_tools
from fsar_jax.data.dataset import Videos
from fsar_jax.data.frame_sampling import frame_indices, frames_read
from fsar_jax.machine import usable_cores
from fsar_jax.messages import printable

ENDLESS = 1 << 40  # elements of the training stream: the caller decides when it ends
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # parameters of glibc's mallopt
SHARED_MEMORY = (
    '/dev/shm'  # where Linux keeps what worker processes hand over; macOS has no such folder
)


def usable(dataset: Videos, config) -> Videos:
    """The videos that config.data.short_videos allows: with 'drop', those of at least
    config.episode.frames frames. `dataset` itself where that is all of them.

    ValueError when no video is left.
    """
    rule, length = config.data.short_videos, config.episode.frames
    if rule not in ('drop', 'repeat'):
        raise ValueError(f"config.data.short_videos={rule!r} is not one of 'drop', 'repeat'")
    keep = np.asarray(dataset.num_frames) >= (length if rule == 'drop' else 1)
    if not keep.any():
        raise ValueError(
            f'none of the {len(keep)} videos of {dataset.name} {dataset.split} has '
            f"config.episode.frames={length} frames: lower it, or set "
            f"config.data.short_videos='repeat'"
        )
    if keep.all():
        return dataset
    kept = dataset.subset(np.flatnonzero(keep))
    kept.dropped = np.concatenate([dataset.dropped, np.asarray(dataset.labels, np.int32)[~keep]])
    return kept


def training_batches(
    dataset, config, start_step: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict]:
    """Batches of step start_step, start_step + 1, … without end; `close()` stops the reading.

    Step s holds the episodes s·episodes_per_step … of (config.seed, dataset.split), cut into A =
    accumulation_steps parts; of each part, a process takes its contiguous share of M episodes.

    Returns:
      An iterator of dicts: support uint8 [A, M, way, shot, L, S, S, 3], query uint8 [A, M, Q, L, S,
        S, 3] (S: image_size),
      labels int32 [A, M, Q], support_flip bool [A, M, way, shot], query_flip bool [A, M, Q]: clips
      that the device still has
      to flip horizontally, classes int32 [A, M, way]: which class of the split each row of the
        support is, 0 … classes of the
      split − 1 in the order of their labels, episode int64 [A, M].
    """
    total, parts = config.train.episodes_per_step, config.train.accumulation_steps
    if total % (parts * process_count):
        raise ValueError(
            f'config.train.episodes_per_step={total} must be a multiple of '
            f'config.train.accumulation_steps={parts} x {process_count} processes'
        )
    dataset = usable(dataset, config)
    episode_lists.check_dataset(
        dataset, config.episode.way, config.episode.shot, config.episode.query
    )
    share = total // parts // process_count
    source = TrainingEpisodes(dataset, config, start_step, process_index, share)
    return _batches(
        source,
        config,
        parts * share,
        lambda batch: {
            key: value.reshape(parts, share, *value.shape[1:]) for key, value in batch.items()
        },
        _of_validation(config, process_count),
    )


def video_batches(dataset, config, positions, batch_size: int) -> Iterator[np.ndarray]:
    """The test view of `positions`, in their order: uint8 [<= batch_size, L, S, S, 3],
    deterministic per video."""
    source = TestVideos(dataset, config, _checked(dataset, config, positions))
    return _batches(source, config, batch_size, lambda batch: batch['frames'])


def episode_batches(
    dataset, config, episodes: episode_lists.Episodes, batch_size: int
) -> Iterator[dict]:
    """The test view of every clip of every episode: what evaluation without a cache reads.

    Returns:
      An iterator of dicts with up to B = batch_size episodes each, in order: support uint8 [B, way,
      shot, L, S, S, 3], query uint8 [B, Q, L, S, S, 3], labels int32 [B, Q].
    """
    for positions in (episodes.support, episodes.query):
        _checked(dataset, config, positions)
    return _batches(TestEpisodes(dataset, config, episodes), config, batch_size)


class Clips:
    """Reads single clips of a dataset as config.data and config.episode say; decodes the sampled
    frames only."""

    def __init__(self, dataset, config):
        data, episode = config.data, config.episode
        if episode.image_size > data.resize:
            raise ValueError(
                f'config.episode.image_size={episode.image_size} is larger than the short side of '
                'the frames, '
                f'config.data.resize={data.resize}: lower the one or raise the other'
            )
        if data.crop not in ('random', 'centre'):
            raise ValueError(f"config.data.crop={data.crop!r} is not one of 'random', 'centre'")
        frame_indices(1, 1, data.sampling)  # a wrong rule is an error now, not in a loader thread
        self.dataset, self.length = dataset, frames_read(config)
        self.size, self.short_side = episode.image_size, data.resize
        self.rule, self.random_crop, self.flip = data.sampling, data.crop == 'random', data.flip

    def empty(self, *leading: int) -> np.ndarray:
        """Room for clips: uint8 [*leading, L, S, S, 3]."""
        return np.empty((*leading, self.length, self.size, self.size, 3), np.uint8)

    def read(self, position: int, out: np.ndarray, rng: np.random.Generator | None = None) -> bool:
        """Writes the clip into `out`, uint8 [L, S, S, 3]; `rng` None is the test view. True: it
        still has to be flipped."""
        dataset = self.dataset
        record = dataset.read(int(position))
        try:
            return self._view(record['frames'], int(dataset.num_frames[position]), out, rng)
        except ValueError as error:
            name = printable(dataset.video_ids[position])
            raise ValueError(
                f"video '{name}' of {dataset.name} {dataset.split}: {error}"
            ) from error

    def _view(self, stored, num_frames, out, rng):
        if len(stored) != num_frames:
            raise ValueError(
                f'its record holds {len(stored)} frames, the metadata says {num_frames}: '
                f'{self.dataset.advice}'
            )
        indices = frame_indices(num_frames, self.length, self.rule, rng)
        for t, index in enumerate(indices):
            if t and index == indices[t - 1]:
                out[t] = out[t - 1]
                continue
            frame = frame_tools.resize_short_side(self._decode(stored[index]), self.short_side)
            if t == 0:
                shape = frame.shape
                x, y, flip = self._draw(shape[1], shape[0], rng)
            elif frame.shape != shape:
                raise ValueError(
                    f'frame {index} is {frame.shape[1]}x{frame.shape[0]}, the others are '
                    f'{shape[1]}x{shape[0]}: '
                    f'{self.dataset.advice}'
                )
            out[t] = frame[y : y + self.size, x : x + self.size]
        return flip

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


# The three sources are what Grain indexes, in threads or, pickled, in worker processes.
# `clips_each`: clips of an element.


class TrainingEpisodes:
    """Element k is the k-th episode that this process trains on, counted from start_step."""

    def __init__(self, dataset, config, start_step, process_index, share):
        episode, train = config.episode, config.train
        self.clips, self.by_class = Clips(dataset, config), episode_lists.clips_by_class(dataset)
        self.classes = np.unique(dataset.labels)
        self.shape, self.seed = (episode.way, episode.shot, episode.query), config.seed
        self.clips_each = episode.way * (episode.shot + episode.query)
        self.per_step, self.parts = train.episodes_per_step, train.accumulation_steps
        self.start_step, self.process_index, self.share = start_step, process_index, share

    def __len__(self):
        return ENDLESS

    def __repr__(self):
        return 'TrainingEpisodes()'  # Grain names its stages with this, at every step

    def episode_index(self, element: int) -> int:
        step, place = divmod(element, self.parts * self.share)
        part, place = divmod(place, self.share)
        return (
            (self.start_step + step) * self.per_step
            + part * (self.per_step // self.parts)
            + self.process_index * self.share
            + place
        )

    def __getitem__(self, element):
        index = self.episode_index(int(element))
        dataset = self.clips.dataset
        drawn = episode_lists.draw_episode(dataset, *self.shape, self.seed, index, self.by_class)
        rng = episode_lists.episode_generator(self.seed, dataset.split, index, episode_lists.VIEWS)
        support, support_flip = _read_all(self.clips, drawn.support[0], rng)
        query, query_flip = _read_all(self.clips, drawn.query[0], rng)
        classes = np.searchsorted(self.classes, drawn.classes[0]).astype(np.int32)
        return dict(
            support=support,
            query=query,
            labels=drawn.labels[0],
            classes=classes,
            support_flip=support_flip,
            query_flip=query_flip,
            episode=np.int64(index),
        )


class TestVideos:
    """Element k is the test view of video positions[k]."""

    __test__ = False  # the name is not for pytest
    clips_each = 1

    def __init__(self, dataset, config, positions):
        self.clips, self.positions = Clips(dataset, config), positions

    def __len__(self):
        return len(self.positions)

    def __repr__(self):
        return 'TestVideos()'

    def __getitem__(self, element):
        frames = self.clips.empty()
        self.clips.read(self.positions[element], frames)
        return dict(frames=frames)


class TestEpisodes:
    """Element k is the test view of the clips of episode k of a list."""

    __test__ = False

    def __init__(self, dataset, config, episodes):
        self.clips, self.episodes = Clips(dataset, config), episodes
        self.clips_each = sum(
            part[0].size if len(part) else 0 for part in (episodes.support, episodes.query)
        )

    def __len__(self):
        return len(self.episodes.support)

    def __repr__(self):
        return 'TestEpisodes()'

    def __getitem__(self, element):
        support, _ = _read_all(self.clips, self.episodes.support[element])
        query, _ = _read_all(self.clips, self.episodes.query[element])
        return dict(
            support=support, query=query, labels=np.asarray(self.episodes.labels[element], np.int32)
        )


def _read_all(clips, positions, rng=None):
    """Clips at positions [...] -> uint8 [..., L, S, S, 3] and flips bool [...]."""
    frames, flips = clips.empty(*positions.shape), np.zeros(positions.shape, bool)
    for place in np.ndindex(positions.shape):
        flips[place] = clips.read(positions[place], frames[place], rng)
    return frames, flips


def _checked(dataset, config, positions):
    positions = np.asarray(positions)
    if positions.size and not 0 <= positions.min() <= positions.max() < len(dataset):
        raise ValueError(
            f'positions {positions.min()}..{positions.max()} are outside the {len(dataset)} videos '
            'of '
            f'{dataset.name} {dataset.split}'
        )
    length = config.episode.frames
    if (
        config.data.short_videos == 'drop'
        and (short := np.asarray(dataset.num_frames)[positions] < length).any()
    ):
        first = int(positions[short][0])
        raise ValueError(
            f"video '{dataset.video_ids[first]}' of {dataset.name} {dataset.split} has "
            f'{dataset.num_frames[first]} frames, fewer than config.episode.frames={length}: take '
            'the dataset '
            f"through usable(), or set config.data.short_videos='repeat'"
        )
    return positions


def _batches(source, config, size, finish=lambda batch: batch, beside=0):
    """Generator of `finish({key: array [size, ...]})`, new arrays each time; the last batch of a
    source may be smaller.

    beside: bytes of shared memory that others will want while this is open.
    """
    if config.data.num_workers:  # now, not at the first batch
        check_shared_memory(
            config, shared_memory(config, source.clips_each, size, len(source)) + beside
        )
    return _generate(source, config, size, finish)


def _generate(source, config, size, finish):
    with contextlib.closing(_elements(source, config, size)) as elements:
        for start in range(0, len(source), size):
            count, batch = min(size, len(source) - start), {}
            for place in range(count):
                for key, value in next(elements).items():
                    if place == 0:
                        batch[key] = np.empty((count, *value.shape), value.dtype)
                    batch[key][place] = value
            yield finish(batch)


def _elements(source, config, batch_size):
    """Generator of the source's elements, read in parallel, config.data.prefetch batches ahead."""
    threads, workers = config.data.num_threads or usable_cores(), config.data.num_workers
    elements = grain.MapDataset.source(source)
    if workers:
        if (
            not flags.FLAGS.is_parsed()
        ):  # Grain reads absl flags when it starts a process, even outside an absl app
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=_per_worker(config, batch_size)
        )
        elements = elements.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        )
        elements = elements.mp_prefetch(options, worker_init_fn=_start_worker)
    else:
        keep_freed_memory()
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(threads, _ahead(config, batch_size))
        )
        elements = elements.to_iter_dataset(options)
    iterator = iter(elements)
    try:
        for element in iterator:
            yield element
    except RuntimeError as error:
        code = re.search(r'exit code (-?\d+)', str(error))
        if not code:
            raise
        raise OSError(_why_worker_ended(int(code[1]))) from None
    finally:
        iterator.close()


def _ahead(config, batch_size):
    return max(1, config.data.prefetch) * batch_size


def _per_worker(config, batch_size):
    """Elements that a worker process keeps ready."""
    return -(-_ahead(config, batch_size) // config.data.num_workers)


def shared_memory(config, clips_each: int, batch_size: int, count: int = ENDLESS) -> int:
    """Bytes that config.data.num_workers processes keep in shared memory at most: elements of
    `clips_each` clips, `count` in all.

    Each process holds the elements of its queue and the one that it is at; as many wait in this
    process, which holds another while it copies it.
    """
    held = min(count, config.data.num_workers * (2 * _per_worker(config, batch_size) + 2) + 1)
    pixels = clips_each * frames_read(config) * config.episode.image_size**2 * 3
    return held * (pixels + 8 * mmap.PAGESIZE)  # labels, flips and the like take a page each


def _of_validation(config, process_count):
    """Shared memory of the evaluation on val (fsar_jax/evaluation/evaluate.py), which runs while
    training is kept ready."""
    if not config.data.num_workers or not config.get('eval') or not config.eval.val_episodes:
        return 0
    batch = -(-config.eval.videos_per_batch // process_count)
    if config.eval.cache:
        return shared_memory(config, 1, batch)
    clips = config.episode.way * (config.episode.shot + config.eval.query)
    return shared_memory(config, clips, max(1, batch // clips))


def check_shared_memory(config, needed: int) -> None:
    """Raises ValueError where /dev/shm has not `needed` bytes free: a process that writes beyond it
    is killed."""
    workers = config.data.num_workers
    try:
        there = os.statvfs(SHARED_MEMORY)
    except OSError:
        if sys.platform == 'linux':
            raise ValueError(
                f'config.data.num_workers={workers} needs {SHARED_MEMORY}, which is not there: set '
                'config.data.num_workers=0, whose threads need none'
            ) from None
        return
    if not os.access(SHARED_MEMORY, os.W_OK):
        raise ValueError(
            f'config.data.num_workers={workers} needs {SHARED_MEMORY}, which may not be written: '
            'set '
            'config.data.num_workers=0, whose threads need none'
        )
    free = there.f_bavail * there.f_frsize
    if needed > free:
        raise ValueError(
            f'config.data.num_workers={workers} with config.data.prefetch={config.data.prefetch} '
            f'keeps up to {_mib(needed)} in '
            f'{SHARED_MEMORY}, which has {_mib(free)} free: set config.data.num_workers=0 (threads '
            'need none of it), lower '
            'config.data.prefetch, or make it larger (docker run '
            f'--shm-size={needed // 2**30 + 1}g)'
        )


def _mib(size):
    return f'{size / 2**20:,.1f} MiB'


def _why_worker_ended(code):
    ended = f'a worker process of the loader (config.data.num_workers) ended with exit code {code}'
    if code == -signal.SIGBUS:
        return (
            f'{ended} (SIGBUS): {SHARED_MEMORY} is full; set config.data.num_workers=0, lower '
            'config.data.prefetch, or make '
            'it larger (docker run --shm-size=8g)'
        )
    if code == -signal.SIGKILL:
        return f'{ended} (SIGKILL), as when the memory is used up: lower config.data.num_workers or config.data.prefetch'
    name = f' ({signal.Signals(-code).name})' if -code in set(signal.Signals) else ''
    return f'{ended}{name}: see what it printed above, or set config.data.num_workers=0'


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed: reading records and frames otherwise spends most of its
    time on page faults."""
    with contextlib.suppress(OSError, AttributeError):  # another C library: slower, not wrong
        libc = ctypes.CDLL('libc.so.6')
        libc.mallopt(MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(TRIM_THRESHOLD, 1 << 30)


def _start_worker(worker, workers):
    del worker, workers
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process of a terminal: the parent ends this one
    keep_freed_memory()

    def watch():  # a worker outlives a killed parent and would keep its shared memory
        # at once where it died before this process was ready
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
