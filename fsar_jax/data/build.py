"""The old name of `python -m fsar_jax.build`, kept for one release."""

from fsar_jax.moved import moved

moved(__spec__.name, __name__ == '__main__', 'fsar_jax.build', 'fsar_jax.build')
