"""How fast videos become records: videos per minute and core, by codec, at the sizes of the public
benchmarks.

    python benchmarks/building.py [--seconds=10]

Measures the CPU time of one process that decodes a video, keeps at most 64 frames, resizes them to
a short side of 256 and encodes them. A build runs one such process per core. The clips are
synthetic: moving textures and noise. Compare the MB with your own files; bigger ones decode slower.
"""

import dataclasses
import pathlib
import tempfile
import time

import numpy as np
from absl import app, flags

from fsar_jax.data.frames import encode_jpeg, resize_short_side
from fsar_jax.ingest.frame_files import FrameFolder, record_from_frames
from fsar_jax.ingest.records import RecordSettings, record_from_file
from fsar_jax.ingest.video_files import read_video, write_video

SECONDS = flags.DEFINE_float('seconds', 10, 'Time per row.')


@dataclasses.dataclass(frozen=True)
class Clip:
    """What the videos of a benchmark are like on average."""

    suffix: str
    codec: str
    width: int
    height: int
    frames: int
    fps: int


CLIPS = {
    'ucf101 (xvid avi)': Clip('.avi', 'mpeg4', 320, 240, 186, 25),
    'hmdb51 (xvid avi)': Clip('.avi', 'mpeg4', 366, 240, 95, 30),
    'ssv2 (vp9 webm)': Clip('.webm', 'libvpx-vp9', 427, 240, 45, 12),
    'kinetics (h264 mp4)': Clip('.mp4', 'libx264', 340, 256, 300, 30),
    'activitynet, 10 s of it (h264 mp4)': Clip('.mp4', 'libx264', 1280, 720, 300, 30),
}


def moving_textures(clip: Clip) -> np.ndarray:
    """uint8 [frames, H, W, 3]: a random picture of 4 x 4 blocks that slides, with noise that
    changes."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (clip.height // 8 + 1, clip.width // 4 + 1, 3), np.uint8)
    wide = resize_short_side(np.repeat(coarse, 2, 1), clip.height)
    wide = np.concatenate([wide] * (1 + (2 * clip.width) // wide.shape[1]), axis=1)
    frames = np.empty((clip.frames, clip.height // 2 * 2, clip.width // 2 * 2, 3), np.uint8)
    noise = rng.integers(0, 12, frames.shape[1:], np.uint8)
    for i in range(clip.frames):
        at = (2 * i) % (wide.shape[1] - frames.shape[2])
        picture = wide[: frames.shape[1], at : at + frames.shape[2]]
        frames[i] = np.minimum(picture, 243) + np.roll(noise, rng.integers(0, 200, 2), (0, 1))
    return frames


def per_minute(function, seconds: float) -> float:
    """Calls per minute of CPU time of this process."""
    function()
    start, count = time.process_time(), 0
    stop = time.monotonic() + seconds
    while time.monotonic() < stop or not count:
        function()
        count += 1
    return 60 * count / (time.process_time() - start)


def main(_):
    settings = RecordSettings()
    print(f'{"":<36} {"frames":>7} {"MB":>6} {"videos/min/core":>16} {"of which decoding":>18}')
    with tempfile.TemporaryDirectory() as folder:
        for name, clip in CLIPS.items():
            path = pathlib.Path(folder, f'clip{clip.suffix}')
            write_video(path, moving_textures(clip), clip.fps, clip.codec)
            whole = per_minute(lambda: record_from_file(path, 'id', 0, settings), SECONDS.value)
            decode = per_minute(lambda: read_video(path, 1), SECONDS.value)
            megabytes = path.stat().st_size / 1e6
            print(
                f'{name:<36} {clip.frames:>7} {megabytes:>6.1f} {whole:>16.0f} '
                f'{whole / decode:>17.0%}',
                flush=True,
            )
        frames = pathlib.Path(folder, 'frames')
        frames.mkdir()
        for i, frame in enumerate(moving_textures(Clip('', '', 340, 256, 100, 12))):
            (frames / f'{i}.jpg').write_bytes(encode_jpeg(frame, 95))
        whole = per_minute(
            lambda: record_from_frames(FrameFolder(str(frames)), 'id', 0, settings), SECONDS.value
        )
        size = sum(file.stat().st_size for file in frames.iterdir()) / 1e6
        print(
            f'{"JPEG frames of the stored size":<36} {100:>7} {size:>6.1f} {whole:>16.0f} {"-":>18}'
        )


if __name__ == '__main__':
    app.run(main)
