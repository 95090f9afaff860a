"""The run: loss, state and step, checkpoints, evaluation, results and their comparison. train.py
tells it in order."""

from fsar_jax.training import losses
