"""Reading: open datasets, episode draws, frame sampling, clips and parallel loading.

Nothing here imports JAX: these modules run in loader threads and worker processes, which would only
start later for it.
"""
