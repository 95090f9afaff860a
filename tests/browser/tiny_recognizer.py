"""A recogniser that takes no second: clips are compared by the mean colour of their frames."""

import numpy as np

from fsar_jax.ingest.clip_reader import ReadSettings, decoded
from fsar_jax.ingest.records import RecordSettings
from fsar_jax.ingest.video_files import write_video
from fsar_jax.recognition import recognizer as module
from fsar_jax.recognition.models import Model

COLOURS = {'red': (220, 30, 30), 'green': (30, 200, 30), 'blue': (30, 30, 220)}


class Colours(Model):
    """A model without a network."""

    usual_temperature = 0.1
    reading = ReadSettings(RecordSettings(short_side=32), 4, 'uniform')

    def embed(self, clip):
        frames = decoded([clip.frames[int(i)] for i in clip.used])
        return {'frames': frames.mean((1, 2)).astype(np.float32) / 255}

    def scores(self, examples, labels, queries):
        examples, queries = (x['frames'].mean(1) for x in (examples, queries))
        means = np.stack([examples[labels == c].mean(0) for c in range(labels.max() + 1)])
        return -np.linalg.norm(queries[:, None] - means[None], axis=-1)

    def similarity(self, query, example):
        return -np.linalg.norm(query['frames'][:, None] - example['frames'][None], axis=-1)


MODEL = Colours(None, None, None, Colours.reading.records, '', 'mean colours')


def write_clip(path, colour, seed=0, frames=8, fps=8):
    """A clip of one colour with a moving square, 48 x 32."""
    clip = np.empty((frames, 32, 48, 3), np.uint8)
    clip[:] = COLOURS[colour]
    for t in range(frames):
        clip[t, 8:16, 4 * ((t + seed) % 10) : 4 * ((t + seed) % 10) + 8] = 255
    write_video(path, clip, fps=fps)
    return path


def tiny_recognizer(monkeypatch):
    """A Recognizer with such a model, without examples."""
    monkeypatch.setattr(module, 'load_model', lambda workdir: MODEL)
    return module.Recognizer()
