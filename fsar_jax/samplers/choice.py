"""What the samplers that choose L of M frames have in common."""

from typing import Protocol

FRAMES = 'L, number of frames to choose; always equal to episode.frames'
DENSE_FRAMES = 'M, number of frames of a clip to choose from'
AT_TEST = 'False: evaluation takes evenly spaced whole frames; training still uses the sampler'


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
