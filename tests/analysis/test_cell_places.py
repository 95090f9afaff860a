"""A map lies over its frame where its cells look."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_variables

from fsar_jax.analysis.cell_places import cell_places, over_frame, patch_places
from fsar_jax.backbones.efficientnet_lite import EfficientNetLite, same_padding
from fsar_jax.backbones.resnet_small import ResNetSmall
from fsar_jax.stage import Stage


@pytest.mark.slow
def test_a_cell_looks_where_its_gradient_is():
    """The middle of the pixels that move it."""
    network, size = ResNetSmall(width=4), 64
    frames = jax.random.uniform(jax.random.key(0), (4, size, size, 3))
    variables = random_variables(network, frames[:1])
    of_cell = lambda x: jnp.abs(network.apply(variables, x)[:, 2, 2]).sum()
    sees = np.abs(np.asarray(jax.jit(jax.grad(of_cell))(frames))).sum((0, 3))
    middle = [(w * (np.arange(size) + 0.5)).sum() / w.sum() for w in (sees.sum(1), sees.sum(0))]
    place = cell_places(4, size, network.looks_at)[2]
    np.testing.assert_allclose(middle, place, atol=3)  # of 16 from cell to cell


@pytest.mark.parametrize('kernel', [3, 5])
def test_what_is_padded_behind_looks_at_the_last_pixel(kernel):
    """Output i of stride 2 has pixel 2i + 1 in its middle."""
    (before, _), _ = same_padding(jnp.zeros((1, 8, 8, 1)), kernel, 2)
    assert (kernel - 1) // 2 - before == 1 == EfficientNetLite.looks_at
    np.testing.assert_array_equal(
        cell_places(4, 8, EfficientNetLite.looks_at), [1.5, 3.5, 5.5, 7.5]
    )


def test_places_of_cells_and_patches():
    np.testing.assert_array_equal(cell_places(4, 64, 0.0), [0.5, 16.5, 32.5, 48.5])
    np.testing.assert_array_equal(cell_places(2, 8, 0.5), [2, 6])  # patches: their middles
    np.testing.assert_array_equal(cell_places(2, 8, Stage.looks_at), [2, 6])  # who does not say
    np.testing.assert_array_equal(cell_places(2, 8, 1.0), [3.5, 7.5])
    np.testing.assert_array_equal(cell_places(3, 84, 0.0), [0.5, 32.5, 64.5])  # ⌈84 / 32⌉
    cells = cell_places(7, 224, 0.0)
    np.testing.assert_array_equal(patch_places(cells, 7), cells)
    # cells 0 and 1, 1 to 3, 3 to 5, and 5 and 6, as adaptive_max_pool covers them
    np.testing.assert_array_equal(patch_places(cells, 4), [16.5, 64.5, 128.5, 176.5])


def test_a_map_is_linear_between_its_cells_and_even_beyond():
    maps = np.array([[[0.0, 1.0], [2.0, 3.0]]])
    laid = over_frame(maps, np.array([0.5, 2.5]), np.array([0.5, 4.5]), 4, 6)
    assert laid.shape == (1, 4, 6)
    np.testing.assert_allclose(laid[0, 0], [0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(laid[0, :, 0], [0, 1, 2, 2])
    np.testing.assert_allclose(laid[0, 1, 2], 1.5)
