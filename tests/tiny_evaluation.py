"""A stand-in learner and a tiny dataset in memory, for the evaluation tests and their
subprocesses."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax.config import default_config
from fsar_jax.data.dataset import Videos
from fsar_jax.data.frames import encode_jpeg

TRACES = {'embed': 0, 'match': 0}


class Prediction(NamedTuple):
    logits: jax.Array


class TinyLearner(nn.Module):
    """Cosine prototypes of two embeddings, one per frame and one per video; counts how often it is
    traced."""

    features: int = 6
    encodes_in_match = False

    def setup(self):
        self.frame = nn.Dense(self.features)
        self.video = nn.Dense(self.features)

    def __call__(self, support, query, train=False):
        way, shot = support.shape[:2]
        support = self.embed(support.reshape(way * shot, *support.shape[2:]))
        support = jax.tree.map(lambda x: x.reshape(way, shot, *x.shape[1:]), support)
        return self.match(support, self.embed(query))

    def embed(self, videos, train=False):
        TRACES['embed'] += 1
        videos = videos.astype(jnp.float32) / 255 - 0.5
        frames = nn.tanh(self.frame(videos.reshape(*videos.shape[:2], -1)))
        return {'frames': frames, 'video': self.video(frames.mean(1))}

    def match(self, support, query, train=False):
        TRACES['match'] += 1
        support = jax.tree.map(lambda x: x.mean(1), support)
        frames = jnp.einsum('wlc,qlc->qw', unit(support['frames']), unit(query['frames']))
        return Prediction(frames + 0.5 * unit(query['video']) @ unit(support['video']).T)


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class TinyDataset(Videos):
    """5 of 8 classes, 4 clips of 10 frames each: noise around a colour of the class."""

    def __init__(self, frames=10, clips=4):
        rng = np.random.default_rng(0)
        self.name, self.split = 'tiny', 'test'
        self.class_names = [f'action {i}' for i in range(8)]
        self.labels = np.repeat(np.array([0, 2, 3, 5, 7], np.int32), clips)
        self.settings, self.made_with = {'short_side': 8}, {'av': '19.0.0'}
        self.video_ids = [f'clip{i}' for i in range(len(self.labels))]
        self.num_frames = np.full(len(self.labels), frames, np.int32)
        colours = rng.integers(60, 200, (8, 3))
        noise = rng.normal(0, 60, (len(self.labels), frames, 12, 16, 3))
        videos = np.clip(colours[self.labels][:, None, None, None] + noise, 0, 255).astype(np.uint8)
        self.jpegs = [[encode_jpeg(frame, 95) for frame in video] for video in videos]
        self.reads = []

    def read(self, position):
        self.reads.append(int(position))
        return {
            'frames': self.jpegs[position],
            'label': int(self.labels[position]),
            'video_id': self.video_ids[position],
            'num_frames': len(self.jpegs[position]),
            'width': 16,
            'height': 12,
        }


def make_config(**evaluation):
    config = default_config()
    with config.unlocked():
        config.episode.update(way=3, shot=2, frames=4, image_size=8)
        config.data.update(dataset='tiny', resize=12)
        config.eval.update(episodes_per_chunk=8, videos_per_batch=6, **evaluation)
    return config


def make_variables(learner, config):
    e = config.episode
    videos = jnp.zeros((e.way, e.shot, e.frames, e.image_size, e.image_size, 3), jnp.uint8)
    return jax.jit(learner.init)(jax.random.key(0), videos, videos[:, 0])
