"""What the tests of published weights share."""

import functools

import pytest

from fsar_jax.weights import parameters, published


@pytest.fixture(scope='session', autouse=True)
def one_trace_of_each_module():
    """A learner is traced four times for its names and shapes, a second or more; most tests here
    are about the same few."""
    traced = functools.cache(parameters.shapes_of)

    def shapes_of(module, *inputs, method=None):
        shapes, output = traced(module, *inputs, method=method)
        return dict(shapes), output

    with pytest.MonkeyPatch.context() as patch:
        for module in (parameters, published):
            patch.setattr(module, 'shapes_of', shapes_of)
        yield
