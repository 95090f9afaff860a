"""The old name of `python -m fsar_jax.contact_sheet`, kept for one release."""

from fsar_jax.moved import moved

moved(
    __spec__.name,
    __name__ == '__main__',
    'fsar_jax.contact_sheet',
    'fsar_jax.analysis.contact_sheet',
)
