"""Vision transformers: sizes of the published ones, the class token, dropout, memory, compute
dtype, other sizes of frames, and the methods over them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import get_config, random_variables

from fsar_jax.backbones import BACKBONES, mvit, vit
from fsar_jax.backbones.mvit import MViT
from fsar_jax.backbones.positions import cubic_weights, linear_weights
from fsar_jax.backbones.vit import ViT, drop_branch
from fsar_jax.learner import create_learner

# Parameters of torchvision (MViT, ViT-B/16, -L/16), of timm (the others) and of DINOv2's own
# module (with registers), without classifier, projection and mask token; and maps of 224 pixels.
PUBLISHED = {
    'vit_s16': (21_665_664, (14, 14, 384)),
    'vit_b16': (86_567_656 - 769_000, (14, 14, 768)),
    'vit_l16': (304_326_632 - 1_025_000, (14, 14, 1024)),
    'vit_s14': (22_056_192, (16, 16, 384)),
    'vit_b14': (86_579_712, (16, 16, 768)),
    'vit_l14': (304_367_616, (16, 16, 1024)),
    'vit_s14_reg': (22_057_344 + 384, (16, 16, 384)),
    'vit_b14_reg': (86_582_016 + 768, (16, 16, 768)),
    'vit_l14_reg': (304_370_688 + 1024, (16, 16, 1024)),
    'clip_b32': (87_456_000, (7, 7, 768)),
    'clip_b16': (85_799_424, (14, 14, 768)),
    'clip_l14': (303_179_776, (16, 16, 1024)),
    'openclip_b32': (87_456_000, (7, 7, 768)),
    'openclip_b16': (85_799_424, (14, 14, 768)),
    'openclip_l14': (303_179_776, (16, 16, 1024)),
    'mvit_v1_b': (36_610_672 - 307_600, (8, 7, 7, 768)),
    'mvit_v2_s': (34_537_744 - 307_600, (8, 7, 7, 768)),
}
TINY = functools.partial(ViT, patch=4, width=16, depth=2, heads=2, grid=3, normalize='unit')
TINY_MVIT = functools.partial(MViT, blocks=(1, 1), width=8, frames=4, size=16)


@functools.cache
def tiny(build, shape):
    module, x = build(), np.random.default_rng(0).random(shape, np.float32)
    return module, random_variables(module, x), x


def test_every_transformer_is_covered_here():
    named = {name for name in BACKBONES if name.startswith(('vit', 'clip', 'openclip', 'mvit'))}
    assert named == set(PUBLISHED)


@pytest.mark.parametrize(
    'name', [pytest.param(x, marks=[pytest.mark.slow] * ('_l' in x)) for x in PUBLISHED]
)
def test_parameter_count_and_maps_at_paper_size(name):
    parameters, maps = PUBLISHED[name]
    module = BACKBONES[name]()
    shape = (1, 16, 224, 224, 3) if module.takes_clips else (1, 224, 224, 3)
    output, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros(shape))
    )
    assert output.shape == (1, *maps)
    assert sum(x.size for x in jax.tree.leaves(variables)) == parameters
    assert set(variables) == {'params'}


def test_the_class_token_is_dropped_concatenated_or_alone():
    module, variables, frames = tiny(TINY, (2, 12, 8, 3))
    modules = [module.clone(class_token=how) for how in ('drop', 'concatenate', 'only')]
    maps, both, alone = jax.jit(lambda x: [m.apply(variables, x) for m in modules])(frames)
    assert maps.shape == (2, 3, 2, 16) and alone.shape == (2, 1, 1, 16)
    np.testing.assert_array_equal(both[..., :16], maps)
    np.testing.assert_array_equal(both[..., 16:], np.broadcast_to(alone, maps.shape))


OF_VIT = pytest.param(TINY, (2, 12, 12, 3), id='ViT')
OF_MVIT = TINY_MVIT, (2, 4, 16, 16, 3)


@pytest.mark.slow
def test_remat_changes_no_number():
    plain, variables, frames = tiny(TINY, (2, 12, 12, 3))
    # Not symmetric, because a layer norm is the last step.
    loss = lambda v, module: (module.apply(v, frames, True) ** 3).mean()
    once, again = jax.jit(
        lambda v: [jax.value_and_grad(loss)(v, m) for m in (plain, plain.clone(remat=True))]
    )(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), once, again)


@pytest.mark.parametrize('build, shape', [OF_VIT, pytest.param(*OF_MVIT, id='MViT')])
def test_remat_and_dropout_are_for_training(build, shape):
    module, variables, x = tiny(build, shape)
    rngs = {'dropout': jax.random.key(1, impl='rbg')}
    trace = lambda module, train: jax.make_jaxpr(lambda v: module.apply(v, x, train, rngs=rngs))(
        variables
    )
    names = [equation.primitive.name for equation in trace(module.clone(remat=True), True).eqns]
    assert sum('remat' in name or 'checkpoint' in name for name in names) == 2  # the blocks
    for rate in ('dropout', 'drop_connect'):
        noisy = module.clone(**{rate: 0.5})
        assert str(trace(noisy, True)) != str(trace(module, True)), rate
        assert str(trace(noisy, False)) == str(trace(module, False)), rate


@pytest.mark.parametrize(
    'build, shape', [OF_VIT, pytest.param(*OF_MVIT, id='MViT', marks=pytest.mark.slow)]
)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(build, shape):
    module, variables, x = tiny(build, shape)
    half = module.clone(dtype=jnp.dtype('bfloat16'))
    initial = jax.eval_shape(lambda: half.init(jax.random.key(0), x))
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype('float32')}
    maps, whole = jax.jit(lambda v: (half.apply(v, x), module.apply(v, x)))(variables)
    assert maps.dtype == jnp.bfloat16
    error = np.asarray(maps, np.float32) - np.asarray(whole)
    assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(np.square(whole)))


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    class Keys:
        @staticmethod
        def make_rng(name):
            assert name == 'dropout'
            return jax.random.key(0)

    branch = jnp.ones((4000, 2, 3))
    dropped = np.asarray(drop_branch(Keys, branch, 0.25, True))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert (dropped == dropped[:, :1, :1]).all()
    assert abs(dropped.mean() - 1) < 0.04
    assert drop_branch(Keys, branch, 0.25, False) is branch


@pytest.mark.parametrize(
    'module, network, shape',
    [
        (vit, TINY(depth=3, drop_connect=0.4), (2, 12, 12, 3)),
        (mvit, TINY_MVIT(blocks=(1, 2), drop_connect=0.4), (2, 4, 16, 16, 3)),
    ],
    ids=['ViT', 'MViT'],
)
def test_later_blocks_are_dropped_more_often(module, network, shape, monkeypatch):
    """From 0 for the first block to drop_connect for the last, both branches of a block alike."""
    rates = []
    keep = lambda module, branch, rate, train: rates.append((rate, train)) or branch
    monkeypatch.setattr(module, 'drop_branch', keep)
    frames = jax.ShapeDtypeStruct(shape, jnp.float32)
    jax.eval_shape(lambda x: network.init(jax.random.key(0), x, True), frames)
    assert rates == [(rate, True) for rate in (0.0, 0.2, 0.4) for _ in range(2)]


def test_frames_that_are_no_multiple_of_the_patch_are_refused():
    frames = jnp.zeros((1, 64, 64, 3))
    with pytest.raises(
        ValueError,
        match='patches of 14 pixels, and 64 x 64 is no multiple: set config.episode.image_size=56 '
        'or 70',
    ):
        jax.eval_shape(lambda: BACKBONES['vit_s14']().init(jax.random.key(0), frames))


def test_positions_by_hand():
    """Of a ramp, between the borders: one cubic kernel reproduces it, the other up to 0.05."""
    ramp = np.arange(8.0)
    corners = cubic_weights(8, 15, 'corners') @ ramp
    np.testing.assert_allclose(corners[[0, *range(2, 13), 14]], [0, *np.arange(2, 13) / 2, 7])
    offset = cubic_weights(8, 16, 'offset') @ ramp
    centre = (np.arange(16) + 0.5) * (8 / 16.1) - 0.5
    np.testing.assert_allclose(offset[4:-4], centre[4:-4], atol=0.05)
    assert abs(offset - cubic_weights(8, 16, 'corners') @ ramp).max() > 0.2
    doubled = cubic_weights(8, 16, 'antialias') @ ramp
    np.testing.assert_allclose(doubled[4:-4], np.arange(1.75, 5.5, 0.5), atol=1e-5)
    halved = cubic_weights(8, 4, 'antialias')
    np.testing.assert_allclose((halved @ ramp)[1:-1], [2.5, 4.5], atol=0.05)
    assert np.count_nonzero(np.abs(halved[1]) > 1e-6) >= 6  # it averages
    np.testing.assert_allclose(linear_weights(2, 4) @ [0.0, 1.0], [0, 0.25, 0.75, 1])
    for how in ('antialias', 'corners'):
        np.testing.assert_allclose(cubic_weights(5, 5, how), np.eye(5), atol=1e-6)


@pytest.mark.parametrize(
    'method, name, frames, steps, size',
    [
        ('strm', 'vit_b16', 8, 8, 224),
        ('strm', 'mvit_v2_s', 16, 8, 224),
        pytest.param('trx', 'mvit_v1_b', 16, 8, 224, marks=pytest.mark.slow),
    ],
)
def test_methods_over_transformers(method, name, frames, steps, size):
    """STRM's patches are pooled from the 14 × 14 of a ViT, or the 7 × 7 of an MViT."""
    config = get_config(method)
    with config.unlocked():
        config.update_from_flattened_dict(
            {'model.backbone.name': name, 'model.sampler.frames': frames}
        )
    learner = create_learner(config.model)

    def run(module, videos):
        embeddings = module.embed(videos)
        support = jax.tree.map(lambda x: x[:, None], embeddings)
        return module.match(support, embeddings).logits, embeddings['temporal_matching']

    videos = jax.ShapeDtypeStruct((5, frames, size, size, 3), jnp.uint8)
    (logits, embeddings), variables = jax.eval_shape(
        lambda x: learner.init_with_output(jax.random.key(0), x, method=run), videos
    )
    assert logits.shape == (5, 5)
    pairs = {x.shape[1] for x in jax.tree.leaves(embeddings)}
    assert math.comb(steps, 2) in pairs, pairs
    if method == 'strm':
        assert variables['params']['patch_enrichment']['query']['kernel'].shape == (768, 768)
