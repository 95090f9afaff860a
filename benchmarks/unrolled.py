"""XLA's cost analysis counts the body of a loop once, so a program that is to be counted must have
none."""

import contextlib
import functools
from unittest import mock

import jax


@contextlib.contextmanager
def loops_unrolled():
    """What is traced inside has no `jax.lax.scan` and no `jax.lax.map`: the same operations, all of
    them written out."""
    at_once = lambda function, xs, *, batch_size=None: jax.vmap(function)(xs)
    with (
        mock.patch.object(jax.lax, 'scan', functools.partial(jax.lax.scan, unroll=True)),
        mock.patch.object(jax.lax, 'map', at_once),
    ):
        yield
