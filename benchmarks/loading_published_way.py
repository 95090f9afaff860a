"""Episodes per second: a .zip of frames read with PIL, as the published codes do it, beside
fsar_jax's records.

    python benchmarks/loading_published_way.py [--seconds=20]

An episode is 5-way 5-shot with 4 queries per class: 45 videos of 8 frames, cropped to 224 x 224
from a stored short side of 256; 1 and 2 workers. Both read the same frames. The published way is:
one .zip in memory, a JPEG per frame, PIL, resize to 256, crop, flip, float32, stack. It calls the
resize also for frames that have that size; the row 'theirs stored at 240' shows what it costs.
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
from fsar_jax.data.dataset import Videos
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
    return [
        encode_jpeg(np.minimum(np.roll(picture, 2 * i, 1), 249) + noise, 95) for i in range(STORED)
    ]


class MemoryVideos(Videos):
    """The clips as a dataset in memory."""

    name, split = 'benchmark', 'train'

    def __init__(self, clips):
        self.clips = clips
        self.labels = np.repeat(np.arange(CLASSES, dtype=np.int32), CLIPS)
        self.class_names = [f'class {i}' for i in range(CLASSES)]
        self.video_ids = [f'{label}/{i}' for i, label in enumerate(self.labels)]
        self.num_frames = np.full(len(self.labels), STORED, np.int32)

    def read(self, position):
        return {
            'video_id': self.video_ids[position],
            'label': int(self.labels[position]),
            'frames': self.clips[position],
        }


class ZipEpisodes:
    """The straightforward loader: everything again for every frame."""

    def __init__(self, path):
        self.data = pathlib.Path(path).read_bytes()  # the published code keeps the .zip in memory

    def episode(self, rng):
        archive = (
            zipfile.ZipFile(io.BytesIO(self.data)) if not hasattr(self, 'archive') else self.archive
        )
        self.archive = archive
        clips = []
        for label in rng.choice(CLASSES, WAY, replace=False):
            for clip in rng.choice(CLIPS, SHOT + QUERY, replace=False):
                places = frame_indices(STORED, FRAMES, 'trx', rng)
                frames = [
                    Image.open(io.BytesIO(archive.read(f'{label}/{clip}/{i}.jpg'))).convert('RGB')
                    for i in places
                ]
                scale = 256 / min(frames[0].size)
                size = tuple(int(side * scale) for side in frames[0].size)
                frames = [frame.resize(size, Image.BILINEAR) for frame in frames]
                left, top = rng.integers(0, size[0] - CROP + 1), rng.integers(0, size[1] - CROP + 1)
                frames = [frame.crop((left, top, left + CROP, top + CROP)) for frame in frames]
                if rng.random() < 0.5:
                    frames = [frame.transpose(Image.FLIP_LEFT_RIGHT) for frame in frames]
                arrays = [
                    np.asarray(frame).transpose(2, 0, 1).astype(np.float32) / 255
                    for frame in frames
                ]
                clips.append(np.stack(arrays))
        return np.stack(clips)


def work(path, queue, seed, stop):
    """A worker process; for each episode it tells the CPU seconds that it took, and does not send
    it."""
    source, rng = ZipEpisodes(path), np.random.default_rng(seed)
    while not stop.is_set():
        start = time.process_time()
        source.episode(rng)
        queue.put(time.process_time() - start)


def published_way(path, workers, seconds):
    """(episodes per second, CPU ms of one); the transfer to the main process is left out, in favour
    of the published way."""
    context = multiprocessing.get_context('spawn')
    queue, stop = context.Queue(2 * workers), context.Event()
    processes = [
        context.Process(target=work, args=(path, queue, i, stop), daemon=True)
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    for _ in range(3 * workers):  # until the buffer holds no head start
        queue.get()
    start, cpu = time.monotonic(), []
    while time.monotonic() - start < seconds:
        cpu.append(queue.get())
    rate = len(cpu) / (time.monotonic() - start)
    stop.set()
    for process in processes:
        process.terminate()
        process.join()
    return rate, 1e3 * sum(cpu) / len(cpu)


def ours(dataset, threads, seconds):
    """(episodes per second, CPU ms of one)."""
    config = default_config()
    config.episode.update(way=WAY, shot=SHOT, query=QUERY, frames=FRAMES, image_size=CROP)
    config.data.update(resize=256, flip=True, num_threads=threads, prefetch=2)
    config.train.update(episodes_per_step=1, accumulation_steps=1)
    batches = loader.training_batches(dataset, config, 0)
    for _ in range(6):
        next(batches)
    start, cpu, count = time.monotonic(), time.process_time(), 0
    while time.monotonic() - start < seconds:
        next(batches)
        count += 1
    rate, cpu = count / (time.monotonic() - start), time.process_time() - cpu
    batches.close()
    return rate, 1e3 * cpu / count


def main(_):
    print(
        f'load {os.getloadavg()[0]:.1f}: on a busy machine compare CPU '
        f'time\n{"":<31}{"episodes/s":>24}{"CPU ms/episode":>29}'
    )
    print(
        f'{"frames":<22} {"workers":>8}'
        + f' {"published way":>14} {"fsar_jax":>9} {"ratio":>6}' * 2
    )
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
                theirs, own = (
                    published_way(path, workers, SECONDS.value),
                    ours(dataset, workers, SECONDS.value),
                )
                print(
                    f'{name:<22} {workers:>8} {theirs[0]:>14.1f} {own[0]:>9.1f} '
                    f'{own[0] / theirs[0]:>6.1f} '
                    f'{theirs[1]:>15.0f} {own[1]:>9.0f} {theirs[1] / own[1]:>6.1f}',
                    flush=True,
                )


if __name__ == '__main__':
    app.run(main)
