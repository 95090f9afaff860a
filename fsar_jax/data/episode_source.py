"""Episodes as arrays for any framework: `fsar_jax.episodes`."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

from fsar_jax.data import episodes as episode_lists
from fsar_jax.data import loader
from fsar_jax.data.clips import Clips
from fsar_jax.data.dataset import Videos, open_dataset
from fsar_jax.files import local_path

MOST_WORKERS = 1024  # as config.data.num_workers


def episodes(
    dataset: str,
    split: str,
    *,
    way: int = 5,
    shot: int = 1,
    query: int = 1,
    frames: int = 8,
    image_size: int = 224,
    seed: int = 0,
    data_dir: str | os.PathLike = 'data',
    num_episodes: int = 10_000,
    training: bool = False,
    resize: int | None = None,
    sampling: str = 'trx',
    flip: bool = False,
    short_videos: str = 'drop',
    crop: str = 'random',
    query_classes: int | None = None,
    test_jitter: bool = False,
    num_workers: int = 0,
) -> EpisodeSource:
    """Episodes of a built dataset as arrays: source[i] depends on the arguments and on i alone.

        source = fsar_jax.episodes('ucf101_arn', 'test', way=5, shot=1)
        source[0]['support']                  # uint8 [5, 1, 8, 224, 224, 3]
        for batch in source.batch(4): ...     # the same with a leading 4, read ahead

    They are the episodes of `python main.py` with the same settings: of an evaluation, or with
    `training` of a training run. The source has a length and can be indexed, so Grain's
    `MapDataset.source` and PyTorch's `DataLoader` take it. In the batches that these make,
    'class_names' has a list for each row, with one name per episode.

    Args:
      dataset: as for `python -m fsar_jax.build --dataset`, in the folder `data_dir`.
      split: 'train', 'val' or 'test'.
      way, shot, query: classes of an episode, support and query clips of each of them.
      frames: L, frames of a clip.
      image_size: pixels per side of a frame.
      seed: that of an evaluation is config.eval.seed, that of a training config.seed.
      num_episodes: length of the source.
      training: frames, crop and flip are random, drawn from (seed, split, i). Otherwise a clip
        always looks the same.
      resize: short side before the crop; None for 8/7 of image_size (256 for 224), or the size of
        the stored frames where they are smaller.
      sampling, flip, short_videos, crop, test_jitter: as config.data.sampling, .flip,
        .short_videos, .crop and .test_jitter, which some presets change (HyRSM, MASTAF).
      query_classes: as config.episode.query_classes: so many of the classes are asked for.
      num_workers: processes that read `batch`; 0 for threads of this one. They import the script
        that calls this: let it do so under `if __name__ == '__main__':`.

    Raises:
      FileNotFoundError, OSError, ValueError: as `fsar_jax.data.dataset.open_dataset`; too few
        classes or clips for such episodes; settings that no clip can meet.
    """
    way, shot, query = _whole('way', way), _whole('shot', shot), _whole('query', query)
    frames, image_size = _whole('frames', frames), _whole('image_size', image_size)
    seed, num_episodes = _whole('seed', seed, 0, 2**63 - 1), _whole('num_episodes', num_episodes)
    num_workers = _whole('num_workers', num_workers, 0, MOST_WORKERS)
    if resize is not None:
        resize = _whole('resize', resize)
    if query_classes is not None:
        query_classes = _whole('query_classes', query_classes, 1, way)
    videos = open_dataset(dataset, local_path(data_dir, 'data_dir'), split)
    if resize is None:
        stored = int(videos.settings.get('short_side') or 0) or image_size * 8
        resize = max(image_size, min(round(image_size * 8 / 7), stored))
    config = ml_collections.ConfigDict(
        {
            'episode': {
                'way': way,
                'shot': shot,
                'query': query,
                'frames': frames,
                'image_size': image_size,
                'query_classes': query_classes,
            },
            'data': {
                'resize': resize,
                'crop': crop,
                'test_jitter': test_jitter,
                'flip': flip,
                'sampling': sampling,
                'short_videos': short_videos,
                'num_threads': 0,
                'num_workers': num_workers,
                'prefetch': 2,
            },
            'seed': seed,
            'eval': {'seed': seed, 'val_episodes': 0},
        }
    )
    return EpisodeSource(videos, config, num_episodes, training)


class EpisodeSource(Sequence):
    """Episodes of a split, in their order; `episodes` makes one.

    An episode is a dict:
      support: uint8 [way, shot, L, S, S, 3], RGB.
      query: uint8 [Q, L, S, S, 3], Q = way · query, or query_classes · query.
      labels: int32 [Q], the row of `support` that each query belongs to.
      classes: int32 [way], the dataset's label of each row of `support`.
      class_names: the names of the rows of `support`.
    """

    def __init__(
        self, dataset: Videos, config: ml_collections.ConfigDict, num_episodes: int, training: bool
    ) -> None:
        episode = config.episode
        self.dataset = loader.usable(dataset, config)
        self.clips = Clips(self.dataset, config)
        self.shape = (episode.way, episode.shot, episode.query)
        self.query_classes = episode.get('query_classes')
        asked = self.query_classes or episode.way
        self.clips_each = episode.way * episode.shot + asked * episode.query
        self._config, self._count, self._training = config, num_episodes, training
        episode_lists.check_dataset(self.dataset, *self.shape)
        self._by_class = episode_lists.clips_by_class(self.dataset)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        way, shot, query = self.shape
        return (
            f'EpisodeSource({self.dataset.name} {self.dataset.split}: {self._count} episodes, '
            f'{way}-way {shot}-shot, {query} queries per class)'
        )

    def __getitem__(self, index):
        """Episode `index`; negative ones count from the end. A slice is not taken."""
        index = operator.index(index)
        if not -self._count <= index < self._count:
            raise IndexError(f'there is no episode {index}: there are {self._count}, from 0')
        return self._named(self.arrays(index % self._count))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.batch(1):
            yield {name: value[0] for name, value in batch.items()}

    def batch(self, size: int) -> Iterator[dict[str, Any]]:
        """The episodes in batches, read ahead in parallel: arrays [size, …], and a list of `size`
        lists as class_names. The last batch may be smaller."""
        return self._batches(_whole('size of a batch', size))

    def _batches(self, size):
        with contextlib.closing(loader.batches(_Arrays(self), self._config, size)) as batches:
            yield from map(self._named, batches)

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Episode `index` without the names of its classes."""
        drawn, support, query = loader.read_episode(
            self.clips,
            self.shape,
            self._config.seed,
            index,
            self._by_class,
            self._training,
            self.query_classes,
        )
        return {
            'support': _flipped(*support),
            'query': _flipped(*query),
            'labels': drawn.labels[0],
            'classes': drawn.classes[0],
        }

    def _named(self, episode):
        names = np.array(self.dataset.class_names, object)[episode['classes']]
        return episode | {'class_names': names.tolist()}


class _Arrays:
    """What the loader reads: only arrays can be put into batches."""

    def __init__(self, source):
        self.source, self.clips, self.clips_each = source, source.clips, source.clips_each

    def __len__(self):
        return len(self.source)

    def __repr__(self):
        return 'Episodes()'

    def __getitem__(self, index):
        return self.source.arrays(int(index))


def _whole(name, value, least=1, most=None):
    """`value` as an int; one line if it is no whole number from `least` to `most`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f'{name}={value!r:.80} must be a whole number') from None
    if number < least:
        raise ValueError(f'{name}={number} must be at least {least}')
    if most is not None and number > most:
        raise ValueError(f'{name}={number} must be at most {most}')
    return number


def _flipped(clips, flips):
    clips[flips] = clips[flips][..., ::-1, :]
    return clips
