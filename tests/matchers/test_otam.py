"""OTAM, Soft-DTW, Drop-DTW and VAVA against the published code, against slow loops over cells, and
at the edges of float32."""

from functools import partial

import jax
import numpy as np
import pytest

import fsar_jax
from fsar_jax.layers import frame_cosine
from fsar_jax.matchers import OrderedAlignment
from fsar_jax.matchers.alignments import drop_dtw, ordered_alignment, soft_dtw, transport, vava
from fsar_jax.training.losses import episode_loss


@pytest.mark.parametrize('name', ['otam_distance_a', 'otam_distance_b'])
def test_ordered_alignment_equals_published(published, assert_close_to_published, name):
    f = published(name)
    cost = lambda d: ordered_alignment(d, f.meta['lambda'])

    def weighted(d):
        costs = {'query_to_support': cost(d), 'support_to_query': cost(d.swapaxes(-1, -2))}
        return sum((cost * f.cotangents[k]).sum() for k, cost in costs.items()), costs

    gradient, costs = jax.jit(jax.grad(weighted, has_aux=True))(f.inputs['dists'])
    for direction, found in costs.items():
        assert_close_to_published(found, f.outputs[direction], direction)
    assert_close_to_published(gradient, f.gradients['dists'], 'gradient')


def test_soft_dtw_equals_published(published, assert_close_to_published):
    f = published('softdtw_a')

    def weighted(x, y):
        d = 1.0 - frame_cosine('pxd,pyd->pxy', x, y)
        cost = 0.5 * (soft_dtw(d, f.meta['gamma']) + soft_dtw(d.swapaxes(-1, -2), f.meta['gamma']))
        return (cost * f.cotangents['distance'][:, 0]).sum(), (cost, d)

    weighted = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))
    gradient, (cost, distances) = weighted(f.inputs['x'], f.inputs['y'])
    assert_close_to_published(distances, f.outputs['frame_distance'], 'frame distance')
    assert_close_to_published(cost, f.outputs['distance'][:, 0], 'distance')
    assert_close_to_published(gradient[0], f.gradients['x'], 'gradient of x')
    assert_close_to_published(gradient[1], f.gradients['y'], 'gradient of y')


@pytest.mark.parametrize(
    'name', ['otam_logits_a', pytest.param('otam_logits_b', marks=pytest.mark.slow)]
)
def test_learner_equals_published(published, assert_close_to_published, name):
    f = published(name)
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.matcher.update(name='otam', smoothness=f.meta['lambda'])
    config.train.loss_reduction = 'mean'
    learner, variables = (
        fsar_jax.create_learner(config.model),
        fsar_jax.weights.from_torch({}, config.model),
    )
    frames = lambda x: x.reshape(-1, 8, 1, 1, x.shape[1])
    support, query = f.support_by_class(frames(f.inputs['support'])), frames(f.inputs['query'])

    def weighted(support, query):
        prediction = learner.apply(variables, support, query, train=False)
        loss = episode_loss(prediction, f.inputs['query_labels'], config)
        total = (prediction.logits * f.cotangents['logits']).sum() + loss * f.cotangents['loss']
        return total, (prediction.logits, loss)

    gradient, (logits, loss) = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(support, query)
    assert_close_to_published(logits, f.outputs['logits'], 'logits')
    assert_close_to_published(loss, f.outputs['loss'], 'loss')
    assert_close_to_published(
        gradient[0], f.support_by_class(frames(f.gradients['support'])), 'gradient of the support'
    )
    assert_close_to_published(gradient[1], frames(f.gradients['query']), 'gradient of the query')


def soft_minimum(values, smoothness):
    values = np.array(values)
    return values.min() - smoothness * np.log(np.exp(-(values - values.min()) / smoothness).sum())


def slow_ordered_alignment(d, smoothness):
    rows, columns = d.shape[0], d.shape[1] + 2
    d = np.pad(d, ((0, 0), (1, 1)))
    c = np.zeros((rows, columns))
    c[0] = np.cumsum(d[0])
    for r in range(1, rows):
        for j in range(1, columns):
            came = [c[r - 1, j - 1], c[r, j - 1]] + ([c[r - 1, j]] if j in (1, columns - 1) else [])
            c[r, j] = d[r, j] + soft_minimum(came, smoothness)
    return c[-1, -1]


def drop_cost(d, keep):
    return np.sort(d.ravel())[max(1, int(keep * d.size)) - 1]


def slow_drop_dtw(d, smoothness, keep, drop=None):
    rows, columns = d.shape
    drop = drop_cost(d, keep) if drop is None else drop
    matched, total = (
        np.full((rows + 1, columns + 1), np.inf),
        np.full((rows + 1, columns + 1), np.inf),
    )
    total[0] = drop * np.arange(columns + 1)
    for r in range(1, rows + 1):
        for j in range(1, columns + 1):
            came = [total[r - 1, j - 1], total[r, j - 1], matched[r - 1, j]]
            matched[r, j] = d[r - 1, j - 1] + soft_minimum(
                [x for x in came if np.isfinite(x)] or [1e6], smoothness
            )
            dropped = [drop + total[r, j - 1]] if np.isfinite(total[r, j - 1]) else []
            total[r, j] = soft_minimum([matched[r, j], *dropped], smoothness)
    return total[-1, -1]


def slow_vava(d, smoothness, consistency, virtual_distance):
    """T and D with a virtual frame in front, as Liu et al. 2022 have it, by its multiplications."""
    (rows, columns), nearest = d.shape, d.argmin(1)
    n, m = rows + 1, columns + 1
    prior, structure, costs = np.zeros((n, m)), np.zeros((n, m)), np.full((n, m), 0.5)
    costs[1:, 1:] = d
    u = np.sqrt(1 / n**2 + 1 / m**2)
    for i, j in np.ndindex(n, m):
        best = 0 if i == 0 else nearest[i - 1] + 1  # counted with the virtual frame, from 0
        from_diagonal = abs((i + 1) / n - (j + 1) / m)
        from_best = abs((j - best) / m)
        if (i == 0) != (j == 0):
            from_diagonal = from_best = 2 * virtual_distance / (n + m)
        for share, x in ((consistency, from_diagonal), (1 - consistency, from_best)):
            prior[i, j] += (
                share * np.exp(-((x / u) ** 2) / (2 * 2.0**2)) / (2.0 * np.sqrt(2 * np.pi))
            )
            structure[i, j] += share * (rows + columns) / (x**2 + 1)
    kernel = prior * np.exp((structure - costs) / (smoothness * rows * columns / 4))
    a = np.full(n, 1 / n)
    for _ in range(21):
        b = 1 / m / (kernel.T @ a)
        a = 1 / n / (kernel @ b)
    return n * a[:, None] * kernel * b, costs


VAVA = {'smoothness': 0.3, 'virtual_distance': 2.0}


@pytest.mark.parametrize(
    'shape, consistency', [((8, 8), 0.3), ((5, 7), 0.0), ((3, 1), 1.0), ((1, 4), 0.5)]
)
def test_vava_equals_loops_over_the_cells(shape, consistency):
    distances = np.random.default_rng(0).uniform(0, 2, (2, *shape))
    plan, costs = jax.jit(partial(transport, consistency=consistency, **VAVA))(distances)
    for i, d in enumerate(distances):
        expected = slow_vava(d, consistency=consistency, **VAVA)
        np.testing.assert_allclose(plan[i], expected[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(costs[i], expected[1], rtol=1e-6)
    np.testing.assert_allclose(plan.sum(-1), 1.0, rtol=1e-5)


def test_the_gradient_of_vava_is_the_difference_of_its_costs():
    rng = np.random.default_rng(5)
    d, direction, step = rng.uniform(0, 2, (4, 5)), rng.normal(size=(4, 5)), 1e-5
    cost = lambda d: np.prod(slow_vava(d, consistency=0.4, **VAVA), axis=0).sum()
    gradient = jax.jit(jax.grad(partial(vava, consistency=0.4, **VAVA)))(np.float32(d))
    np.testing.assert_allclose(
        (np.asarray(gradient) * direction).sum(),
        (cost(d + step * direction) - cost(d - step * direction)) / (2 * step),
        rtol=1e-3,
    )


def test_vava_follows_parts_out_of_order_and_leaves_a_redundant_frame_to_the_virtual_one():
    alike = np.array([0, 1, 4, 5, 2, 3])  # the second and the third part of the action swapped
    d = np.full((6, 6), 1.5)
    d[np.arange(6), alike] = 0.0
    plan_of = jax.jit(lambda d, share: transport(d, 0.1, share, 2.0)[0], static_argnums=1)
    in_order, plan = np.asarray(plan_of(d, 1.0)), np.asarray(plan_of(d, 0.0))
    swapped = np.arange(2, 6) + 1, alike[2:] + 1
    assert plan[swapped].min() > 0.6 > 0.4 > in_order[swapped].max()
    d[2] = 1.5  # like no frame of the other clip
    redundant = np.asarray(plan_of(d, 0.0))[1:, 0]
    assert redundant[2] > 0.3 > 0.2 > np.delete(redundant, 2).max()


@pytest.mark.parametrize(
    'shape, smoothness',
    [
        ((8, 8), 0.1),
        ((5, 7), 1.0),
        ((3, 1), 0.1),
        ((1, 4), 1.0),
        pytest.param((8, 8), 1.0, marks=pytest.mark.slow),
        pytest.param((5, 7), 0.1, marks=pytest.mark.slow),
        pytest.param((3, 1), 1.0, marks=pytest.mark.slow),
        pytest.param((1, 4), 0.1, marks=pytest.mark.slow),
    ],
)
def test_alignments_equal_loops_over_the_cells(shape, smoothness):
    distances = np.random.default_rng(0).uniform(0, 2, (3, *shape))
    alignments = (
        partial(ordered_alignment, smoothness=smoothness),
        partial(drop_dtw, smoothness=smoothness, keep=0.3),
    )
    ordered, dropping = jax.jit(lambda d: [align(d) for align in alignments])(distances)
    np.testing.assert_allclose(
        ordered, [slow_ordered_alignment(d, smoothness) for d in distances], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        dropping, [slow_drop_dtw(d, smoothness, 0.3) for d in distances], rtol=1e-4, atol=1e-4
    )


def test_no_gradient_goes_through_the_drop_cost():
    """Against differences of the loop over cells with the drop cost held."""
    rng = np.random.default_rng(5)
    d, direction, step = rng.uniform(0, 2, (4, 5)), rng.normal(size=(4, 5)), 1e-4
    held = drop_cost(d, 0.3)
    moved = [slow_drop_dtw(d + s * step * direction, 0.5, 0.3, held) for s in (1, -1)]
    gradient = jax.jit(jax.grad(lambda d: drop_dtw(d, 0.5, 0.3)))(np.float32(d))
    np.testing.assert_allclose(
        (np.asarray(gradient) * direction).sum(), (moved[0] - moved[1]) / (2 * step), rtol=1e-3
    )


jitted_soft_dtw = jax.jit(partial(soft_dtw, smoothness=0.1))
SLOW = {  # and the weight of each of the two directions: OTAM adds them, the others are averaged
    'otam': (lambda d: slow_ordered_alignment(d, 0.1), 1.0),
    'soft_dtw': (lambda d: float(jitted_soft_dtw(d)), 0.5),  # as published, above
    'drop_dtw': (lambda d: slow_drop_dtw(d, 0.1, 0.3), 0.5),
    'vava': (lambda d: np.prod(slow_vava(d, 0.1, 0.5, 2.0), axis=0).sum(), 0.5),
}


@pytest.mark.parametrize('alignment', SLOW)
def test_logits_are_of_both_directions_and_the_mean_over_shots(alignment):
    rng = np.random.default_rng(6)
    support, query = rng.normal(size=(3, 2, 5, 7)), rng.normal(size=(2, 5, 7))
    align, weight = SLOW[alignment]
    expected = np.zeros((2, 3))
    for q, c, s in np.ndindex(2, 3, 2):
        x, y = query[q], support[c, s]
        lengths = np.linalg.norm(x, axis=-1)[:, None] * np.linalg.norm(y, axis=-1)
        d = 1 - x @ y.T / (lengths + 0.01)
        expected[q, c] -= weight * (align(d) + align(d.T)) / 2
    found = jax.jit(OrderedAlignment(alignment).apply)({}, np.float32(support), np.float32(query))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_dropping_spares_the_outlier_frames_of_a_sequence():
    rng = np.random.default_rng(1)
    clip = rng.standard_normal((6, 16))
    disturbed = np.insert(clip, [2, 4], 3 * rng.standard_normal((2, 16)), axis=0)

    @jax.jit
    def costs(x, y):
        distances = 1.0 - frame_cosine('xd,yd->xy', x, y)
        return drop_dtw(distances, 0.01, 0.1), soft_dtw(distances, 0.01)

    dropping, keeping = costs(clip, disturbed)
    assert dropping < 0.1 < 1.0 < keeping


@pytest.mark.parametrize(
    'align',
    [
        ordered_alignment,
        soft_dtw,
        partial(drop_dtw, keep=0.3),
        partial(vava, consistency=0.5, virtual_distance=2.0),
    ],
)
def test_long_alignments_stay_finite_where_the_literal_sum_overflows(align):
    distances = np.random.default_rng(2).uniform(1, 2, (2, 64, 64)).astype(np.float32)
    cost, gradient = jax.jit(jax.value_and_grad(lambda d: align(d, 0.1).sum()))(distances)
    assert np.isfinite(cost) and np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_relaxed_ends_forgive_padding_and_order_matters():
    clip = np.random.default_rng(3).standard_normal((6, 16))
    padded = np.concatenate([np.random.default_rng(4).standard_normal((2, 16)), clip])
    cost = jax.jit(lambda x, y: ordered_alignment(1.0 - frame_cosine('xd,yd->xy', x, y), 0.01))
    assert cost(padded, clip) < 0.1 < cost(padded[::-1], clip)


def test_unknown_alignments_are_named():
    config = fsar_jax.default_config()
    config.model.matcher.update(name='otam', alignment='dwt')
    with pytest.raises(
        ValueError,
        match=r"config\.model\.matcher\.alignment='dwt' is not one of otam, soft_dtw, drop_dtw, "
        'vava',
    ):
        fsar_jax.create_learner(config.model)
