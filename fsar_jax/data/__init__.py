"""Reading: open datasets, episode draws, frame sampling, clips and parallel loading.

Nothing here imports JAX, so that worker processes start quickly.
"""
