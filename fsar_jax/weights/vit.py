"""Public weights of vision transformers: one table of names per source, and what tells a file of
one from another.

    torchvision       vit_b_16 and vit_l_16
    AugReg            the .npz files of the original JAX release
    timm              AugReg, DINOv2 and CLIP under timm's names
    DINOv2            dinov2_vit…14_pretrain.pth, with registers or without
    CLIP              the image towers of OpenAI and open_clip, alone or beside their text towers
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fsar_jax.backbones import BACKBONES
from fsar_jax.backbones.positions import resize_positions
from fsar_jax.backbones.vit import ViT
from fsar_jax.messages import listed
from fsar_jax.torch_names import Table
from fsar_jax.weights.convert import is_array
from fsar_jax.weights.state_dicts import StateDicts

TORCHVISION: Table = {
    'class_token': ('class_embedding', 'copy'),
    'conv_proj': ('patches', 'conv'),
    'encoder.pos_embedding': ('position_embedding', 'tokens'),
    'encoder.layers.encoder_layer_{}.ln_1': ('block{}/ln1', 'copy'),
    'encoder.layers.encoder_layer_{}.self_attention.in_proj_weight': (
        'block{}/qkv/kernel',
        'linear',
    ),
    'encoder.layers.encoder_layer_{}.self_attention.in_proj_bias': ('block{}/qkv/bias', 'copy'),
    'encoder.layers.encoder_layer_{}.self_attention.out_proj': ('block{}/out', 'linear'),
    'encoder.layers.encoder_layer_{}.ln_2': ('block{}/ln2', 'copy'),
    'encoder.layers.encoder_layer_{}.mlp.0': ('block{}/mlp_in', 'linear'),
    'encoder.layers.encoder_layer_{}.mlp.3': ('block{}/mlp_out', 'linear'),
    'encoder.ln': ('ln', 'copy'),
}
TIMM: Table = {
    'cls_token': ('class_embedding', 'copy'),
    'reg_token': ('register_embedding', 'tokens'),
    'pos_embed': ('position_embedding', 'tokens'),
    'patch_embed.proj': ('patches', 'conv'),
    'norm_pre': ('ln_pre', 'copy'),
    'blocks.{}.norm1': ('block{}/ln1', 'copy'),
    'blocks.{}.attn.qkv': ('block{}/qkv', 'linear'),
    'blocks.{}.attn.proj': ('block{}/out', 'linear'),
    'blocks.{}.ls1.gamma': ('block{}/scale1', 'copy'),
    'blocks.{}.norm2': ('block{}/ln2', 'copy'),
    'blocks.{}.mlp.fc1': ('block{}/mlp_in', 'linear'),
    'blocks.{}.mlp.fc2': ('block{}/mlp_out', 'linear'),
    'blocks.{}.ls2.gamma': ('block{}/scale2', 'copy'),
    'norm': ('ln', 'copy'),
}
DINOV2: Table = {name.replace('reg_token', 'register_tokens'): to for name, to in TIMM.items()}
CLIP: Table = {
    'class_embedding': ('class_embedding', 'token'),
    'positional_embedding': ('position_embedding', 'copy'),
    'conv1': ('patches', 'conv'),
    'ln_pre': ('ln_pre', 'copy'),
    'transformer.resblocks.{}.ln_1': ('block{}/ln1', 'copy'),
    'transformer.resblocks.{}.attn.in_proj_weight': ('block{}/qkv/kernel', 'linear'),
    'transformer.resblocks.{}.attn.in_proj_bias': ('block{}/qkv/bias', 'copy'),
    'transformer.resblocks.{}.attn.out_proj': ('block{}/out', 'linear'),
    'transformer.resblocks.{}.ln_2': ('block{}/ln2', 'copy'),
    'transformer.resblocks.{}.mlp.c_fc': ('block{}/mlp_in', 'linear'),
    'transformer.resblocks.{}.mlp.c_proj': ('block{}/mlp_out', 'linear'),
    'ln_post': ('ln', 'copy'),
}
# AugReg → timm, of one block; its three kernels [D, heads, D / heads] become one [3 D, D].
AUGREG_BLOCK = {
    'LayerNorm_0': 'norm1',
    'MultiHeadDotProductAttention_1/out': 'attn.proj',
    'LayerNorm_2': 'norm2',
    'MlpBlock_3/Dense_0': 'mlp.fc1',
    'MlpBlock_3/Dense_1': 'mlp.fc2',
}
AUGREG_REST = {
    'embedding': 'patch_embed.proj',
    'Transformer/encoder_norm': 'norm',
    'head': 'head',
    'pre_logits': 'pre_logits',
}


class Source(NamedTuple):
    """Where a file of a ViT comes from.

    Attributes:
      name: of the source.
      marker: a name that only its files have.
      table: of its names.
      classifier: regular expression of the names that nothing here needs.
      normalize: the input scaling that its weights were trained with; '' for various ones.
    """

    name: str
    marker: str
    table: Table
    classifier: str
    normalize: str


AUGREG = 'AugReg'
HEADS = r'(head|head_dist|fc_norm|pre_logits)(\..*)?|mask_token'
SOURCES = (
    Source('torchvision', 'encoder.pos_embedding', TORCHVISION, r'heads\..*', 'imagenet'),
    Source('CLIP', 'positional_embedding', CLIP, 'proj', 'clip'),
    Source('DINOv2', 'mask_token', DINOV2, HEADS, 'imagenet'),
    Source(AUGREG, 'Transformer/posembed_input/pos_embedding', TIMM, HEADS, 'half'),
    Source('timm', 'pos_embed', TIMM, HEADS, ''),
)


def source_of(candidates: StateDicts) -> tuple[Source, StateDicts]:
    """Where the state dicts of a file come from, and those of them that are of a ViT, under the
    names of the source's table.

    Raises:
      ValueError: no name tells.
    """
    towers = {where: _image_tower(node) for where, node in candidates.items()}
    for source in SOURCES:
        end = re.compile(rf'(.*[./])?{re.escape(source.marker)}')
        found = {
            where: node
            for where, node in towers.items()
            if any(end.fullmatch(str(name)) for name in node)
        }
        if source.name == AUGREG:
            found = {where: _augreg(node) for where, node in found.items()}
        if found:
            return source, {where: _renamed(node) for where, node in found.items()}
    names = next(iter(candidates.values()), {})
    raise ValueError(
        f'no ViT of torchvision, timm, AugReg, DINOv2 or CLIP: its names are {listed(names, 4)}, '
        f'and none ends with {", ".join(source.marker for source in SOURCES)}: name a file of one '
        'of them, or the backbone that the file belongs to'
    )


def _image_tower(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a CLIP with its text tower, what stands after 'visual.'; anything else as it is."""
    pattern = re.compile(r'(?:.*\.)?visual\.(?:trunk\.)?(.+)')
    matches = {name: pattern.fullmatch(str(name)) for name in node}
    inside = {match[1]: node[name] for name, match in matches.items() if match}
    return inside or node


def _renamed(node: Mapping[str, Any]) -> dict[str, Any]:
    """With torchvision's names of today: its public files have older ones for the MLPs."""
    older = {'mlp.linear_1.': 'mlp.0.', 'mlp.linear_2.': 'mlp.3.'}
    pattern = re.compile('|'.join(map(re.escape, older)))
    return {pattern.sub(lambda match: older[match[0]], str(k)): v for k, v in node.items()}


def _augreg(node: Mapping[str, Any]) -> dict[str, Any]:
    """AugReg's arrays under timm's names and in torch's layout; others keep their names."""
    arrays = {re.sub('^(opt/)?(target/|params/)', '', str(k)): v for k, v in node.items()}
    found: dict[str, Any] = {}

    def move(theirs: str, ours: str) -> None:
        for leaf, name in (('kernel', 'weight'), ('scale', 'weight'), ('bias', 'bias')):
            x = arrays.pop(f'{theirs}/{leaf}', None)
            if not is_array(x):
                continue
            x = np.asarray(x)
            if ours == 'attn.proj' or ours.endswith('.attn.proj'):
                x = x.reshape(-1, x.shape[-1]) if leaf == 'kernel' else x
            if leaf == 'kernel':
                x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
            found[f'{ours}.{name}'] = x

    for theirs, ours in AUGREG_REST.items():
        move(theirs, ours)
    blocks = {
        match[1] for k in arrays if (match := re.match(r'Transformer/encoderblock_(\d+)/', k))
    }
    for i in blocks:
        for theirs, ours in AUGREG_BLOCK.items():
            move(f'Transformer/encoderblock_{i}/{theirs}', f'blocks.{i}.{ours}')
        attention = f'Transformer/encoderblock_{i}/MultiHeadDotProductAttention_1'
        for leaf, name in (('kernel', 'weight'), ('bias', 'bias')):
            parts = [f'{attention}/{part}/{leaf}' for part in ('query', 'key', 'value')]
            if all(is_array(arrays.get(part)) for part in parts):
                three = [np.asarray(arrays.pop(part)) for part in parts]
                rows = [x.reshape(len(x), -1).T if leaf == 'kernel' else x.ravel() for x in three]
                found[f'blocks.{i}.attn.qkv.{name}'] = np.concatenate(rows)
    for theirs, ours in (
        ('cls', 'cls_token'),
        ('Transformer/posembed_input/pos_embedding', 'pos_embed'),
    ):
        if theirs in arrays:
            found[ours] = arrays.pop(theirs)
    return {**found, **arrays}


class Size(NamedTuple):
    """What tells one size of ViT from another."""

    patch: int
    width: int
    depth: int
    registers: int
    layer_scale: bool
    clip: bool

    def __str__(self) -> str:
        more = [
            f'{self.registers} registers' * (self.registers > 0),
            'layer scale' * self.layer_scale,
            'a layer norm before the blocks' * self.clip,
        ]
        return ', '.join(
            filter(
                None,
                [f'{self.depth} blocks of width {self.width}', f'patches of {self.patch}', *more],
            )
        )


def size_of(network: ViT) -> Size:
    """The size of a module."""
    return Size(**{name: getattr(network, name) for name in Size._fields})


def notes_on_scaling(source: Source, network: ViT, what: str) -> list[str]:
    """A line where the input scaling is not, or may not be, that of the weights; `what` names the
    network in it."""
    ours = f"the {what} has '{network.normalize}'"
    if source.name == 'CLIP' and network.patch == 14 and not network.quick_gelu:
        return [
            "weights of open_clip's ViT-L/14 were trained with the input scaling normalize='half' "
            f"(LAION-2B) or 'clip' (all others): {ours}"
        ]
    if source.normalize in ('', network.normalize):
        return []
    return [
        f'the weights of {source.name} were trained with the input scaling '
        f"normalize='{source.normalize}', and {ours}"
    ]


def check_size(arrays: Mapping[str, Any], source: Source, network: ViT) -> None:
    """ValueError, one line, where a file holds a ViT of another size than `network`."""
    ours = {to: theirs for theirs, (to, _) in source.table.items()}
    patches = arrays.get(f'{ours["patches"]}.weight')
    if not is_array(patches) or patches.ndim != 4:
        return  # the list of what is missing says it
    block = lambda i: f'{ours["block{}/ln1"].format(i)}.weight'
    registers = arrays.get(ours.get('register_embedding', ''))
    found = Size(
        patch=patches.shape[-1],
        width=patches.shape[0],
        depth=next(i for i in range(len(arrays) + 1) if block(i) not in arrays),
        registers=registers.shape[1] if is_array(registers) and registers.ndim == 3 else 0,
        layer_scale=ours.get('block{}/scale1', '').format(0) in arrays,
        clip=f'{ours.get("ln_pre", "")}.weight' in arrays,
    )
    if found == size_of(network):
        return
    fitting = [
        name
        for name, module in BACKBONES.items()
        if isinstance(other := module(), ViT) and size_of(other) == found
    ]
    raise ValueError(
        f'the file holds another ViT, of {found}; the backbone has {size_of(network)}'
        + (f': choose the backbone {" or ".join(fitting)}' if fitting else '')
    )


def with_our_positions(
    arrays: Mapping[str, Any], source: Source, network: ViT
) -> tuple[dict[str, Any], list[str]]:
    """Arrays whose positions have the grid of `network`, and a line for the log where that takes an
    interpolation.

    timm's DINOv2 with registers has no position of the class token, because the token contains it;
    ours is then 0.
    """
    name = next(k for k, (to, _) in source.table.items() if to == 'position_embedding')
    places = arrays.get(name)
    if not is_array(places) or places.ndim < 2:
        return dict(arrays), []
    tokens = np.asarray(places, np.float32).reshape(-1, places.shape[-1])
    if network.registers and math.isqrt(len(tokens)) ** 2 == len(tokens):
        tokens = np.concatenate([np.zeros_like(tokens[:1]), tokens])
    side, wanted = math.isqrt(len(tokens) - 1), network.positions or network.grid
    notes = []
    if side**2 == len(tokens) - 1 and side != wanted:
        grid = jnp.asarray(tokens[1:].reshape(side, side, -1))
        grid = resize_positions(grid, wanted, wanted, network.position_resize)
        tokens = np.concatenate([tokens[:1], np.asarray(grid).reshape(wanted**2, -1)])
        notes = [
            f'interpolated the positions from {side} x {side} to {wanted} x {wanted}: the setting '
            f'positions={side} of the backbone keeps them as they are in the file'
        ]
    shape = (1, *tokens.shape) if places.ndim == 3 else tokens.shape
    return {**arrays, name: tokens.reshape(shape)}, notes
