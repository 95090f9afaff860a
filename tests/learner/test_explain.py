"""`explain` predicts what `__call__` predicts, and what it shows is what the prediction is made
of."""

import itertools

import jax
import numpy as np
import pytest
from tiny_run import SAMPLER, random_batch, random_variables, shallow_networks, tiny_config

from fsar_jax.layers import frame_tuples
from fsar_jax.learner import create_learner
from fsar_jax.matchers.otam import cheapest_path
from fsar_jax.samplers.task_adaptive import TASK_DRAWS

L = 4  # frames
VIM = {key: value for key, value in SAMPLER.items() if key.startswith('model.sampler.')}


class Explained:
    """A learner with random parameters, what `explain` gives of an episode, and its logits."""

    def __init__(self, method, changes=None):
        maps = {} if method == 'vim' else {'model.backbone.name': 'features'}
        config = tiny_config(method, {'episode.shot': 2, **maps, **(changes or {})}, width=8)
        with shallow_networks():
            self.learner = create_learner(config.model)
        batch = random_batch(config)
        self.support, self.query = batch['support'][0, 0], batch['query'][0, 0]
        if maps:
            rng = np.random.default_rng(0)
            self.support, self.query = (
                np.abs(rng.normal(size=(*n, L, 4, 4, 8))).astype(np.float32) for n in ((2, 2), (4,))
            )
        self.variables = random_variables(self.learner, self.support, self.query)
        both = lambda *x: [
            self.learner.apply(*x, method=method) for method in ('explain', '__call__')
        ]
        self.prediction, self.answer = jax.tree.map(
            np.asarray, jax.jit(both)(self.variables, self.support, self.query)
        )
        self.shown = self.prediction.auxiliary


@pytest.fixture(scope='module')
def explained():
    kept = {}

    def get(method, **changes):
        key = method, *changes.items()
        if key not in kept:
            kept[key] = Explained(method, {k.replace('__', '.'): v for k, v in changes.items()})
        return kept[key]

    return get


METHODS = (
    *('protonet', 'strm', 'trx', 'otam', 'hyrsm', 'mastaf'),
    *(pytest.param(method, marks=pytest.mark.slow) for method in ('ta2n', 'vim')),
)


@pytest.mark.parametrize('method', METHODS)
def test_it_predicts_the_same_and_the_usual_outputs_do_not_grow(explained, method):
    found = explained(method, **VIM) if method == 'vim' else explained(method)
    np.testing.assert_allclose(found.prediction.logits, found.answer.logits, rtol=1e-4, atol=1e-5)
    usual = found.answer.auxiliary
    assert usual.keys() < found.shown.keys()
    for name in usual:
        np.testing.assert_allclose(found.shown[name], usual[name], rtol=1e-4, atol=1e-5)
    for name in ('clip', 'maps', 'patch_level', 'frame_features'):
        assert f'support_{name}' not in usual
        assert found.shown[f'support_{name}'].shape[:3] == (2, 2, L)
        assert found.shown[f'query_{name}'].shape[:2] == (4, L)


def test_enrichment_shows_its_patches_before_and_after(explained):
    shown = explained('strm').shown
    patches, enriched = shown['query_patches'], shown['query_enriched_patches']
    assert patches.shape == enriched.shape == (4, L, 4, 8)  # 2 x 2 patches
    blocks = shown['query_maps'].reshape(4, L, 2, 2, 2, 2, 8).max((3, 5)).reshape(4, L, 4, 8)
    np.testing.assert_array_equal(patches, blocks)
    np.testing.assert_allclose(enriched.mean(-2), shown['query_patch_level'], rtol=1e-5)
    assert 'query_patches' not in explained('otam').shown


def test_attention_of_tuples_is_what_makes_the_prototypes(explained):
    """The logits again, from the attention that is shown."""
    found = explained('trx')
    embed = jax.jit(lambda x: found.learner.apply(found.variables, x, method='embed'))
    embeddings = lambda x: jax.tree.map(np.asarray, embed(x))
    query = embeddings(found.query)['temporal_matching']
    support = embeddings(found.support.reshape(4, *found.support.shape[2:]))['temporal_matching']
    logits = []
    for omega in (2, 3):
        attention = found.shown[f'attention_cardinality_{omega}']
        count = len(frame_tuples(L, omega))
        assert attention.shape == (4, 2, count, 2, count)
        np.testing.assert_allclose(attention.sum((-2, -1)), 1, rtol=1e-5)
        values = support[f'cardinality_{omega}']['values'].reshape(2, 2, count, -1)
        prototypes = np.einsum('qwtks,wksd->qwtd', attention, values)
        difference = query[f'cardinality_{omega}']['values'][:, None] - prototypes
        logits.append(-np.square(difference).sum(-1).mean(-1))
    np.testing.assert_allclose(np.mean(logits, 0), found.answer.logits, rtol=1e-3, atol=1e-4)


compiled_path = jax.jit(cheapest_path, static_argnums=(1, 2))


def paths(rows, columns):
    """All of OTAM's paths through the columns 0 … columns + 1, as lists of cells: to the right or
    diagonally, and down at both ends."""
    found = []

    def go(path):
        row, column = path[-1]
        if (row, column) == (rows - 1, columns + 1):
            found.append(path)
            return
        if column <= columns:
            go([*path, (row, column + 1)])
            if row + 1 < rows:
                go([*path, (row + 1, column + 1)])
        if row + 1 < rows and column in (1, columns + 1):
            go([*path, (row + 1, column)])

    go([(0, 0)])
    return found


def test_the_path_of_otam_is_the_cheapest_of_all_paths():
    rng = np.random.default_rng(3)
    for size in ((3, 3), (4, 3)):
        distances = rng.random(size).astype(np.float32)
        padded = np.pad(distances, [(0, 0), (1, 1)])
        cost = {tuple(path): sum(padded[cell] for cell in path) for path in paths(*size)}
        best = min(cost, key=cost.get)
        expected = np.zeros(size)
        for row, column in best:
            if 1 <= column <= size[1]:
                expected[row, column - 1] = 1
        np.testing.assert_allclose(compiled_path(distances, 'otam', 0.3), expected, atol=1e-4)


@pytest.mark.parametrize('alignment', ['otam', 'soft_dtw', 'drop_dtw'])
def test_every_alignment_has_a_path_that_follows_the_diagonal_of_equal_clips(alignment):
    distances = 1.0 - np.eye(5, dtype=np.float32)
    path = np.asarray(compiled_path(distances, alignment, 0.3))
    np.testing.assert_allclose(np.diagonal(path), 1, atol=1e-3)


def test_otam_shows_distances_of_frames_and_both_paths(explained):
    shown = explained('otam').shown
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    cosine = unit(shown['query_frame_features'])[3] @ unit(shown['support_frame_features'])[1, 0].T
    np.testing.assert_allclose(shown['distances'][3, 1, 0], 1 - cosine, atol=2e-2)  # the margin
    back = compiled_path(shown['distances'][3, 1, 0].T, 'otam', 0.3)
    np.testing.assert_allclose(shown['path_back'][3, 1, 0], np.asarray(back).T, atol=1e-4)


def test_hyrsm_scores_the_nearest_of_the_distances_that_are_shown(explained):
    found = explained('hyrsm')
    distances = found.shown['distances']
    nearest = distances.min(-1).sum(-1) + distances.min(-2).sum(-1)
    np.testing.assert_allclose(-nearest.mean(-1), found.answer.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_ta2n_compares_the_frames_that_it_shows(explained):
    shown, answer = explained('ta2n').shown, explained('ta2n').answer
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    cosine = (unit(shown['aligned_prototypes']) * unit(shown['aligned_frames'])).sum(-1)
    np.testing.assert_allclose((cosine - 1).sum(-1), answer.logits, rtol=1e-4, atol=1e-5)
    assert shown['prototypes'].shape == (2, L, 8)
    assert shown['query_warped_maps'].shape == shown['query_maps'].shape
    assert 'query_warped_maps' not in explained('otam').shown


def test_mastaf_scores_the_cosines_that_it_shows(explained):
    shown, answer = explained('mastaf').shown, explained('mastaf').answer
    both = shown['cosine_cross'] + shown['cosine_self']
    np.testing.assert_allclose(7 * both, answer.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown['cosine_fused'], both / 2, rtol=1e-5)
    assert (np.abs(shown['cosine_plain']) <= 1 + 1e-6).all()


@pytest.mark.slow
def test_the_sampler_shows_the_weights_of_the_task(explained):
    found = explained('vim', **VIM)
    weights = found.shown['task_weights']
    assert weights.shape == (1 + TASK_DRAWS, 8)
    np.testing.assert_allclose(np.linalg.norm(weights, axis=-1), 1, rtol=1e-5)
    apart = [np.abs(a - b).max() for a, b in itertools.combinations(weights, 2)]
    assert min(apart) > 1e-4  # each draw of noise is another one
    assert 'task_weights' not in explained('otam').shown
