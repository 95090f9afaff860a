"""Reading: an open dataset, frame sampling, episode draws and parallel loading.

Nothing here imports jax: these modules run in loader threads and worker processes, where it would
only cost start-up.
"""
