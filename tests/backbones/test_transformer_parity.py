"""Vision transformers against torchvision, timm, open_clip and DINOv2, through fsar_jax.weights.

tests/fixtures/write_transformers.py made the fixtures.
"""

import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from fsar_jax.backbones.mvit import MViT
from fsar_jax.backbones.vit import ViT
from fsar_jax.weights import load_network

TINY = functools.partial(ViT, patch=4, width=24, depth=2, heads=2, grid=3, normalize='unit')
DINOV2 = functools.partial(TINY, layer_scale=True, position_resize='offset')
WITH_REGISTERS = functools.partial(DINOV2, registers=4, position_resize='antialias')
CLIP = functools.partial(TINY, clip=True)

# fixture, module, what the outputs are called
VITS = {
    'torchvision': ('vit_torchvision_a', functools.partial(TINY, position_resize='corners'), ''),
    'timm': ('vit_timm_a', TINY, ''),
    'AugReg': ('vit_augreg_a', TINY, ''),
    'DINOv2': ('vit_dinov2_a', DINOV2, ''),
    'DINOv2 with registers': ('vit_dinov2_reg_a', WITH_REGISTERS, ''),
    'open_clip': ('vit_clip_a', CLIP, 'gelu'),
    'OpenAI': ('vit_clip_a', functools.partial(CLIP, quick_gelu=True), 'quick'),
}


def saved(folder, weights):
    """A file of these arrays: .npz where AugReg's names have '/', else .safetensors."""
    if any('/' in name for name in weights):
        path = folder / 'weights.npz'
        np.savez(path, **weights)
    else:
        path = folder / 'weights.safetensors'
        save_file({name: np.ascontiguousarray(x) for name, x in weights.items()}, path)
    return path


@pytest.mark.parametrize('source', VITS)
def test_vit_equals_the_published_one_at_every_size(
    published, assert_close_to_published, tmp_path, source
):
    fixture, build, output = VITS[source]
    f = published(fixture)
    module = build(class_token='concatenate')
    variables = load_network(saved(tmp_path, f.weights), module)
    layout = lambda x: x.transpose(0, 2, 3, 1)
    sizes = f.inputs if source == 'DINOv2' else list(f.inputs)[:2]
    maps = jax.jit(lambda v, xs: [module.apply(v, x) for x in xs])(
        variables, [layout(f.inputs[size]) for size in sizes]
    )
    for size, found in zip(sizes, maps, strict=True):
        tokens = f.outputs[f'{output or "tokens"}_{size}']
        width, patches = tokens.shape[-1], found.reshape(len(found), -1, found.shape[-1])
        assert_close_to_published(patches[..., :width], tokens[:, 1:], f'patches of {size}')
        for whole in np.moveaxis(patches[..., width:], 1, 0):
            assert_close_to_published(whole, tokens[:, 0], f'class token of {size}')


@pytest.mark.parametrize(
    'version, size',
    [
        (2, '8x32x32'),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in ((1, '8x32x32'), (2, '6x48x32'))),
    ],
)
def test_mvit_equals_torchvisions(published, assert_close_to_published, tmp_path, version, size):
    f = published(f'mvit_v{version}_a')
    module = MViT(version=version, blocks=(1, 2, 1), width=8, frames=8, size=32, normalize='unit')
    variables = load_network(saved(tmp_path, f.weights), module)
    clip = f.inputs[size].transpose(0, 2, 3, 4, 1).astype(np.float32)
    found = jax.jit(module.apply)(variables, clip)
    grid = tuple(f.outputs[f'grid_{size}'])
    assert found.shape == (1, *grid, 32) and grid[0] == int(size.split('x')[0]) // 2
    tokens = f.outputs[f'tokens_{size}'][:, 1:]
    assert_close_to_published(found.reshape(tokens.shape), tokens, size)
