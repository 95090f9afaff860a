"""What the samplers that choose L of M frames have in common."""

from typing import Protocol

FRAMES = 'L, frames that are chosen: the same value as episode.frames'
DENSE_FRAMES = 'M, frames of a clip that they are chosen among'
AT_TEST = 'False: evaluation takes evenly spaced frames, as if there were no sampler'


class ChoosesFrames(Protocol):
    """A sampler that chooses `frames` of `dense_frames` frames."""

    frames: int
    dense_frames: int


def check_dense_frames(sampler: ChoosesFrames) -> None:
    """ValueError, one line, where a sampler has fewer frames to choose among than it
    chooses."""
    if sampler.dense_frames < sampler.frames:
        raise ValueError(
            f'config.model.sampler.dense_frames={sampler.dense_frames} is fewer than '
            f'config.episode.frames={sampler.frames}, which the sampler has to choose among them: '
            'raise it'
        )
