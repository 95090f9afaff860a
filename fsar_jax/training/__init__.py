"""Training and evaluation: mesh, losses, state, loop, checkpoints, evaluation, results, progress."""
