"""Writing: from video and frame files to records in shards. The builders in tfds_builders use it.

Nothing here imports JAX.
"""
