"""Clips with some of their frames alone, for benchmarks that choose frames in a sampler's place."""

import copy

import numpy as np

from fsar_jax.analysis.selection import share_inside


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
