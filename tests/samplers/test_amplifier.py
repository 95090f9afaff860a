"""Saliency and resampling: the published modules, a gather-based resampling, and properties of the
grids."""

from functools import partial

import jax
import numpy as np
import pytest

from fsar_jax.samplers import amplifier
from fsar_jax.samplers.amplifier import amplified_positions, cropped_positions, enlarge, resample

last = lambda x: np.moveaxis(x, -3, -1)  # [..., C, h, w] → [..., h, w, C]
enlarged = partial(jax.jit, static_argnums=(1, 2))(enlarge)


def positions_of(maps, size, variant):
    """Rows and columns that the amplifier reads, as numpy."""
    run = jax.jit(lambda maps: amplified_positions(maps, size, size, variant))
    return tuple(map(np.asarray, run(maps)))


@pytest.mark.parametrize(
    'name', ['vim_saliency_a', pytest.param('vim_saliency_b', marks=pytest.mark.slow)]
)
def test_saliency_equals_published(published, assert_close_to_published, name):
    f = published(name)
    size = f.meta['img_size']

    def weighted(*stages):
        found = enlarge(amplifier.stage_saliency(stages), size, size)
        return (found * f.cotangents['map']).sum(), found

    stages = [last(f.inputs[key]) for key in ('f2', 'f3', 'f4')]
    gradients, found = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))(*stages)
    assert_close_to_published(found, f.outputs['map'], 'map')
    for key, gradient in zip(('f2', 'f3', 'f4'), gradients, strict=True):
        assert_close_to_published(gradient, last(f.gradients[key]), key)


@pytest.mark.parametrize(
    'name', ['vim_amplifier_a', pytest.param('vim_amplifier_b', marks=pytest.mark.slow)]
)
def test_amplifier_equals_published(published, assert_close_to_published, name):
    f = published(name)
    size, frames, maps = f.meta['size'], last(f.inputs['data']), f.inputs['maps']

    def weighted(frames, maps):
        rows, columns = amplified_positions(maps, size, size, 'code')
        amplified = resample(frames, rows, columns)
        return (amplified * last(f.cotangents['amplified'])).sum(), (amplified, rows, columns)

    weighted = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))
    (of_frames, of_maps), outputs = weighted(frames, maps)
    amplified, rows, columns = map(np.asarray, outputs)
    assert_close_to_published(2 * rows / (size - 1) - 1, f.outputs['grid_y'], 'grid_y')
    assert_close_to_published(2 * columns / (size - 1) - 1, f.outputs['grid_x'], 'grid_x')
    assert_close_to_published(amplified, last(f.outputs['amplified']), 'amplified')
    np.testing.assert_array_equal(amplified[:, 0], 0.0)  # row V13: black
    assert_close_to_published(of_frames, last(f.gradients['data']), 'gradient')
    np.testing.assert_array_equal(of_maps, 0.0)


def gathered(frame, rows, columns):
    """The slow and obvious bilinear reading of one frame [H, W, C], zero outside: NumPy, pixel by
    pixel."""
    pixel = lambda y, x: (
        frame[y, x]
        if 0 <= y < frame.shape[0] and 0 <= x < frame.shape[1]
        else np.zeros(frame.shape[2])
    )
    out = np.zeros((len(rows), len(columns), frame.shape[2]))
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            y0, x0 = int(np.floor(y)), int(np.floor(x))
            for dy in (0, 1):
                for dx in (0, 1):
                    out[i, j] += (
                        (1 - abs(y - y0 - dy)) * (1 - abs(x - x0 - dx)) * pixel(y0 + dy, x0 + dx)
                    )
    return out


@pytest.mark.parametrize('variant', ('code', 'paper'))
def test_a_map_without_anything_salient(variant):
    rows, columns = positions_of(np.zeros((2, 4, 4), np.float32), 16, variant)
    assert np.isfinite(rows).all() and np.isfinite(columns).all() and (np.diff(rows) > 0).all()


def test_resampling_is_bilinear_reading():
    rng = np.random.default_rng(0)
    frame, rows, columns = (
        rng.random((5, 7, 2)),
        np.array([-1.5, -0.3, 2.0, 3.7, 4.6, 9.0]),
        np.array([-0.5, 0.2, 5.9, 6.5]),
    )
    ours = jax.jit(resample)(*map(np.float32, (frame, rows, columns)))
    np.testing.assert_allclose(ours, gathered(frame, rows, columns), atol=1e-5)


def test_printed_amplifier():
    """A flat map is the identity; a salient place takes more room; every pixel stays inside; and
    the map has a gradient."""
    size = 24
    flat = positions_of(np.full((6, 6), 0.5, np.float32), size, 'paper')
    np.testing.assert_allclose(flat, np.tile(np.arange(size), (2, 1)), atol=1e-4)

    y, x = np.mgrid[:8, :8]
    blob = np.exp(-((y - 2) ** 2 + (x - 6) ** 2) / 2.0).astype(np.float32)
    rows, columns = positions_of(blob, size, 'paper')
    for positions, centre in ((rows, 2 / 7 * (size - 1)), (columns, 6 / 7 * (size - 1))):
        step = np.diff(positions)
        assert (
            (step > 0).all()
            and positions[0] == 0
            and np.isclose(positions[-1], size - 1)
            and positions.max() <= size - 1
        )
        # Half the density is around the centre, and half the output's rows are read there.
        assert abs(positions[step.argmin()] - centre) < 2.5 and step.min() < 0.5 < 1.5 < step.max()

    # The positions invert the cumulative sum, computed by NumPy's interpolation.
    marginal = np.asarray(enlarged(blob, size, size)).max(-1) + amplifier.DENSITY_FLOOR
    reached = np.concatenate([[0.0], np.cumsum((marginal[1:] + marginal[:-1]) / 2)])
    np.testing.assert_allclose(
        rows, np.interp(np.linspace(0, 1, size), reached / reached[-1], np.arange(size)), atol=1e-4
    )


@pytest.mark.parametrize(
    'positions', [lambda m, h, w: amplified_positions(m, h, w, 'paper'), cropped_positions]
)
def test_positions_have_the_gradient_of_finite_differences(positions):
    rng = np.random.default_rng(3)
    maps = rng.random((4, 5), np.float32)
    y = [rng.normal(size=n).astype(np.float32) for n in (9, 11)]
    both = jax.jit(
        jax.value_and_grad(
            lambda m: sum((p * c).sum() for p, c in zip(positions(m, 9, 11), y, strict=True))
        )
    )
    total = lambda m: both(m)[0]
    gradient, step = np.asarray(both(maps)[1]), 1e-3
    for _ in range(3):
        direction = rng.normal(size=maps.shape).astype(np.float32)
        difference = (total(maps + step * direction) - total(maps - step * direction)) / (2 * step)
        np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=2e-2, atol=2e-2)
    assert np.abs(gradient).max() > 0


def test_crop_is_a_window_inside_the_frame():
    crop = jax.jit(lambda maps: cropped_positions(maps, 16, 16))
    corner = np.zeros((4, 4), np.float32)
    corner[0, 3] = 1.0
    rows, columns = map(np.asarray, crop(corner))
    np.testing.assert_allclose(
        [rows[0], rows[-1], columns[0], columns[-1]], [0.0, 11.0, 4.0, 15.0], atol=1e-5
    )
    rows = np.asarray(crop(np.zeros((4, 4), np.float32))[0])  # nothing salient: the middle
    np.testing.assert_allclose([rows[0], rows[-1]], [2.0, 13.0], atol=1e-5)


def test_channel_attention_is_the_printed_product():
    rng = np.random.default_rng(1)
    f = rng.normal(size=(2, 3, 2, 5))
    flat = f.reshape(2, 6, 5).swapaxes(1, 2)  # printed: c × hw
    attended = np.einsum('nce,nep->ncp', flat @ flat.swapaxes(1, 2) / np.sqrt(6), flat)
    ours = jax.jit(amplifier.attend_channels)(np.float32(f))
    np.testing.assert_allclose(ours, attended.swapaxes(1, 2).reshape(f.shape), rtol=1e-4, atol=1e-4)
    w = rng.normal(size=5)
    saliency = jax.jit(amplifier.weighted_saliency)(ours, np.float32(w))
    np.testing.assert_allclose(
        saliency, np.einsum('c,ncp->np', w, attended).reshape(2, 3, 2) / 5, rtol=1e-4, atol=1e-4
    )


def test_range_is_that_of_the_enlarged_map():
    maps = np.random.default_rng(2).normal(size=(2, 3, 4, 4)).astype(np.float32)
    slow = lambda x: amplifier.min_max(enlarge(x, 9, 10), (-2, -1))
    fast = lambda x: enlarge(amplifier.min_max_enlarged(x, 9, 10), 9, 10)
    expected, ours = jax.jit(lambda x: (slow(x), fast(x)))(maps)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_placed_window_goes_from_edge_to_edge():
    rows, columns = amplifier.placed_positions(np.array([[0.0, 1.0], [0.5, 0.25]]), 16, 8)
    np.testing.assert_allclose(rows[:, [0, -1]], [[0, 11], [2, 13]], atol=1e-5)
    np.testing.assert_allclose(columns[:, [0, -1]], [[2, 7], [0.5, 5.5]], atol=1e-5)
