"""The sampler that passes on the frames that the data loader has picked."""

import jax

from fsar_jax.samplers.sampler import Sampler


class UniformSampler(Sampler):
    """Evenly spaced frames: the loader has picked them (fsar_jax.data.frame_sampling), so nothing
    is left to do on the device."""

    takes_maps = True

    def __call__(self, videos: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """videos [B, L, H, W, 3] (or maps [B, L, h, w, C]) → {'frames': the same}."""
        return {'frames': videos}
