"""Counts operations correctly in programs with loops: XLA's cost analysis counts the body of a loop
once, however often it runs."""

import contextlib
import functools
from unittest import mock

import jax


@contextlib.contextmanager
def loops_unrolled():
    """Context in which `jax.lax.scan` and `jax.lax.map` are traced without a loop: the same
    operations, all written out."""
    at_once = lambda function, xs, *, batch_size=None: jax.vmap(function)(xs)
    with (
        mock.patch.object(jax.lax, 'scan', functools.partial(jax.lax.scan, unroll=True)),
        mock.patch.object(jax.lax, 'map', at_once),
    ):
        yield
