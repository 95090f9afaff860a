"""One folder per dataset, as `tfds new` lays it out. Their common base is fsar_jax/ingest."""
