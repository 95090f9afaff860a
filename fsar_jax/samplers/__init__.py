"""Stage 1: which frames of a video are looked at. Table of contents."""

from fsar_jax.samplers.uniform import UniformSampler

SAMPLERS = {
    'uniform': lambda model: UniformSampler(),
}


def create(model):
    """The sampler of `model.sampler.name` (config.model): a Linen module."""
    if model.sampler.name not in SAMPLERS:
        raise ValueError(f"config.model.sampler.name='{model.sampler.name}' is not one of {', '.join(SAMPLERS)}")
    return SAMPLERS[model.sampler.name](model)
