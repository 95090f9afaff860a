"""A 1×1 convolution as a product of matrices is the convolution of the library."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsar_jax.backbones import pointwise


@pytest.mark.parametrize('form', ['dot_product', 'convolution'])
@pytest.mark.parametrize('stride', [(1, 1), (2, 2), (1, 2, 2)])
def test_values_and_gradients_are_those_of_the_library(form, stride, monkeypatch):
    monkeypatch.setattr(pointwise, 'dot_product', getattr(pointwise, form))
    init = nn.initializers.lecun_normal()
    ours = pointwise.PointwiseConv(5, stride, init)
    theirs = nn.Conv(5, (1,) * len(stride), stride, 'VALID', use_bias=False, kernel_init=init)
    maps = jnp.asarray(np.random.default_rng(0).normal(size=(2, *(7, 6, 5)[: len(stride)], 3)))
    variables = ours.init(jax.random.key(0), maps)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(0), maps))

    def run(module):
        loss = lambda variables, maps: jnp.sin(module.apply(variables, maps)).sum()
        return module.apply(variables, maps), jax.grad(loss, (0, 1))(variables, maps)

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), run(ours), run(theirs))
