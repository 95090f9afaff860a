"""How fast frames and episodes are read: python benchmarks/loading.py [--seconds=3]

Prints decoded frames per second of one core, then episodes per second of the training loader. The
records are synthetic JPEG frames in memory, so it measures decoding, cropping and copying, but not
the disk. It needs no dataset and no accelerator.
"""

import time

import cv2
import numpy as np
from absl import app, flags

from fsar_jax import default_config
from fsar_jax.data import frames, loader
from fsar_jax.data.dataset import Videos
from fsar_jax.machine import keep_what_readers_free

SECONDS = flags.DEFINE_float('seconds', 3.0, 'measure each row for about this long')
QUALITY = 95
SETTINGS = {  # stored width, height, crop, way, shot, queries per class, stored frames
    '340x256 -> 224': (340, 256, 224, 5, 5, 4, 46),
    '64x64 -> 64': (64, 64, 64, 5, 1, 3, 32),
}


class SyntheticVideos(Videos):
    """Videos of blurred noise, which a JPEG of quality 95 stores in about as many bytes as a
    natural frame."""

    name, split = 'synthetic', 'train'

    def __init__(self, width, height, num_frames, classes=8, clips=10):
        self.class_names = [f'class {label}' for label in range(classes)]
        self.labels = np.repeat(np.arange(classes, dtype=np.int32), clips)
        self.video_ids = [f'{label}/{clip}' for label in range(classes) for clip in range(clips)]
        self.num_frames = np.full(classes * clips, num_frames, np.int32)
        rng = np.random.default_rng(0)
        noise = [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(16)]
        detail = [cv2.GaussianBlur(frame, (0, 0), 1.2) for frame in noise]
        shapes = [
            cv2.normalize(cv2.GaussianBlur(frame, (0, 0), 12), None, 0, 255, cv2.NORM_MINMAX)
            for frame in noise
        ]
        stored = [
            frames.encode_jpeg((0.35 * d + 0.65 * s).astype(np.uint8), QUALITY)
            for d, s in zip(detail, shapes)
        ]
        self.stored = [stored[k % len(stored)] for k in range(num_frames)]

    def read(self, position):
        return {'frames': self.stored}


def per_second(call, seconds):
    """Calls per second of wall time and per second of CPU time (all threads), after one call to
    warm up."""
    call()
    wall, cpu, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        call()
        calls += 1
    return calls / (time.perf_counter() - wall), calls / (time.process_time() - cpu)


def main(_):
    print(f"{'frames':<16} {'kB/frame':>8} {'decode/s/core':>14} {'decode+crop/s/core':>19}")
    for name, (width, height, crop, *_, num_frames) in SETTINGS.items():
        dataset = SyntheticVideos(width, height, num_frames)
        stored, config = dataset.stored[:16], default_config()
        config.data.resize, config.episode.image_size, config.episode.frames = height, crop, 8
        keep_what_readers_free()
        clips = loader.Clips(dataset, config)
        out = clips.empty()
        # By CPU time: one thread, and other programs on the machine do not count.
        decoded = (
            16 * per_second(lambda: [frames.decode_jpeg(data) for data in stored], SECONDS.value)[1]
        )
        cropped = 8 * per_second(lambda: clips.read(0, out), SECONDS.value)[1]
        print(f'{name:<16} {sum(map(len, stored)) / 16e3:>8.1f} {decoded:>14.0f} {cropped:>19.0f}')
    print(
        f"\n{'episodes':<16} {'clips':>6} {'MB':>6} {'threads':>8} {'episodes/s':>11} "
        f"{'CPU ms/episode':>15}"
    )
    for name, (width, height, crop, way, shot, query, num_frames) in SETTINGS.items():
        dataset = SyntheticVideos(width, height, num_frames)
        for threads in (1, 2):
            config = default_config()
            config.episode.update(way=way, shot=shot, query=query, frames=8, image_size=crop)
            config.data.update(resize=height, flip=True, num_threads=threads, prefetch=2)
            config.train.update(episodes_per_step=2, accumulation_steps=1)
            batches = loader.training_batches(dataset, config, 0)
            for _ in range(4):  # until the buffer holds no head start
                batch = next(batches)
            wall, cpu = per_second(lambda: next(batches), SECONDS.value)
            batches.close()
            clips, size = (
                way * (shot + query),
                (batch['support'].nbytes + batch['query'].nbytes) / 2e6,
            )
            print(
                f'{name:<16} {clips:>6} {size:>6.1f} {threads:>8} {2 * wall:>11.1f} '
                f'{1e3 / (2 * cpu):>15.1f}'
            )


if __name__ == '__main__':
    app.run(main)
