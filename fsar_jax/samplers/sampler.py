"""The base class of all samplers."""

from collections.abc import Mapping
from typing import Any

from fsar_jax.stage import Stage, check_shape


class Sampler(Stage):
    """Chooses the frames of a clip that the model sees (fsar_jax.samplers has its methods)."""

    has_weights = False  # whether it learns

    @property
    def per_episode(self) -> bool:
        """Whether what is sampled of a video depends on its episode."""
        return False

    @property
    def frames_look_alike(self) -> bool:
        """Whether a frame that is chosen in a test looks the same in every episode, so that it can
        be embedded before the choice, with `all_frames` and `without_resampling`
        (TaskAdaptiveSampler has them)."""
        return False

    def frames_read(self, frames: int) -> int:
        """How many frames of a clip the loader hands over, so that the model sees L = `frames`."""
        return frames

    def check_sampled(self, sampled: Any, read: int | None = None, **leading: int) -> None:
        """Raises a one-line ValueError where a sampler did not return {'frames': …} with L frames
        of each clip.

        Args:
          read: how many frames of a clip it was given; None where that is not known.
          leading: the axes before L, by letter.
        """
        if not isinstance(sampled, Mapping) or 'frames' not in sampled:
            axes = ', '.join((*leading, 'L', 'H', 'W', 'C'))
            raise ValueError(
                f"sampler {type(self).__name__} returned no dict with 'frames', expected "
                f"{{'frames': [{axes}], …}}"
            )

        def check(length):
            sizes = {**leading, 'L': length, 'H': None, 'W': None, 'C': None}
            check_shape('sampler', self, 'frames', sampled['frames'], **sizes)

        if hasattr(self, 'frames'):  # the setting of those that choose, among any number
            check(self.frames)
            return
        check(None)
        if read is not None and self.frames_read(sampled['frames'].shape[len(leading)]) != read:
            check(read)

    def check_published(self) -> None:
        """Raises a one-line ValueError if nobody has published weights of this sampler."""
        raise ValueError(
            "the published sampler belongs to config.model.sampler.name='task_adaptive' with "
            "variant='code'"
        )
