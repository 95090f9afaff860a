"""Where a window of fixed size lies in each frame of a clip, learned as AdaFocus V2 learns it (Wang
et al. 2022)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.layers import Linear

CHANNELS = 64  # of the squeezed maps, as published


class WindowPolicy(nn.Module):
    """Maps of the frames of a clip → a place for a window in each frame.

    1×1 convolution to 64 channels, tanh, a linear layer over all cells, tanh, a GRU over the
    frames, a linear layer, sigmoid. The maps get no gradient, and the place gets its own from what
    the window shows: both as published. Its batch norms are left out, so that a clip does not
    depend on the others of its batch (row V24 of docs/paper_vs_code.md).

    Args:
      hidden: width of the linear layer and of the GRU.

    Input [B, M, h, w, c], output float32 [B, M, 2] from 0 to 1: row and column of the window's
    place, 0 at the top or left edge of the frame and 1 at the other.
    """

    hidden: int

    @nn.compact
    def __call__(self, maps: jax.Array) -> jax.Array:
        x = jax.lax.stop_gradient(maps.astype(jnp.float32))
        x = nn.tanh(Linear(CHANNELS, name='squeeze')(x))
        x = nn.tanh(Linear(self.hidden, name='encoder')(x.reshape(*x.shape[:2], -1)))
        states: Any = nn.RNN(nn.GRUCell(self.hidden, name='gru'))(x)
        return nn.sigmoid(Linear(2, name='place')(states))
