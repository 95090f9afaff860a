"""Episodes per second: a .zip of frames read with PIL, as the published codes do it, beside fsar_jax's records.

    python benchmarks/loading_published_way.py [--seconds=20]

5-way 5-shot with 4 queries per class, 45 videos x 8 frames of 224 x 224, short side 256 stored; by 1 and 2 workers. Same
frames in both. The published way: one .zip in memory, a JPEG per frame, PIL, resize to 256 (also when it is that size
already: `frames stored at 240` shows the resize at work), crop, flip, float32, stacked.
"""

import io
import multiprocessing
import os
import pathlib
import tempfile
import time
import zipfile

import numpy as np
from absl import app, flags
from PIL import Image

from fsar_jax.config import default_config
from fsar_jax.data import loader
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.data.frames import encode_jpeg, resize_short_side

SECONDS = flags.DEFINE_float('seconds', 20, 'Time per row.')
WAY, SHOT, QUERY, FRAMES, CROP = 5, 5, 4, 8, 224
CLASSES, CLIPS, STORED = 8, 10, 46


def clip_frames(number: int, height: int) -> list[bytes]:
    """46 JPEG frames of a clip, 4:3, textured."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
    picture = resize_short_side(coarse, height)
    noise = rng.integers(0, 6, picture.shape, np.uint8)
    return [encode_jpeg(np.minimum(np.roll(picture, 2 * i, 1), 249) + noise, 95) for i in range(STORED)]


class MemoryVideos:
    """The clips with the attributes of a VideoDataset."""

    name, split = 'benchmark', 'train'

    def __init__(self, clips):
        self.clips = clips
        self.labels = np.repeat(np.arange(CLASSES, dtype=np.int32), CLIPS)
        self.class_names = [f'class {i}' for i in range(CLASSES)]
        self.video_ids = [f'{label}/{i}' for i, label in enumerate(self.labels)]
        self.num_frames = np.full(len(self.labels), STORED, np.int32)

    def __len__(self):
        return len(self.labels)

    def read(self, position):
        return {'video_id': self.video_ids[position], 'label': int(self.labels[position]), 'frames': self.clips[position]}


class ZipEpisodes:
    """The straightforward loader: everything again for every frame."""

    def __init__(self, path):
        self.data = pathlib.Path(path).read_bytes()  # the published code keeps the .zip in memory

    def episode(self, rng):
        archive = zipfile.ZipFile(io.BytesIO(self.data)) if not hasattr(self, 'archive') else self.archive
        self.archive = archive
        clips = []
        for label in rng.choice(CLASSES, WAY, replace=False):
            for clip in rng.choice(CLIPS, SHOT + QUERY, replace=False):
                places = frame_indices(STORED, FRAMES, 'trx', rng)
                frames = [Image.open(io.BytesIO(archive.read(f'{label}/{clip}/{i}.jpg'))).convert('RGB') for i in places]
                scale = 256 / min(frames[0].size)
                size = tuple(int(side * scale) for side in frames[0].size)
                frames = [frame.resize(size, Image.BILINEAR) for frame in frames]
                left, top = rng.integers(0, size[0] - CROP + 1), rng.integers(0, size[1] - CROP + 1)
                frames = [frame.crop((left, top, left + CROP, top + CROP)) for frame in frames]
                if rng.random() < 0.5:
                    frames = [frame.transpose(Image.FLIP_LEFT_RIGHT) for frame in frames]
                arrays = [np.asarray(frame).transpose(2, 0, 1).astype(np.float32) / 255 for frame in frames]
                clips.append(np.stack(arrays))
        return np.stack(clips)


def work(path, queue, seed, stop):
    """A worker process; it tells that an episode is ready and does not send it."""
    source, rng = ZipEpisodes(path), np.random.default_rng(seed)
    while not stop.is_set():
        queue.put(float(source.episode(rng)[0, 0, 0, 0, 0]))


def published_way(path, workers, seconds):
    """Episodes per second; the transfer to the main process is left out, in favour of the published way."""
    context = multiprocessing.get_context('spawn')
    queue, stop = context.Queue(2 * workers), context.Event()
    processes = [context.Process(target=work, args=(path, queue, i, stop), daemon=True) for i in range(workers)]
    for process in processes:
        process.start()
    for _ in range(3 * workers):  # until the buffer holds no head start
        queue.get()
    start, count = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        queue.get()
        count += 1
    rate = count / (time.monotonic() - start)
    stop.set()
    for process in processes:
        process.terminate()
        process.join()
    return rate


def ours(dataset, threads, seconds):
    config = default_config()
    config.episode.update(way=WAY, shot=SHOT, query=QUERY, frames=FRAMES, image_size=CROP)
    config.data.update(resize=256, flip=True, num_threads=threads, prefetch=2)
    config.train.update(episodes_per_step=1, accumulation_steps=1)
    batches = loader.training_batches(dataset, config, 0)
    for _ in range(6):
        next(batches)
    start, count = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        next(batches)
        count += 1
    rate = count / (time.monotonic() - start)
    batches.close()
    return rate


def main(_):
    print(f'{"frames":<28} {"workers":>8} {"published way":>14} {"fsar_jax":>10} {"ratio":>6}   (episodes/s, load {os.getloadavg()[0]:.1f})')
    stored = [clip_frames(number, 256) for number in range(CLASSES * CLIPS)]
    dataset = MemoryVideos(stored)
    with tempfile.TemporaryDirectory() as folder:
        for name, height in (('stored at 256', 256), ('theirs stored at 240', 240)):
            path = pathlib.Path(folder, f'{height}.zip')
            with zipfile.ZipFile(path, 'w') as archive:
                for number in range(CLASSES * CLIPS):
                    frames = stored[number] if height == 256 else clip_frames(number, height)
                    for i, data in enumerate(frames):
                        archive.writestr(f'{number // CLIPS}/{number % CLIPS}/{i}.jpg', data)
            for workers in (1, 2):
                theirs, own = published_way(path, workers, SECONDS.value), ours(dataset, workers, SECONDS.value)
                print(f'{name:<28} {workers:>8} {theirs:>14.1f} {own:>10.1f} {own / theirs:>6.1f}', flush=True)


if __name__ == '__main__':
    app.run(main)
