"""Vision transformers over single frames: ViT (Dosovitskiy et al. 2021), DINOv2 (Oquab et al. 2024)
and the image towers of CLIP (Radford et al. 2021).

The public weights of torchvision, timm, AugReg, DINOv2, OpenAI and open_clip load by path
(fsar_jax/weights/vit.py).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fsar_jax.backbones.positions import resize_positions
from fsar_jax.backbones.resnet import NORMALIZE, PixelNetwork, normalize_frames
from fsar_jax.convolution import convolution
from fsar_jax.fields import setting
from fsar_jax.stage import Stage

START = nn.initializers.truncated_normal(0.02)  # of weights and positions, as timm and DINOv2


class TransformerNetwork(PixelNetwork):
    """What the transformers over frames and over clips have in common: no batch norm. A subclass
    that has one overrides `in_parts`.

    Args:
      dropout: after the attention and after both layers of the MLPs, in training.
      drop_connect: stochastic depth: probability that a branch of the last block is left out of a
        frame or clip, in training; that of earlier blocks grows linearly from 0.
      normalize, remat, dtype: as of `PixelNetwork`.
    """

    dropout: float = setting(
        0.0, kw_only=True, at_least=0, below=1, affects='training', help='dropout rate in training'
    )
    drop_connect: float = setting(
        0.0,
        kw_only=True,
        at_least=0,
        below=1,
        affects='training',
        help='highest probability with which a frame skips a residual block in training '
        '(stochastic depth); 0.2 in the ImageNet training of EfficientNet',
    )

    @nn.nowrap
    def in_parts(self, parts: tuple[int, ...]) -> Stage:
        return self  # without statistics of the batch


def gelu(x: jax.Array, quick: bool = False) -> jax.Array:
    """x · Φ(x); or, `quick`, x · sigmoid(1.702 x), the approximation of OpenAI's CLIP."""
    return x * nn.sigmoid(1.702 * x) if quick else nn.gelu(x, approximate=False)


def dense(features: int, dtype: DTypeLike, name: str) -> nn.Dense:
    """Linear map with bias; float32 parameters."""
    return nn.Dense(features, dtype=dtype, kernel_init=START, name=name)


def layer_norm(dtype: DTypeLike, name: str, epsilon: float = 1e-6) -> nn.LayerNorm:
    """Layer norm with float32 statistics and parameters, and output of `dtype`."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def drop_branch(module: nn.Module, branch: jax.Array, rate: float, train: bool) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): in training, zero for a sample of [B, …] with
    probability `rate`, and the branch / (1 − rate) otherwise."""
    if not train or rate == 0:
        return branch
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    kept = jax.random.bernoulli(module.make_rng('dropout'), 1 - rate, shape)
    return jnp.where(kept, branch / (1 - rate), 0).astype(branch.dtype)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), whose hidden layer is four times as wide.

    Args:
      heads: of the attention.
      clip: layer norms with ε = 1e-5 in place of 1e-6.
      quick_gelu: see `gelu`.
      layer_scale: a learned factor for each channel of both branches (Touvron et al. 2021).
      dropout, drop_path: rates in this block.

    Input tokens [B, N, D], output the same. The softmax is float32.
    """

    heads: int
    clip: bool
    quick_gelu: bool
    layer_scale: bool
    dropout: float
    drop_path: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        count, width = x.shape[1:]
        epsilon = 1e-5 if self.clip else 1e-6
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=not train)

        def branch(y: jax.Array, scale: str) -> jax.Array:
            if self.layer_scale:
                start = nn.initializers.constant(1e-5)
                y = y * self.param(scale, start, (width,), jnp.float32).astype(self.dtype)
            return drop_branch(self, y, self.drop_path, train)

        y = dense(3 * width, self.dtype, 'qkv')(layer_norm(self.dtype, 'ln1', epsilon)(x))
        query, key, value = jnp.moveaxis(
            y.reshape(-1, count, 3, self.heads, width // self.heads), 2, 0
        )
        y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + branch(drop(dense(width, self.dtype, 'out')(y)), 'scale1')

        y = dense(4 * width, self.dtype, 'mlp_in')(layer_norm(self.dtype, 'ln2', epsilon)(x))
        y = dense(width, self.dtype, 'mlp_out')(drop(gelu(y, self.quick_gelu)))
        return x + branch(drop(y), 'scale2')


# The line of a setting; its default is that of the published code.
POSITION_RESIZE: dict[str, Any] = dict(
    choices=('antialias', 'corners', 'offset'),
    affects='model',
    own_default=True,
    help='bicubic interpolation of the positions to the grid of the frames: as timm and '
    "open_clip, as torchvision ('corners'), or as DINOv2 ('offset', the default of vit_s14, "
    'vit_b14 and vit_l14)',
)


class ViT(TransformerNetwork):
    """Patches as tokens, a class token, learned positions, `depth` blocks and a layer norm; no
    classifier.

    The defaults are ViT-B/16. Positions are learned for a grid of `positions` × `positions`
    patches; frames of another size read them by bicubic interpolation, as `position_resize` says.

    Args:
      patch: side of a patch in pixels.
      width, depth, heads: D, number of blocks, attention heads.
      grid: side of the grid of positions that the public weights have.
      registers: further tokens that are dropped at the end (Darcet et al. 2024).
      layer_scale: see `TransformerBlock`.
      clip: no bias in the patch embedding, a layer norm before the blocks, ε = 1e-5 in all of them.
      quick_gelu: see `gelu`.
      published_start: what the public weights were trained on.
      positions: another grid than `grid`, such as 24 for the weights of 384 pixels.
      class_token: what becomes of the class token.
      position_resize, dropout, drop_connect, normalize, remat, dtype: see the help of the settings.

    Input frames [B, H, W, 3] float in [0, 1], H and W multiples of the patch. Output maps
    [B, H / patch, W / patch, D] with the class token dropped, [B, H / patch, W / patch, 2 D] with
    it concatenated to every patch, or [B, 1, 1, D], the class token alone.
    """

    looks_at = 0.5

    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    grid: int = 14
    registers: int = 0
    layer_scale: bool = False
    clip: bool = False
    quick_gelu: bool = False
    published_start: str = 'ImageNet or ImageNet-21k'
    normalize: str = setting('half', kw_only=True, **NORMALIZE)  # AugReg; torchvision: 'imagenet'
    positions: int | None = setting(
        None,
        kw_only=True,
        at_least=1,
        at_most=256,
        affects='model',
        help='side of the grid of learned positions; None: that of the public weights (14, or 37 '
        'for DINOv2); 24 keeps those of a file for 384 pixels and patches of 16',
    )
    position_resize: str = setting('antialias', kw_only=True, **POSITION_RESIZE)
    class_token: str = setting(
        'drop',
        kw_only=True,
        choices=('drop', 'concatenate', 'only'),
        affects='model',
        help='class token of a ViT: dropped, concatenated to every patch (maps of twice the '
        "width), or alone in maps of 1 x 1 ('only')",
    )

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool = False) -> jax.Array:
        batch, height, width = frames.shape[:3]
        if height % self.patch or width % self.patch:
            below = max(height // self.patch, 1) * self.patch
            raise ValueError(
                f'this ViT cuts frames into patches of {self.patch} pixels, and {height} x {width} '
                f'is no multiple: set config.episode.image_size={below} or {below + self.patch}'
            )
        side, token = self.positions or self.grid, (1, 1, self.width)
        x = normalize_frames(frames, self.normalize).astype(self.dtype)
        x = nn.Conv(
            self.width,
            (self.patch,) * 2,
            (self.patch,) * 2,
            padding='VALID',
            use_bias=not self.clip,
            kernel_init=START,
            dtype=self.dtype,
            conv_general_dilated=convolution,
            name='patches',
        )(x)
        rows, columns = x.shape[1:3]
        start = self.param('class_embedding', START, token, jnp.float32)
        places = self.param('position_embedding', START, (1 + side**2, self.width), jnp.float32)
        grid = resize_positions(
            places[1:].reshape(side, side, self.width), rows, columns, self.position_resize
        )
        front = start + places[0]
        if self.registers:
            more = self.param(
                'register_embedding', START, (self.registers, self.width), jnp.float32
            )
            front = jnp.concatenate([front, more[None]], axis=1)
        front = jnp.broadcast_to(front.astype(self.dtype), (batch, *front.shape[1:]))
        x = (x + grid.astype(self.dtype)).reshape(batch, rows * columns, self.width)
        x = nn.Dropout(self.dropout)(jnp.concatenate([front, x], axis=1), deterministic=not train)
        if self.clip:
            x = layer_norm(self.dtype, 'ln_pre', 1e-5)(x)
        block = nn.remat(TransformerBlock, static_argnums=(2,)) if self.remat else TransformerBlock
        for i in range(self.depth):
            x = block(
                self.heads,
                self.clip,
                self.quick_gelu,
                self.layer_scale,
                self.dropout,
                self.drop_connect * i / max(self.depth - 1, 1),
                self.dtype,
                name=f'block{i}',
            )(x, train)
        x = layer_norm(self.dtype, 'ln', 1e-5 if self.clip else 1e-6)(x)
        if self.class_token == 'only':
            return x[:, :1].reshape(batch, 1, 1, self.width)
        maps = x[:, 1 + self.registers :].reshape(batch, rows, columns, self.width)
        if self.class_token == 'concatenate':
            whole = jnp.broadcast_to(x[:, None, :1], maps.shape)
            maps = jnp.concatenate([maps, whole], axis=-1)
        return maps


class DINOv2(ViT):
    """ViT with patches of 14, positions for 518 pixels and layer scale; fields as of `ViT`."""

    patch: int = 14
    grid: int = 37
    layer_scale: bool = True
    published_start: str = 'LVD-142M'
    normalize: str = setting('imagenet', kw_only=True, **NORMALIZE)
    position_resize: str = setting('offset', kw_only=True, **POSITION_RESIZE)


class ClipTower(ViT):
    """The image tower of a CLIP, up to the layer norm before its projection; fields as of `ViT`."""

    clip: bool = True
    published_start: str = 'image-text pairs'
    normalize: str = setting('clip', kw_only=True, **NORMALIZE)
