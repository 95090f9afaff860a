"""One folder per dataset, laid out as by `tfds new`. Their common base is in fsar_jax/ingest."""
