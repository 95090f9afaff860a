"""Writes datasets: turns video and frame files into records in shards. tfds_builders uses it.

Nothing here imports JAX.
"""
