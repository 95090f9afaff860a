"""The run: loss, state and step, checkpoints, workdir. train.py tells it in order."""

from fsar_jax.training import losses
