"""Where in a frame the cells of a feature map look, so that a map can be laid over its frame.

A cell does not look at the middle of its square. A convolution with stride 2 that is padded by the
same on all sides takes pixel 2i as the middle of what cell i sees, so that after five of them cell
i looks at pixel 32i, the upper left corner of its 32 × 32 square. A map that is enlarged to the
frame shows everything half a cell too far to the right and too low.
"""

import math

import numpy as np


def cell_places(count: int, size: int, looks_at: float) -> np.ndarray:
    """Which place in the frame is the middle of what each cell sees, in pixels, where pixel i
    covers [i, i + 1).

    Args:
      count: cells along one side.
      size: pixels along it.
      looks_at: `Stage.looks_at`, 0 for the first pixel of a cell's square, 1 for its last;
        0.5 is a transformer's patch.

    Returns:
      float64 [count].
    """
    # Patches fill the frame; convolutions halve its size several times, and round up.
    stride = size // count if looks_at == 0.5 else 2 ** round(math.log2(size / count))
    return stride * np.arange(count) + 0.5 + looks_at * (stride - 1)


def patch_places(places: np.ndarray, patches: int) -> np.ndarray:
    """The same of P patches that are pooled from cells at `places`, as `adaptive_max_pool` does:
    the middle of their cells."""
    count = len(places)
    first = np.arange(patches) * count // patches
    last = -(-(np.arange(patches) + 1) * count // patches) - 1
    return (places[first] + places[last]) / 2


def over_frame(
    maps: np.ndarray, rows: np.ndarray, columns: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Maps at every pixel of their frame: linear between the places of the cells, and beyond the
    outermost as at these.

    Args:
      maps: [..., h, w]; rows: [h] and columns: [w], the places of their cells in pixels.
      height, width: of the frame.

    Returns:
      [..., height, width].
    """

    def weights(places, size):
        pixels = np.arange(size) + 0.5
        return np.stack([np.interp(pixels, places, one) for one in np.eye(len(places))], 1)

    of_rows, of_columns = weights(rows, height), weights(columns, width)
    return np.einsum('yh,...hw,xw->...yx', of_rows, maps, of_columns, optimize=True)
