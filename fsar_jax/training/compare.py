"""The old name of `python -m fsar_jax.compare`, kept for one release."""

from fsar_jax.moved import moved

moved(__spec__.name, __name__ == '__main__', 'fsar_jax.compare', 'fsar_jax.evaluation.compare')
