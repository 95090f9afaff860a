"""Multiscale vision transformers over whole clips, with torchvision's names: MViTv1-B (Fan et al.
2021) and MViTv2-S (Li et al. 2022)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax.backbones.depthwise import DepthwiseConv
from fsar_jax.backbones.positions import cubic_weights, linear_weights, resize_positions
from fsar_jax.backbones.resnet import NORMALIZE, normalize_frames
from fsar_jax.backbones.vit import START, TransformerNetwork, dense, drop_branch, gelu, layer_norm
from fsar_jax.convolution import convolution
from fsar_jax.fields import setting

Grid = tuple[int, ...]  # time steps, rows, columns of the tokens


class MViT(TransformerNetwork):
    """3×7×7 stem with stride (2, 4, 4), a class token, and stages of blocks whose attention pools
    keys and values, and halves the grid at the start of a stage; no classifier.

    The defaults are MViTv2-S. Time steps stay: a clip of L frames becomes ⌈L / 2⌉ maps.

    Args:
      version: 2 has relative positions, a pooled residual in the attention, queries pooled in every
        block, and doubles the channels in the attention of the first block of a stage. 1 has
        learned positions, and doubles the channels in the MLP of the last block of a stage.
      blocks: how many in each stage.
      width, heads: of the first stage; later stages double them.
      frames, size: of the clips that the public weights were trained on. Clips of another size read
        the positions by interpolation: linear for version 2, as its code does, and bicubic for
        version 1.
      dropout, drop_connect, normalize, remat, dtype: as of `TransformerNetwork`.

    Input clips [B, L, H, W, 3] float in [0, 1], output maps [B, ⌈L / 2⌉, ⌈H / 32⌉, ⌈W / 32⌉, 8 ·
    width].
    """

    takes_clips = True
    published_start = 'Kinetics-400'

    normalize: str = setting('grey', kw_only=True, **NORMALIZE)
    version: int = 2
    blocks: tuple[int, ...] = (1, 2, 11, 2)
    width: int = 96
    heads: int = 1
    frames: int = 16
    size: int = 224

    @nn.compact
    def __call__(self, clips: jax.Array, train: bool = False) -> jax.Array:
        trained = (self.frames // 2, self.size // 4)
        x = normalize_frames(clips, self.normalize).astype(self.dtype)
        x = nn.Conv(
            self.width,
            (3, 7, 7),
            (2, 4, 4),
            padding=[(1, 1), (3, 3), (3, 3)],
            kernel_init=START,
            dtype=self.dtype,
            conv_general_dilated=convolution,
            name='conv_proj',
        )(x)
        grid = x.shape[1:4]
        token = self.param('class_token', START, (self.width,), jnp.float32)
        if self.version == 1:
            token, places = self._positions(token, trained, grid)
            x = x + places.astype(self.dtype)
        token = jnp.broadcast_to(token.astype(self.dtype), (len(x), 1, self.width))
        x = jnp.concatenate([token, x.reshape(len(x), -1, self.width)], axis=1)

        block = nn.remat(MultiscaleBlock, static_argnums=(2, 3)) if self.remat else MultiscaleBlock
        count, place, side = sum(self.blocks), 0, trained[1]
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                first, last = i == 0 and stage > 0, i == blocks - 1 and stage < len(self.blocks) - 1
                x = block(
                    version=self.version,
                    attended=self.width * 2**stage,
                    width=self.width * 2 ** (stage + (last and self.version == 1)),
                    heads=self.heads * 2**stage,
                    query_stride=2 if first else 1,
                    key_stride=2 ** (len(self.blocks) - 1 - stage),
                    trained=(trained[0], side),
                    dropout=self.dropout,
                    drop_path=self.drop_connect * place / max(count - 1, 1),
                    dtype=self.dtype,
                    name=f'blocks_{place}',
                )(x, grid, train)
                if first:
                    grid, side = pooled_grid(grid, 2), side // 2
                place += 1
        x = layer_norm(self.dtype, 'norm')(x)
        return x[:, 1:].reshape(len(x), *grid, x.shape[-1])

    def _positions(
        self, token: jax.Array, trained: tuple[int, int], grid: Grid
    ) -> tuple[jax.Array, jax.Array]:
        """The class token with its position, and positions [t, h, w, width] of the other tokens."""
        steps, side = trained
        spatial = self.param('spatial_pos', START, (side * side, self.width), jnp.float32)
        temporal = self.param('temporal_pos', START, (steps, self.width), jnp.float32)
        token = token + self.param('class_pos', START, (self.width,), jnp.float32)
        if grid[0] != steps:
            temporal = jnp.matmul(
                cubic_weights(steps, grid[0], 'antialias'),
                temporal,
                precision=jax.lax.Precision.HIGHEST,
            )
        spatial = spatial.reshape(side, side, self.width)
        spatial = resize_positions(spatial, grid[1], grid[2], 'antialias')
        return token, temporal[:, None, None] + spatial


class MultiscaleBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); the shortcuts are max-pooled with the queries,
    and projected where the channels change.

    Args:
      version: see `MViT`.
      attended: channels of the attention.
      width: channels of the output.
      query_stride, key_stride: of rows and columns, in the pooling of queries, and of keys and
        values.
      trained: time steps and side of the grid of the input in the public weights.

    Input tokens [B, 1 + t·h·w, C] and their grid (t, h, w), output [B, 1 + t·h'·w', width].
    """

    version: int
    attended: int
    width: int
    heads: int
    query_stride: int
    key_stride: int
    trained: tuple[int, int]
    dropout: float
    drop_path: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid, train: bool) -> jax.Array:
        drop = lambda y: nn.Dropout(self.dropout)(y, deterministic=not train)
        y = layer_norm(self.dtype, 'norm1')(x)
        if x.shape[-1] != self.attended:
            x = dense(self.attended, self.dtype, 'project')(y)
        y = self._attention(y, grid)
        y = drop(dense(self.attended, self.dtype, 'attn_project')(y))
        if self.query_stride > 1:
            x = _max_pool(x, grid, self.query_stride)
        x = x + drop_branch(self, y, self.drop_path, train)

        y = layer_norm(self.dtype, 'norm2')(x)
        if self.attended != self.width:
            x = dense(self.width, self.dtype, 'project')(y)
        y = drop(gelu(dense(4 * self.attended, self.dtype, 'mlp_0')(y)))
        y = drop(dense(self.width, self.dtype, 'mlp_3')(y))
        return x + drop_branch(self, y, self.drop_path, train)

    def _attention(self, x: jax.Array, grid: Grid) -> jax.Array:
        """Pooled attention of tokens [B, N, C] → [B, N', attended]."""
        batch, count = x.shape[:2]
        size = self.attended // self.heads
        qkv = dense(3 * self.attended, self.dtype, 'attn_qkv')(x)
        query, key, value = jnp.moveaxis(
            qkv.reshape(batch, count, 3, self.heads, size), (2, 3), (0, 2)
        )
        pool = lambda name, y, stride: Pool(stride, self.dtype, name=f'attn_{name}')(y, grid)
        key = pool('pool_k', key, self.key_stride)
        value = pool('pool_v', value, self.key_stride)
        if self.version == 2 or self.query_stride > 1:
            query = pool('pool_q', query, self.query_stride)
        grids = pooled_grid(grid, self.query_stride), pooled_grid(grid, self.key_stride)
        bias = self._relative(query, *grids) if self.version == 2 else None
        heads_last = lambda y: jnp.swapaxes(y, 1, 2)
        y = jax.nn.dot_product_attention(
            heads_last(query), heads_last(key), heads_last(value), bias
        )
        if self.version == 2:
            y = y.at[:, 1:].add(heads_last(query)[:, 1:])
        return y.reshape(batch, -1, self.attended)

    def _relative(self, query: jax.Array, grid: Grid, key_grid: Grid) -> jax.Array:
        """Decomposed relative positions (Li et al. 2022, Eq. 3 and 4): float32 [B, heads, N', M] to
        add to the scores, 0 for the class token."""
        steps, side = self.trained
        side = max(side // self.query_stride, side // self.key_stride)
        q = query[:, :, 1:].reshape(*query.shape[:2], *grid, query.shape[-1]).astype(jnp.float32)
        total: Any = 0.0
        for axis, (name, length) in enumerate(
            {'rel_pos_t': steps, 'rel_pos_h': side, 'rel_pos_w': side}.items()
        ):
            table = self.param(f'attn_{name}', START, (2 * length - 1, q.shape[-1]), jnp.float32)
            table = _relative_table(table, grid[axis], key_grid[axis])
            letter = 'thw'[axis]
            scores = jnp.einsum(f'bnthwc,{letter}kc->bnthwk', q, table)
            shape = [1, 1, 1]
            shape[axis] = key_grid[axis]
            total = total + scores.reshape(*q.shape[:-1], *shape)
        total = total.reshape(*q.shape[:2], math.prod(grid), math.prod(key_grid))
        return jnp.pad(total, ((0, 0), (0, 0), (1, 0), (1, 0)))


def _relative_table(table: jax.Array, queries: int, keys: int) -> jax.Array:
    """Table [2 P − 1, C] of distances → [queries, keys, C], interpolated linearly where the longer
    of both is not P."""
    longest = max(queries, keys)
    if len(table) != 2 * longest - 1:
        weights = linear_weights(len(table), 2 * longest - 1)
        table = jnp.matmul(weights, table, precision=jax.lax.Precision.HIGHEST)
    of_query, of_key = max(keys / queries, 1.0), max(queries / keys, 1.0)
    distance = np.arange(queries)[:, None] * of_query - (np.arange(keys) + (1.0 - keys)) * of_key
    return table[distance.astype(int)]


class Pool(nn.Module):
    """Depthwise 3×3×3 convolution of the tokens of every head, with stride (1, s, s), then a layer
    norm; the class token is only normalised.

    Input [B, heads, 1 + t·h·w, C] and the grid (t, h, w), output [B, heads, 1 + t·h'·w', C].
    """

    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, grid: Grid) -> jax.Array:
        channels, stride = x.shape[-1], (1, self.stride, self.stride)
        y = DepthwiseConv(stride, START, self.dtype, name='pool')(
            x[:, :, 1:].reshape(-1, *grid, channels)
        )
        x = jnp.concatenate([x[:, :, :1], y.reshape(*x.shape[:2], -1, channels)], axis=2)
        return layer_norm(self.dtype, 'norm')(x)


def pooled_grid(grid: Grid, stride: int) -> Grid:
    """The grid after a pooling with stride (1, s, s)."""
    steps, rows, columns = grid
    return steps, -(-rows // stride), -(-columns // stride)


def _max_pool(x: jax.Array, grid: Grid, stride: int) -> jax.Array:
    """Tokens [B, 1 + t·h·w, C] with the maximum over (stride + 1)² rows and columns; the class
    token as it is."""
    size, pad = stride + 1, (stride + 1) // 2
    y = nn.max_pool(
        x[:, 1:].reshape(len(x), *grid, x.shape[-1]),
        (1, size, size),
        (1, stride, stride),
        padding=((0, 0), (pad, pad), (pad, pad)),
    )
    return jnp.concatenate([x[:, :1], y.reshape(len(x), -1, x.shape[-1])], axis=1)
