"""What holds for every method, through the learner, on features [L, h, w, C].

One table of methods, with a row for every choice of matcher and enrichment; a new matcher has a
row of its own accord. The few that cost most are left out of the quick tests.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_variables

import fsar_jax
from fsar_jax.config import SETTINGS
from fsar_jax.matchers import MATCHERS
from fsar_jax.training.losses import episode_loss

TRX = {'matcher.name': 'cross_transformer', 'matcher.dim': 12}
STRM = {
    **TRX,
    'enrichment.patch': 'self_attention',
    'enrichment.frame': 'mlp_mixer',
    'query_similarity.weight': 0.1,
}
TA2N = {'matcher.name': 'action_coordination', 'enrichment.temporal_transform': True}
WITHOUT_TIME = {'matcher.name': 'action_coordination', 'matcher.temporal': False}
HYRSM = {'matcher.name': 'set_matching', 'matcher.heads': 2}
MASTAF = {'matcher.name': 'attention_fusion'}
OTAM = {'matcher.name': 'otam'}
TARN = {'matcher.name': 'attentive_relation', 'matcher.hidden': 8}
PAPER = {'variant': 'paper'}
# In front of a metric; with the mask of VIM in tests/matchers/test_pairs.py.
PAIRS = {
    'matcher.name': 'action_coordination',
    'matcher.prototype': 'mean',
    'matcher.spatial': 'none',
}
QUICK = {
    'protonet': {'matcher.name': 'prototypes'},
    'trx': TRX,
    'strm': STRM,
    'otam': OTAM,
    'ta2n': TA2N,
    'hyrsm': HYRSM,
    'mastaf': MASTAF,
    'tarn': TARN,
}
QUICK |= {
    name: {'matcher.name': name}
    for name in MATCHERS
    if name not in {row['matcher.name'] for row in QUICK.values()}
}
SLOW = {
    'mean_cosine': {'matcher.name': 'prototypes', 'matcher.distance': 'mean_cosine'},
    'mean_squared': {'matcher.name': 'prototypes', 'matcher.distance': 'mean_squared_euclidean'},
    'trx_paper': TRX | PAPER | {'matcher.cardinality_reduction': 'sum'},
    'trx_mean': TRX | {'matcher.cardinality_reduction': 'mean'},
    'strm_paper': STRM | PAPER,
    'swapped_enrichments': STRM
    | {'enrichment.patch': 'mlp_mixer', 'enrichment.frame': 'self_attention'}
    | {'matcher.tuples_share': 0.5, 'matcher.tuples_share_in_training': True},
    'joint_enrichment': STRM
    | {
        'enrichment.patch': 'joint_self_attention',
        'enrichment.frame': 'none',
        'enrichment.joint_layers': 2,
    },
    'tarn_product': TARN | {'matcher.comparison': 'product', 'matcher.hidden': 32},
    'tarn_difference': TARN | {'matcher.comparison': 'difference'},
    'soft_dtw': OTAM | {'matcher.alignment': 'soft_dtw'},
    'drop_dtw': OTAM | {'matcher.alignment': 'drop_dtw'},
    'ta2n_paper': TA2N | PAPER | {'matcher.reference': 'random', 'matcher.order': 'spatial_first'},
    'ta2n_spatial_grid': WITHOUT_TIME | {'matcher.spatial': 'grid'},
    'ta2n_enumerate': WITHOUT_TIME | {'matcher.spatial': 'enumerate'},
    'vava_of_pairs': PAIRS | {'matcher.metric': 'otam', 'matcher.alignment': 'vava'},
    'trx_of_pairs': TRX | PAIRS | {'matcher.metric': 'cross_transformer'},
    'hyrsm_paper_of_pairs': HYRSM | PAPER | PAIRS | {'matcher.metric': 'set_matching'},
    'exhaustive': WITHOUT_TIME
    | {
        'matcher.spatial': 'enumerate',
        'matcher.offset_step': 0.5,
        'matcher.metric': 'tuple_cosine',
        'matcher.prototype': 'mean',
    },
    'mastaf_mean_kernel': MASTAF | {'matcher.kernel': 'mean', 'matcher.residual': False},
    'mastaf_self': MASTAF | {'matcher.fusion': 'self'},
    'mastaf_neighbour': MASTAF | {'matcher.fusion': 'none'},
}
METHODS = {**QUICK, **SLOW}
# Which variant a loss has is no matter of the logits (tests/learner/test_losses.py); the norm over
# the classes has weights for each place, so they do not permute (test_action_coordination.py); how
# parameters start is in the tests of the matchers.
ELSEWHERE = {
    'model.matcher.inter_variant',
    'model.matcher.distance_norm',
    'model.matcher.relation_start',
    'model.matcher.kernel_start',
}


def method_config(name):
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.enrichment.update(dropout=0.0, patches=2)
    config.model.matcher.dropout = 0.0
    config.model.classifier.update(classes=7, weight=0.5)
    config.update_from_flattened_dict({f'model.{key}': x for key, x in METHODS[name].items()})
    return config


def test_every_choice_has_a_row():
    for key, known in SETTINGS.items():
        if not key.startswith(('model.matcher.', 'model.enrichment.')) or key in ELSEWHERE:
            continue
        choices = {True, False} if known.kind is bool else set(known.choices)
        if choices:
            rows = {row.get(key.removeprefix('model.'), known.default) for row in METHODS.values()}
            assert choices <= rows, (
                f'{key}: no method of the table has {choices - rows}: add a row to SLOW'
            )


@pytest.fixture(
    scope='module', params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def method(request):
    """(config, learner, variables away from their trivial start, support [3, 2, 4, 3, 3, 16], query
    [4, 4, 3, 3, 16], the compiled learner at test, what it predicts of them in one go and after
    `embed`)."""
    config = method_config(request.param)
    learner = fsar_jax.create_learner(config.model)
    rng = np.random.default_rng(0)
    support, query = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((3, 2, 4, 3, 3, 16), (4, 4, 3, 3, 16))
    )
    variables = random_variables(learner, support, query)

    @jax.jit  # one program, in which the two ways share what they have in common
    def both_ways(variables, support, query):
        embed = lambda videos: learner.apply(variables, videos, train=False, method='embed')
        s, q = embed(support.reshape(6, *query.shape[1:])), embed(query)
        assert all(len(x) == 4 for x in jax.tree.leaves(q))
        s = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), s)
        parts = learner.apply(variables, s, q, method='match')
        return learner.apply(variables, support, query, train=False), parts

    run = lambda *inputs: jax.tree.map(np.asarray, both_ways(*inputs))
    return config, learner, variables, support, query, run, run(variables, support, query)


close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def test_classes_permute_and_shots_do_not_matter(method):
    config, _, variables, support, query, run, (whole, _) = method
    logits = whole.logits
    assert logits.shape == (4, 3) and logits.dtype == np.float32
    assert np.ptp(logits, axis=1).min() > 1e-3
    order = np.array([2, 0, 1])
    close(run(variables, support[order], query)[0].logits, logits[:, order])
    matcher = config.model.matcher
    if (matcher.name, matcher.prototype) != ('action_coordination', 'aligned'):  # to the first shot
        close(run(variables, support[:, ::-1], query)[0].logits, logits)


def test_a_query_does_not_see_the_other_queries(method):
    *_, variables, support, query, run, (whole, _) = method
    others = np.concatenate([query[:2], query[:1], query[3:] * 2])
    logits, changed = whole.logits, run(variables, support, others)[0].logits
    close(changed[:2], logits[:2])
    assert np.abs(changed[2:] - logits[2:]).max() > 1e-3


def test_embed_then_match_is_the_whole(method):
    *_, (whole, parts) = method
    assert set(parts.auxiliary) == set(whole.auxiliary)
    jax.tree.map(close, parts, whole)


@pytest.mark.slow
def test_gradients_are_there_and_finite_at_zero_distance_and_at_zero_features(method):
    config, learner, variables, support, query, *_ = method
    labels, classes = np.array([0, 1, 2, 0]), np.array([6, 0, 3])

    @jax.jit
    @jax.value_and_grad
    def loss(inputs):
        params, support, query = inputs
        prediction, _ = learner.apply(
            {**variables, 'params': params},
            support,
            query,
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': jax.random.key(0)},
        )
        return episode_loss(prediction, labels, config, classes)

    alike = np.repeat(support[:, :1], 2, axis=1)  # each query is what all clips of its class are
    of_support = np.concatenate([support[:, 0], support[:1, 0]])
    for s, q in (
        (np.zeros_like(support), np.zeros_like(query)),
        (alike, of_support),
        (support, query),
    ):
        value, gradients = loss((variables.get('params', {}), s, q))
        assert np.isfinite(value)
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
            assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
    of_clips = (np.abs(gradients[1]).max((2, 3, 4, 5)), np.abs(gradients[2]).max((1, 2, 3, 4)))
    assert all((largest > 1e-5).all() for largest in of_clips)


@pytest.mark.slow
def test_bfloat16_compute_stays_within_one_percent(method):
    config, _, variables, support, query, _, (whole, _) = method
    exact = whole.logits
    config = config.copy_and_resolve_references()
    config.model.dtype = 'bfloat16'
    rounded = jax.jit(fsar_jax.create_learner(config.model).apply)(variables, support, query).logits
    assert rounded.dtype == jnp.float32
    allowed = 0.02 if config.model.query_similarity.weight else 0.01  # the errors of two matchers
    assert np.abs(rounded - exact).max() <= allowed * np.abs(exact).max()
