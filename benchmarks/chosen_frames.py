"""Clips with some of their frames alone, and which frames show the action, for benchmarks that
choose frames in a sampler's place."""

import copy

import numpy as np

from fsar_jax.analysis.selection import share_inside
from fsar_jax.data import loader
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.stages import frames_read

AT_ONCE = 16  # clips that are read together


def with_frames(dataset, records, chosen):
    """The dataset, whose clips are `records`, with the frames int [N, L] alone; and the share of
    these inside the action."""
    short = copy.copy(dataset)
    short.num_frames = np.full(len(records), chosen.shape[1], np.int32)
    short.read = lambda position: (
        records[position] | {'frames': [records[position]['frames'][i] for i in chosen[position]]}
    )
    start, end = (
        np.array([int(record[key]) for record in records]) for key in ('action_start', 'action_end')
    )
    return short, share_inside(chosen, start, end)


def doubled(first, second):
    """The clips of `first`, then those of `second`, which are the same ones with other frames."""
    both, count = copy.copy(first), len(first.labels)
    both.labels = np.concatenate([first.labels, second.labels])
    both.num_frames = np.concatenate([first.num_frames, second.num_frames])
    both.video_ids = [*first.video_ids, *(f'{name} again' for name in second.video_ids)]
    both.read = lambda position: (
        first.read(position) if position < count else second.read(position - count)
    )
    return both


def clips_and_labels(dataset, config):
    """All clips uint8 [N, M, s, s, 3], and whether each frame shows the action, bool [N, M]."""
    dense = frames_read(config)
    batches = loader.video_batches(dataset, config, np.arange(len(dataset)), AT_ONCE, dense)
    clips = np.concatenate(list(batches))[: len(dataset)]
    labels = []
    for position in range(len(dataset)):
        record = dataset.read(position)
        read = np.asarray(frame_indices(len(record['frames']), dense, config.data.sampling))
        labels.append((read >= int(record['action_start'])) & (read <= int(record['action_end'])))
    return clips, np.stack(labels)
