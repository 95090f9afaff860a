"""Training: loss, state and step, checkpoints, workdir. train.py tells a whole run in order."""

from fsar_jax.training import losses

__all__ = ['losses']
