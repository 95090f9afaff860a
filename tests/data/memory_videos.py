"""A dataset in memory, and a small config to load it with."""

import ml_collections
import numpy as np

from fsar_jax.data import frames
from fsar_jax.data.dataset import Videos


class MemoryVideos(Videos):
    """Videos of random pixels; video `c/k` is the k-th of class c. `order` permutes the records,
    not the videos."""

    def __init__(
        self,
        counts,
        num_frames=12,
        width=40,
        height=32,
        split='train',
        order=None,
        names=None,
        constant=False,
    ):
        names = [f'class {c:02d}' for c in range(len(counts))] if names is None else names
        videos = [(c, k) for c, count in enumerate(counts) for k in range(count)]
        order = range(len(videos)) if order is None else order
        videos = [videos[i] for i in order]
        self.name, self.split = 'memory', split
        self.class_names = sorted(names)
        self.labels = np.array([self.class_names.index(names[c]) for c, _ in videos], np.int32)
        self.video_ids = [f'{names[c]}/{k}' for c, k in videos]
        self.num_frames = np.array(
            [num_frames(c, k) if callable(num_frames) else num_frames for c, k in videos], np.int32
        )
        self.size, self.constant, self.records = (height, width), constant, {}

    def __getstate__(self):
        return self.__dict__ | {'records': {}}

    def pixels(self, position):
        """The stored frames before JPEG: uint8 [num_frames, H, W, 3], a function of the video's
        id."""
        seed = np.frombuffer(self.video_ids[position].encode(), np.uint8)
        shape = (1 if self.constant else self.num_frames[position], *self.size, 3)
        clip = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        return np.repeat(clip, self.num_frames[position], axis=0) if self.constant else clip

    def read(self, position):
        if position not in self.records:
            self.records[position] = {
                'video_id': self.video_ids[position],
                'label': int(self.labels[position]),
                'frames': [frames.encode_jpeg(frame) for frame in self.pixels(position)],
            }
        return self.records[position]


def small_config(**changes):
    """config with the sections that fsar_jax.data reads; changes such as data__flip=True."""
    config = ml_collections.ConfigDict(
        dict(
            seed=3,
            episode=dict(way=3, shot=2, query=1, frames=4, image_size=24),
            data=dict(
                resize=32,
                sampling='trx',
                short_videos='drop',
                flip=False,
                crop='random',
                num_threads=2,
                prefetch=2,
                num_workers=0,
            ),
            train=dict(episodes_per_step=4, accumulation_steps=1),
        )
    )
    for key, value in changes.items():
        section, _, name = key.rpartition('__')
        (config[section] if section else config)[name] = value
    return config.lock()
