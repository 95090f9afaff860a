"""Enrichment against the published code, and against its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import gradient
from tiny_run import random_variables

from fsar_jax.enrichment import TOKEN_ENRICHMENTS, adaptive_max_pool
from fsar_jax.enrichment.joint_attention import JointEnrichment
from fsar_jax.enrichment.mlp_mixer import MixerEnrichment
from fsar_jax.enrichment.self_attention import SelfAttentionEnrichment

PLE_NAMES = {
    'query_proj': 'query',
    'key_proj': 'key',
    'value_conv': 'value',
    'Bot_MLP.inp_fc': 'mlp_in',
    'Bot_MLP.hid_fc': 'mlp_hidden',
    'Bot_MLP.out_fc': 'mlp_out',
}
FLE_NAMES = {
    'Tok_MLP.inp_fc': 'token_in',
    'Tok_MLP.out_fc': 'token_out',
    'Bot_MLP.inp_fc': 'channel_in',
    'Bot_MLP.out_fc': 'channel_out',
}


def linear_params(arrays, names):
    params = {
        ours: {'kernel': arrays[f'{theirs}.weight'].T, 'bias': arrays[f'{theirs}.bias']}
        for theirs, ours in names.items()
    }
    return params | ({'gamma': arrays['gamma']} if 'gamma' in arrays else {})


@pytest.mark.parametrize(
    'name', ['strm_pool_a', pytest.param('strm_pool_b', marks=pytest.mark.slow)]
)
def test_pooling_equals_published(published, assert_close_to_published, name):
    f = published(name)
    x = f.inputs['x'].transpose(0, 2, 3, 1)

    def weighted(x):
        patches = adaptive_max_pool(x, 4)
        return (patches * f.cotangents['patches']).sum(), patches

    gradient, patches = jax.jit(jax.grad(weighted, has_aux=True))(x)
    assert_close_to_published(patches, f.outputs['patches'], 'patches')
    assert_close_to_published(
        np.asarray(gradient).transpose(0, 3, 1, 2), f.gradients['x'], 'gradient'
    )


def test_pooling_overlaps_where_the_grid_does_not_divide():
    x = np.arange(7.0 * 7, dtype=np.float32).reshape(7, 7, 1)
    cells = np.asarray(jax.jit(lambda x: adaptive_max_pool(x, 4))(x)).reshape(4, 4)
    rows = [(0, 2), (1, 4), (3, 6), (5, 7)]
    np.testing.assert_array_equal(cells, [[x[a:b, c:d].max() for c, d in rows] for a, b in rows])


@pytest.mark.parametrize(
    'name, module, names',
    [
        ('strm_ple_a', SelfAttentionEnrichment, PLE_NAMES),
        pytest.param('strm_ple_b', SelfAttentionEnrichment, PLE_NAMES, marks=pytest.mark.slow),
        ('strm_fle_a', MixerEnrichment, FLE_NAMES),
        pytest.param('strm_fle_b', MixerEnrichment, FLE_NAMES, marks=pytest.mark.slow),
    ],
)
def test_enrichment_equals_published(published, assert_close_to_published, name, module, names):
    f = published(name)
    params = linear_params(f.weights, names)

    def outputs(params, x):
        y, sown = module().apply({'params': params}, x, mutable=['intermediates'])
        return {'y': y} | {k: v[0] for k, v in sown.get('intermediates', {}).items()}

    def weighted(params, x):
        out = outputs(params, x)
        return sum((out[k] * f.cotangents[k]).sum() for k in f.cotangents), out

    weighted = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))
    (params_gradient, x_gradient), ours = weighted(params, f.inputs['x'])
    for key, reference in f.outputs.items():
        assert_close_to_published(ours[key], reference, key)
    assert_close_to_published(x_gradient, f.gradients['x'], 'gradient of x')
    expected = linear_params(f.weight_gradients, names)
    assert jax.tree.structure(expected) == jax.tree.structure(params_gradient)
    jax.tree.map_with_path(
        lambda path, a, b: assert_close_to_published(a, b, jax.tree_util.keystr(path)),
        params_gradient,
        expected,
    )


@pytest.mark.parametrize('kind', ['self_attention', 'mlp_mixer'])
def test_paper_variant_has_neither_biases_nor_gate_nor_position(kind):
    module = TOKEN_ENRICHMENTS[kind](variant='paper', dropout=0.0, dtype=jnp.float32)
    x = np.random.default_rng(0).normal(size=(3, 8, 16)).astype(np.float32)
    variables = random_variables(module, x)
    assert all(set(leaves) == {'kernel'} for leaves in variables['params'].values())
    np.testing.assert_array_equal(
        jax.jit(module.apply)(variables, np.zeros_like(x)), 0.0
    )  # no position code, no bias


def test_paper_self_attention_is_equation_3():
    module = SelfAttentionEnrichment(variant='paper', dropout=0.0)
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    variables = random_variables(module, x)
    w = {name: np.asarray(p['kernel'], np.float64) for name, p in variables['params'].items()}
    x64 = np.asarray(x, np.float64)
    scores = (x64 @ w['query']) @ (x64 @ w['key']).T / np.sqrt(16)
    attention = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    alpha = attention @ (x64 @ w['value']) + x64
    expected = (
        np.maximum(np.maximum(alpha @ w['mlp_in'], 0) @ w['mlp_hidden'], 0) @ w['mlp_out'] + alpha
    )
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, atol=1e-5)


def test_self_attention_without_position_is_blind_to_order_and_the_mixer_is_not():
    x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    order = np.random.default_rng(2).permutation(8)
    for kind, blind in (('self_attention', True), ('mlp_mixer', False)):
        module = TOKEN_ENRICHMENTS[kind](variant='paper', dropout=0.0, dtype=jnp.float32)
        variables = random_variables(module, x)
        run = jax.jit(module.apply)
        same = np.allclose(
            run(variables, x[order]), np.asarray(run(variables, x))[order], atol=1e-5
        )
        assert same == blind, kind


def test_dropout_only_while_training():
    module = MixerEnrichment(dropout=0.5)
    x = np.ones((8, 16), np.float32)
    variables = random_variables(module, x)
    train = jax.jit(
        lambda seed: module.apply(variables, x, train=True, rngs={'dropout': jax.random.key(seed)})
    )
    a, b = train(1), train(2)
    assert not np.allclose(a, b)
    run = jax.jit(module.apply)
    np.testing.assert_array_equal(run(variables, x), run(variables, x))


def joint_by_loops(patches, params, variant):
    """Jnt-ST of one clip [L, P², D]: one token after the other, in float64."""
    length, cells, dim = patches.shape
    tokens = [patches[frame, cell] for frame in range(length) for cell in range(cells)]
    for layer in (params[f'layer{i + 1}'] for i in range(len(params))):
        linear = lambda x, name, p=layer: x @ p[name]['kernel'] + p[name].get('bias', 0.0)
        if variant == 'code':  # 0.1 x a sinusoid over all tokens; see layers.sinusoidal_positions
            angle = lambda n: n / 10000.0 ** (np.arange(0, dim, 2) / dim)
            code = [np.stack([np.sin(angle(n)), np.cos(angle(n))], 1).ravel() for n in range(64)]
            tokens = [x + 0.1 * at for x, at in zip(tokens, code)]
        keys = [linear(x, 'key') for x in tokens]
        values = [linear(x, 'value') for x in tokens]
        enriched = []
        for x in tokens:
            query = linear(x, 'query')
            scores = np.array([query @ key for key in keys])
            weights = np.exp(scores if variant == 'code' else scores / np.sqrt(dim))
            attended = sum(w * value for w, value in zip(weights / weights.sum(), values))
            alpha = x + attended * (layer['gamma'] if variant == 'code' else 1.0)
            hidden = np.maximum(linear(alpha, 'mlp_in'), 0)
            hidden = np.maximum(linear(hidden, 'mlp_hidden'), 0)
            enriched.append(linear(hidden, 'mlp_out') + alpha)
        tokens = enriched
    return np.array(tokens).reshape(length, cells, dim)


@pytest.mark.parametrize('layers, variant', [(1, 'code'), (2, 'paper')])
def test_joint_enrichment_lets_every_patch_of_a_clip_attend_to_all(layers, variant):
    rng = np.random.default_rng(0)
    patches, cotangent = rng.normal(size=(2, 2, 3, 2, 6))
    module = JointEnrichment(layers, variant=variant, dropout=0.0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.float32(patches))['params']
    params = jax.tree.map(lambda x: rng.normal(size=x.shape) * 0.4, shapes)
    run = lambda x: module.apply({'params': jax.tree.map(np.float32, params)}, x)
    found, slope = jax.jit(
        lambda x: (run(x), jax.grad(lambda x: (run(x) * np.float32(cotangent)).sum())(x))
    )(np.float32(patches))
    by_clip = lambda x: np.stack([joint_by_loops(clip, params, variant) for clip in x])
    np.testing.assert_allclose(found, by_clip(patches), rtol=1e-4, atol=1e-4)
    expected = gradient(lambda x: (by_clip(x) * cotangent).sum(), patches)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-3)
    alone = jax.jit(run)(np.float32(patches[:1]))  # clips do not see each other
    np.testing.assert_allclose(alone, found[:1], rtol=1e-5, atol=1e-5)
