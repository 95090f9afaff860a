"""Public files of vision transformers: what tells one from another, other sizes, and wrong ones."""

import functools

import flax.traverse_util
import jax
import numpy as np
import pytest

from fsar_jax.backbones import BACKBONES
from fsar_jax.backbones.mvit import MViT
from fsar_jax.backbones.positions import resize_positions
from fsar_jax.backbones.resnet_small import ResNetSmall
from fsar_jax.backbones.vit import ViT
from fsar_jax.weights import vit
from fsar_jax.weights.published import network_from

TINY = functools.partial(ViT, patch=4, width=24, depth=2, heads=2, grid=3, normalize='unit')
WITH_REGISTERS = functools.partial(TINY, layer_scale=True, registers=4)


@pytest.fixture
def notes(monkeypatch):
    found = []
    monkeypatch.setattr(
        'fsar_jax.weights.convert.logging.warning', lambda text, note: found.append(note)
    )
    return found


def loaded(weights, module):
    return network_from({(): weights}, module, 'backbone')


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_left_out_and_the_input_scaling_are_said(published, notes):
    loaded(published('vit_torchvision_a').weights, TINY())
    assert notes == [
        'left out the classifier of the backbone: heads.head.weight, heads.head.bias',
        "the weights of torchvision were trained with the input scaling normalize='imagenet', and "
        "the backbone has 'unit'",
    ]
    for fixture, build, scaling in (
        ('vit_torchvision_a', TINY, 'imagenet'),
        ('vit_augreg_a', TINY, 'half'),
        ('vit_clip_a', functools.partial(TINY, clip=True), 'clip'),
        ('vit_dinov2_reg_a', WITH_REGISTERS, 'imagenet'),
        ('vit_timm_a', TINY, 'unit'),  # nothing tells
    ):
        notes.clear()
        loaded(published(fixture).weights, build(normalize=scaling))
        assert not any('scaling' in note for note in notes), (fixture, notes)


def test_the_scaling_of_a_large_open_clip_is_said_to_be_of_two_kinds(published, notes):
    """Its file does not tell whether it is LAION-2B's."""
    weights, network = published('vit_clip_a').weights, functools.partial(TINY, clip=True)
    clip = vit.source_of({(): weights})[0]
    for normalize in ('clip', 'half'):
        [line] = vit.notes_on_scaling(clip, network(patch=14, normalize=normalize), 'backbone')
        assert "'half' (LAION-2B) or 'clip' (all others)" in line and f"'{normalize}'" in line
    assert not vit.notes_on_scaling(clip, network(patch=14, quick_gelu=True, normalize='clip'), 'x')


def test_older_names_of_torchvision(published):
    weights = published('vit_torchvision_a').weights
    older = {
        name.replace('mlp.0', 'mlp.linear_1').replace('mlp.3', 'mlp.linear_2'): x
        for name, x in weights.items()
    }
    assert older.keys() != weights.keys()
    assert_equal(loaded(older, TINY()), loaded(weights, TINY()))


def test_a_wrapped_model_beside_its_average(published):
    weights = published('vit_timm_a').weights
    wrapped = {f'module.{name}': x for name, x in weights.items()}
    average = {name: 0 * x for name, x in weights.items()}
    both = {('model',): wrapped, ('ema',): average}
    assert_equal(network_from(both, TINY(), 'backbone'), loaded(weights, TINY()))


def test_an_image_tower_alone_and_under_timms_names(published):
    weights = published('vit_clip_a').weights
    build = functools.partial(TINY, clip=True)
    expected = loaded(weights, build())
    tower = {
        name.removeprefix('visual.'): x for name, x in weights.items() if name.startswith('visual.')
    }
    assert_equal(loaded(tower, build()), expected)
    names = {
        'conv1': 'patch_embed.proj',
        'positional_embedding': 'pos_embed',
        'class_embedding': 'cls_token',
        'transformer.resblocks': 'blocks',
        'ln_pre': 'norm_pre',
        'ln_post': 'norm',
        'ln_': 'norm',
        'attn.in_proj_': 'attn.qkv.',
        'attn.out_proj': 'attn.proj',
        'mlp.c_fc': 'mlp.fc1',
        'mlp.c_proj': 'mlp.fc2',
    }
    timm = {}
    for name, x in tower.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        timm[name] = x[None, None] if name == 'cls_token' else x[None] if name == 'pos_embed' else x
    del timm['proj']
    assert_equal(loaded(timm, build()), expected)


def test_registers_under_timms_names_have_the_position_in_the_class_token(published):
    weights = dict(published('vit_dinov2_reg_a').weights)
    module = WITH_REGISTERS(class_token='concatenate')
    expected = loaded(weights, module)
    del weights['mask_token']
    weights['reg_token'] = weights.pop('register_tokens')
    weights['cls_token'] = weights['cls_token'] + weights['pos_embed'][:, :1]
    weights['pos_embed'] = weights['pos_embed'][:, 1:]
    found = loaded(weights, module)
    frames = np.random.default_rng(0).random((1, 12, 12, 3), np.float32)
    apply = jax.jit(module.apply)
    np.testing.assert_allclose(apply(found, frames), apply(expected, frames), atol=1e-5)


def test_positions_of_another_grid_are_interpolated_or_kept(published, notes):
    weights = published('vit_torchvision_a').weights
    places = weights['encoder.pos_embedding'][0]
    kept = loaded(weights, TINY(grid=5, positions=3))['params']
    np.testing.assert_array_equal(kept['position_embedding'], places)
    assert not any('interpolated' in note for note in notes)
    for how in ('antialias', 'corners'):
        notes.clear()
        found = loaded(weights, TINY(grid=5, position_resize=how))['params']['position_embedding']
        grid = resize_positions(places[1:].reshape(3, 3, -1), 5, 5, how)
        np.testing.assert_allclose(found[1:], grid.reshape(25, -1), atol=1e-6)
        np.testing.assert_array_equal(found[0], places[0])
        assert notes[0] == (
            'interpolated the positions from 3 x 3 to 5 x 5: the setting positions=3 of the '
            'backbone keeps them as they are in the file'
        )


def of_size(name):
    """A state dict of zeros under torchvision's names, of the size of a ViT of ours."""
    module = BACKBONES[name]()
    width, patch, grid = module.width, module.patch, module.grid
    part = np.zeros(1, np.float32)
    zeros = lambda *shape: np.broadcast_to(part, shape)
    found = {
        'class_token': zeros(1, 1, width),
        'conv_proj.weight': zeros(width, 3, patch, patch),
        'encoder.pos_embedding': zeros(1, 1 + grid**2, width),
    }
    for i in range(module.depth):
        found[f'encoder.layers.encoder_layer_{i}.ln_1.weight'] = zeros(width)
    return found


def test_a_vit_of_another_size_is_named_in_one_line(published):
    with pytest.raises(ValueError) as error:
        loaded(of_size('vit_l16'), BACKBONES['vit_b16']())
    assert str(error.value) == (
        'the file holds another ViT, of 24 blocks of width 1024, patches of 16; the backbone has '
        '12 blocks of width 768, patches of 16: choose the backbone vit_l16'
    )
    with pytest.raises(
        ValueError, match='width 384, patches of 16; .* choose the backbone vit_s16$'
    ):
        loaded(of_size('vit_s16'), BACKBONES['vit_s14']())
    with pytest.raises(
        ValueError, match='4 registers, layer scale; the backbone has 2 blocks of width 24, [^,;]*$'
    ):
        loaded(published('vit_dinov2_reg_a').weights, TINY())
    with pytest.raises(ValueError, match='a layer norm before the blocks; the backbone has'):
        loaded(published('vit_clip_a').weights, TINY())


def test_a_file_of_another_network_is_refused_in_one_line(published):
    with pytest.raises(
        ValueError,
        match=r'^no ViT of torchvision, timm, AugReg, DINOv2 or CLIP: its names are conv1.weight, '
        r'.*: name a file of one of them, or the backbone that the file belongs to$',
    ):
        loaded(published('resnet18_a').weights, TINY())
    for network in (ResNetSmall(), MViT(blocks=(1, 1), width=8, frames=4, size=16)):
        with pytest.raises(ValueError, match='^the state dict is not one of the model') as error:
            loaded(published('vit_timm_a').weights, network)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'name', ['blocks.1.mlp.fc1.bias', 'norm.weight', 'patch_embed.proj.weight']
)
def test_missing_and_misshaped_arrays_are_listed(published, name):
    weights = dict(published('vit_timm_a').weights)
    weights['blocks.0.norm2.bias'] = weights['blocks.0.norm2.bias'][:-1]
    del weights[name]
    with pytest.raises(
        ValueError, match=rf'1 missing: {name} .* 1 mis-shaped: blocks.0.norm2.bias'
    ):
        loaded(weights, TINY())


@pytest.mark.parametrize('fixture', ['vit_augreg_a', 'vit_timm_a'])
def test_every_array_of_a_file_has_its_place(published, fixture):
    """No two of ours come from one of theirs: all values are different, and none is lost."""
    weights = published(fixture).weights
    used = [x for name, x in weights.items() if not name.startswith(('head', 'pre_logits'))]
    ours = flax.traverse_util.flatten_dict(loaded(weights, TINY())['params'])
    flat = lambda arrays: np.sort(np.concatenate([np.ravel(x) for x in arrays]))
    np.testing.assert_array_equal(flat(ours.values()), flat(used))
