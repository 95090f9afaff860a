"""The base class of all samplers."""

from fsar_jax.stage import Stage


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

    def check_published(self) -> None:
        """Raises a one-line ValueError if nobody has published weights of this sampler."""
        raise ValueError(
            "the published sampler belongs to config.model.sampler.name='task_adaptive' with "
            "variant='code'"
        )
