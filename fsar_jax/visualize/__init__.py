"""The old place of `python -m fsar_jax.contact_sheet`, kept for one release."""
