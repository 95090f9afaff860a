"""Batches of episodes and clips, read in parallel and ahead of the device.

Grain reads one episode (or one video) per element, in order: in threads of this process (JPEG
decoding releases the interpreter lock), or in worker processes where config.data.num_workers asks
for them. Both give the same batches, byte for byte. `config.data.prefetch` batches are loaded
ahead; at paper size (16 episodes of 45 videos at 224 px) a batch is 0.9 GB. Worker processes pass
their episodes on in shared memory (shared_memory.py), which must be a little more than twice as
large.

Frames are uint8. A dataset of extracted features (features.py) gives features [L, h, w, C] in their
place. The view of a training clip (frame jitter, then crop x, crop y, then flip, each
only where the config has it; support before query) comes from the VIEWS stream of its episode and
is shared by the frames of the clip. L is the argument `frames`: that of the config, or as many as
a sampler chooses from (fsar_jax.stages.frames_read).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from fsar_jax.data import episodes as episode_lists
from fsar_jax.data import shared_memory
from fsar_jax.data.clips import Clips
from fsar_jax.data.dataset import Videos
from fsar_jax.data.features import FeatureClips
from fsar_jax.machine import keep_what_readers_free, usable_cores
from fsar_jax.messages import printable

ENDLESS = 1 << 40  # elements of the training stream: the caller decides when it ends


def usable(dataset: Videos, config: ConfigDict) -> Videos:
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
            f'config.episode.frames={length} frames: lower it, or set '
            "config.data.short_videos='repeat'"
        )
    if keep.all():
        return dataset
    kept = dataset.subset(np.flatnonzero(keep))
    kept.dropped = np.concatenate([dataset.dropped, np.asarray(dataset.labels, np.int32)[~keep]])
    return kept


def training_batches(
    dataset: Videos,
    config: ConfigDict,
    start_step: int,
    process_index: int = 0,
    process_count: int = 1,
    frames: int | None = None,
    devices: int = 0,
) -> Generator[dict, None, None]:
    """Batches of step start_step, start_step + 1, … without end; `close()` stops the reading.

    Step s holds the episodes s·episodes_per_step … of (config.seed, dataset.split), cut into A =
    accumulation_steps parts; of each part, a process takes its contiguous share of M episodes.

    Args:
      frames: L; None for config.episode.frames.
      devices: of all processes; 0 for one each. An evaluation on val reads a clip for each.

    Returns:
      An iterator of dicts (S: image_size):
        support uint8 [A, M, way, shot, L, S, S, 3], query uint8 [A, M, Q, L, S, S, 3];
        labels int32 [A, M, Q];
        support_flip bool [A, M, way, shot], query_flip bool [A, M, Q]: clips that the device still
          has to flip horizontally;
        classes int32 [A, M, way]: which class of the split each row of the support is, 0 … classes
          of the split − 1, in the order of their labels;
        episode int64 [A, M].

    Raises:
      ValueError: the dataset is too small for the episodes, settings that contradict each other, or
        too little shared memory.
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
    source = TrainingEpisodes(dataset, config, start_step, process_index, share, frames)
    return batches(
        source,
        config,
        parts * share,
        lambda batch: {
            key: value.reshape(parts, share, *value.shape[1:]) for key, value in batch.items()
        },
        shared_memory.bytes_for_validation(
            config, source.clips.empty().nbytes, process_count, devices or process_count, ENDLESS
        ),
    )


def video_batches(
    dataset: Videos,
    config: ConfigDict,
    positions: Sequence[int] | np.ndarray,
    batch_size: int,
    frames: int | None = None,
) -> Generator[np.ndarray, None, None]:
    """The test view of `positions`, in their order: uint8 [<= batch_size, L, S, S, 3],
    deterministic per video. L is `frames`; None for config.episode.frames."""
    source = TestVideos(dataset, config, _checked(dataset, config, positions), frames)
    return batches(source, config, batch_size, lambda batch: batch['frames'])


def episode_batches(
    dataset: Videos,
    config: ConfigDict,
    episodes: episode_lists.Episodes,
    batch_size: int,
    frames: int | None = None,
) -> Generator[dict, None, None]:
    """The test view of every clip of every episode: what evaluation without a cache reads.

    Args:
      frames: L; None for config.episode.frames.

    Returns:
      An iterator of dicts with up to B = batch_size episodes each, in order: support uint8 [B, way,
      shot, L, S, S, 3], query uint8 [B, Q, L, S, S, 3], labels int32 [B, Q].
    """
    for positions in (episodes.support, episodes.query):
        _checked(dataset, config, positions)
    return batches(TestEpisodes(dataset, config, episodes, frames), config, batch_size)


def reader(dataset: Videos, config: ConfigDict, frames: int | None = None) -> Clips | FeatureClips:
    """What reads the clips of a dataset: their frames, or their features in the same places.
    `frames` as of `training_batches`."""
    return (FeatureClips if dataset.extractor else Clips)(dataset, config, frames)


def read_episode(
    clips: Clips | FeatureClips,
    shape: tuple[int, int, int],
    seed: int,
    index: int,
    by_class: Any,
    training: bool,
    query_classes: int | None = None,
) -> tuple[episode_lists.Episodes, tuple, tuple]:
    """Draws episode `index` and reads its clips.

    Args:
      clips: of `reader`.
      shape: (way, shot, query).
      by_class: of `episodes.clips_by_class`.
      training: the views of training, drawn from the episode's VIEWS stream; else those of a test.
      query_classes: config.episode.query_classes.

    Returns:
      (the episode, as a list of one; support and query, each (frames, which of the clips are to be
      flipped) as `Clips.read_all` gives them).
    """
    dataset, rng = clips.dataset, None
    drawn = episode_lists.draw_episode(dataset, *shape, seed, index, by_class, query_classes)
    if training:
        rng = episode_lists.episode_generator(seed, dataset.split, index, episode_lists.VIEWS)
    support = clips.read_all(drawn.support[0], rng)
    return drawn, support, clips.read_all(drawn.query[0], rng)


# Grain indexes these three, in threads or, pickled, in worker processes. `clips_each` is the number
# of clips in an element.


class TrainingEpisodes:
    """Element k is the k-th episode that this process trains on, counted from start_step."""

    def __init__(
        self,
        dataset: Videos,
        config: ConfigDict,
        start_step: int,
        process_index: int,
        share: int,
        frames: int | None = None,
    ) -> None:
        episode, train = config.episode, config.train
        self.clips = reader(dataset, config, frames)
        self.by_class = episode_lists.clips_by_class(dataset)
        self.classes = np.unique(dataset.labels)
        self.shape, self.seed = (episode.way, episode.shot, episode.query), config.seed
        self.query_classes = episode.get('query_classes')
        asked = self.query_classes or episode.way
        self.clips_each = episode.way * episode.shot + asked * episode.query
        self.per_step, self.parts = train.episodes_per_step, train.accumulation_steps
        self.start_step, self.process_index, self.share = start_step, process_index, share

    def __len__(self) -> int:
        return ENDLESS

    def __repr__(self):
        return 'TrainingEpisodes()'  # Grain names its stages with this, at every step

    def episode_index(self, element: int) -> int:
        step, of_step = divmod(element, self.parts * self.share)
        part, of_part = divmod(of_step, self.share)
        return (
            (self.start_step + step) * self.per_step
            + part * (self.per_step // self.parts)
            + self.process_index * self.share
            + of_part
        )

    def __getitem__(self, element: int) -> dict[str, np.ndarray]:
        index = self.episode_index(int(element))
        drawn, (support, support_flip), (query, query_flip) = read_episode(
            self.clips, self.shape, self.seed, index, self.by_class, True, self.query_classes
        )
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

    def __init__(
        self,
        dataset: Videos,
        config: ConfigDict,
        positions: Sequence[int] | np.ndarray,
        frames: int | None = None,
    ) -> None:
        self.clips, self.positions = reader(dataset, config, frames), positions

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self):
        return 'TestVideos()'

    def __getitem__(self, element: int) -> dict[str, np.ndarray]:
        frames = self.clips.empty()
        self.clips.read(self.positions[element], frames)
        return dict(frames=frames)


class TestEpisodes:
    """Element k is the test view of the clips of episode k of a list."""

    __test__ = False

    def __init__(
        self,
        dataset: Videos,
        config: ConfigDict,
        episodes: episode_lists.Episodes,
        frames: int | None = None,
    ) -> None:
        self.clips, self.episodes = reader(dataset, config, frames), episodes
        self.clips_each = sum(
            part[0].size if len(part) else 0 for part in (episodes.support, episodes.query)
        )

    def __len__(self) -> int:
        return len(self.episodes.support)

    def __repr__(self):
        return 'TestEpisodes()'

    def __getitem__(self, element: int) -> dict[str, np.ndarray]:
        support, _ = self.clips.read_all(self.episodes.support[element])
        query, _ = self.clips.read_all(self.episodes.query[element])
        return dict(
            support=support, query=query, labels=np.asarray(self.episodes.labels[element], np.int32)
        )


def _checked(dataset, config, positions):
    positions = np.asarray(positions)
    if positions.size and not 0 <= positions.min() <= positions.max() < len(dataset):
        raise ValueError(
            f'positions {positions.min()}..{positions.max()} are outside the {len(dataset)} videos '
            f'of {dataset.name} {dataset.split}'
        )
    length = config.episode.frames
    if (
        config.data.short_videos == 'drop'
        and (short := np.asarray(dataset.num_frames)[positions] < length).any()
    ):
        first = int(positions[short][0])
        raise ValueError(
            f"video '{printable(dataset.video_ids[first])}' of {dataset.name} {dataset.split} has "
            f'{dataset.num_frames[first]} frames, fewer than config.episode.frames={length}: take '
            "the dataset through usable(), or set config.data.short_videos='repeat'"
        )
    return positions


def batches(
    source, config, size: int, finish: Callable[[dict], Any] = lambda batch: batch, beside: int = 0
):
    """Generator of `finish({key: array [size, ...]})`, new arrays each time; the last batch of a
    source may be smaller.

    source: indexable, elements {key: array}; with a length, `clips` (what reads its clips) and
      `clips_each`, the number of clips in an element.
    beside: bytes of shared memory that others will want while this is open.
    """
    if config.data.num_workers:  # now, not at the first batch
        clip = source.clips.empty().nbytes
        needed = shared_memory.bytes_needed(config, clip, source.clips_each, size, len(source))
        shared_memory.check(config, needed + beside)
    return _generate(source, config, size, finish)


def _generate(source, config, size, finish):
    with contextlib.closing(_elements(source, config, size)) as elements:
        for start in range(0, len(source), size):
            count, batch = min(size, len(source) - start), {}
            for row in range(count):
                for key, value in next(elements).items():
                    if row == 0:
                        batch[key] = np.empty((count, *value.shape), value.dtype)
                    batch[key][row] = value
            yield finish(batch)


def _elements(source, config, batch_size):
    """Generator of the source's elements, read in parallel, config.data.prefetch batches ahead."""
    threads, workers = config.data.num_threads or usable_cores(), config.data.num_workers
    elements = grain.MapDataset.source(source)
    if workers:
        # Grain reads absl flags when it starts a process, even outside an absl app.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=shared_memory.per_worker(config, batch_size)
        )
        elements = elements.to_iter_dataset(
            grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        )
        elements = elements.mp_prefetch(options, worker_init_fn=_start_worker)
    else:
        keep_what_readers_free()
        ahead = max(threads, shared_memory.batches_ahead(config, batch_size))
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        elements = elements.to_iter_dataset(options)
    iterator = iter(elements)
    try:
        # `yield from` would close the iterator twice.
        for element in iterator:  # noqa: UP028
            yield element
    except RuntimeError as error:
        code = re.search(r'exit code (-?\d+)', str(error))
        if not code:
            raise
        raise OSError(_why_worker_ended(int(code[1]))) from None
    finally:
        iterator.close()


def _why_worker_ended(code):
    ended = f'a worker process of the loader (config.data.num_workers) ended with exit code {code}'
    if code == -signal.SIGBUS:
        return (
            f'{ended} (SIGBUS): {shared_memory.FOLDER} is full; set config.data.num_workers=0, '
            'lower config.data.prefetch, or make it larger (docker run --shm-size=8g)'
        )
    if code == -signal.SIGKILL:
        return (
            f'{ended} (SIGKILL), as when memory runs out: lower config.data.num_workers or '
            'config.data.prefetch'
        )
    name = f' ({signal.Signals(-code).name})' if -code in set(signal.Signals) else ''
    return f'{ended}{name}: see what it printed above, or set config.data.num_workers=0'


def _start_worker(worker, workers):
    del worker, workers
    # Ctrl-C reaches every process of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_what_readers_free()

    def watch():
        # A worker outlives a killed parent and would keep its shared memory. Returns at once where
        # the parent died before this process was ready.
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
