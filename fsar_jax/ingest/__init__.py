"""Writing: video and frame files, records, the base of the builders, shards, workers, archives.

Nothing here imports jax, and only its builders import tensorflow_datasets.
"""
