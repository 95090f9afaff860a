"""What it is worth to enlarge the right part of a frame: python benchmarks/cut_at_truth.py
--workdir=runs/protonet [--dataset=synthetic_actions/small]

Cuts the clips at test around the true box (one square for all frames of a clip, a factor times the
longest side of what all its boxes cover) and enlarges them to the size of the frame; episodes,
backbone and matcher stay as they are, and a sampler of the run is replaced by evenly spaced frames.
An amplifier that finds the object could gain what these rows gain: with the object in the middle,
and with the object anywhere in the square, which is enlarging alone. The last rows amplify a clip
as VIM's sampler does, with the places of the paper and of the released code, by the mean over its
frames of a map that is 1 in the true box and 0 outside. Needs a dataset whose records have boxes.
"""

import copy
import functools

import cv2
import jax
import numpy as np
from absl import app, flags, logging
from chosen_frames import with_frames

from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.data.frames import resize_short_side
from fsar_jax.evaluation.evaluate import TrainedModel, episodes_of, evaluate_episodes
from fsar_jax.evaluation.results import accuracy_with_interval
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.samplers.amplifier import amplified_positions, resample
from fsar_jax.training.inputs import open_split
from fsar_jax.training.run_settings import run_config
from fsar_jax.training.selected import best_of_run

WORKDIR = flags.DEFINE_string('workdir', None, 'The workdir of a run.', required=True)
DATASET = flags.DEFINE_string('dataset', None, 'Another dataset than that of the run.')
DATA = flags.DEFINE_string('dir', 'data', 'Where datasets are kept.')
EPISODES = flags.DEFINE_integer('num_episodes', 2000, 'Test episodes, the same for every factor.')
FACTORS = (6, 4, 3, 2, 1.3)
QUALITY = 98  # of the JPEGs that are written again
LEAST = 1.15  # factor that keeps the boxes inside, where the square is moved


def square_around(boxes, factor, rng=None):
    """(x, y, side) of the square of `factor` times the longest side of what the visible ones of
    the boxes float [N, 4] cover; x and y are its corner. They are in its middle, or with `rng`
    anywhere in it."""
    seen = boxes[boxes[:, 2] > boxes[:, 0]]
    low, high = seen[:, :2].min(0), seen[:, 2:].max(0)
    side = factor * (high - low).max()
    room = (1 - LEAST / factor) * side / 2
    moved = rng.uniform(-room, room, 2) if rng else 0
    return (*((low + high - side) / 2 + moved), side)


def cut(frame, square):
    """The square of a frame [H, W, 3], enlarged to [H, W, 3]; mirrored where it leaves the
    frame."""
    x, y, side = square
    height, width = frame.shape[:2]
    zoom = height / side
    return cv2.warpAffine(
        frame,
        np.array([[zoom, 0, -zoom * x], [0, zoom, -zoom * y]]),
        (width, height),
        borderMode=cv2.BORDER_REFLECT,
    )


def cut_clips(dataset, factor, rng=None):
    """The dataset with all clips cut, and the mean share of the frame's area that the box has."""

    def cut_one(frames, boxes):
        square = square_around(boxes, factor, rng)
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
        share = (sides.prod(1) / square[2] ** 2).mean()
        return [cut(frame, square) for frame in frames], share

    return changed(dataset, cut_one)


@functools.partial(jax.jit, static_argnames='variant')
def amplified(frames, inside, variant):
    """Frames [N, H, W, C] and maps [N, H, W] amplified by the mean of the maps."""
    rows, columns = amplified_positions(inside.mean(0), *inside.shape[1:], variant)
    return resample(frames, rows, columns), resample(inside[..., None], rows, columns)


def amplified_clips(dataset, variant, short_side):
    """As `cut_clips`, with all clips resized as a run reads them, and then amplified; `variant` is
    'paper' or 'code'."""

    def amplify(frames, boxes):
        boxes = boxes * short_side / min(frames[0].shape[:2])
        frames = resize_short_side(np.stack(frames), short_side)
        y, x = (np.arange(size) + 0.5 for size in frames[0].shape[:2])
        x0, y0, x1, y1 = boxes.T[..., None]
        inside = ((y > y0) & (y < y1))[:, :, None] & ((x > x0) & (x < x1))[:, None]
        large, share = amplified(frames.astype(np.float32), inside.astype(np.float32), variant)
        return np.asarray(large).round().astype(np.uint8), float(share.mean())

    return changed(dataset, amplify)


def changed(dataset, change):
    """The dataset with the frames of each clip changed, and the mean of the shares;
    `change(frames, boxes)` gives (frames, the box's share of the area)."""
    clips, shares = [], []
    for position in range(len(dataset)):
        record = dataset.read(position)
        frames = [cv2.imdecode(np.frombuffer(frame, np.uint8), 1) for frame in record['frames']]
        frames, share = change(frames, np.asarray(record['boxes'], np.float64))
        quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
        frames = [cv2.imencode('.jpg', frame, quality)[1].tobytes() for frame in frames]
        clips.append(record | {'frames': frames})
        shares.append(share)
    enlarged = copy.copy(dataset)
    enlarged.read = clips.__getitem__
    return enlarged, float(np.mean(shares))


def evenly(dataset, length):
    """The dataset with evenly spaced frames alone, so that no others are cut."""
    records = [dataset.read(position) for position in range(len(dataset))]
    chosen = np.stack([frame_indices(len(r['frames']), length, 'trx') for r in records])
    return with_frames(dataset, records, chosen)[0]


def main(_):
    logging.set_verbosity(logging.WARNING)
    config, mesh = run_config(WORKDIR.value), episode_mesh()
    variables = best_of_run(WORKDIR.value, mesh).state.variables
    config.data.dir, config.model.sampler.name = DATA.value, 'uniform'
    config.data.dataset = DATASET.value or config.data.dataset
    dataset = evenly(open_split(config, 'test', config.eval.query), config.episode.frames)
    episodes = episodes_of(dataset, config, EPISODES.value)
    model = TrainedModel(create_learner(config.model), variables, config, mesh)

    def accuracy(clips):
        correct = evaluate_episodes(model, clips, episodes).correct
        found = accuracy_with_interval(correct, episodes.labels.shape[1])
        return '{:.1f} ± {:.1f} %'.format(*(100 * x for x in found))

    print(f'{"square, in sides of the boxes":<30} {"box in it":>9} {"in the middle":>14} anywhere')
    print(f'{"the whole frame":<30} {"":>9} {"":>14} {accuracy(dataset)}', flush=True)
    for factor in FACTORS:
        middle, share = cut_clips(dataset, factor)
        anywhere, _ = cut_clips(dataset, factor, np.random.default_rng(0))
        shown = f'{share:>9.3f} {accuracy(middle):>14} {accuracy(anywhere)}'
        print(f'{factor:<30} {shown}', flush=True)
    for variant in ('paper', 'code'):
        clips, share = amplified_clips(dataset, variant, config.data.resize)
        print(f'{"amplified: " + variant:<30} {share:>9.3f} {"":>14} {accuracy(clips)}', flush=True)


if __name__ == '__main__':
    app.run(main)
