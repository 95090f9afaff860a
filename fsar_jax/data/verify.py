"""The old name of `python -m fsar_jax.verify`, kept for one release."""

from fsar_jax.moved import moved

moved(__spec__.name, __name__ == '__main__', 'fsar_jax.verify', 'fsar_jax.verify')
