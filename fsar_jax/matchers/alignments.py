"""Temporal alignments: a matrix of frame distances [..., l, m] → the soft-min cost of aligning the two sequences [...].

Each is one `lax.scan` over the rows of the matrix. Within a row, moves to the right form a linear recurrence of
exp(−cost/λ), which a cumulative log-sum-exp solves at once; so the scan has l steps and nothing overflows.
"""

import jax
import jax.numpy as jnp

BLOCKED = 1e6       # a cost that no path takes; infinity would make the gradients NaN


def ordered_alignment(distances, smoothness: float = 0.1):
    """OTAM's D(l, m): cumulative soft-min cost with relaxed ends (Cao et al. 2020, Sec. 3.3).

    The columns get a zero column on either side, 0 … m+1. A path moves right or diagonally; only at the ends, columns 1 and
    m+1, also down, so that rows before and after the action cost nothing. c[·, 0] = 0, the first row is a running sum,
    c[r, j] = d[r, j] + softmin(c[r−1, j−1], c[r, j−1] and at the ends c[r−1, j]), softmin(x) = −λ log Σ exp(−x/λ).

    Args:
      distances: float [..., l, m].
      smoothness: λ > 0.

    Returns:
      float32 [...], c[l−1, m+1]. Rows against columns only: the other direction is that of the transposed matrix.
    """
    padded = jnp.pad(distances.astype(jnp.float32), [(0, 0)] * (distances.ndim - 1) + [(1, 1)])

    def row(above, costs):
        left, last = above[..., :1], above[..., -1:]
        entries = jnp.concatenate([
            left, _softmin(left, above[..., 1:2], smoothness), above[..., 1:-2],
            _softmin(above[..., -2:-1], last, smoothness)], -1)
        return _along_row(entries + costs, costs, smoothness), None

    rows = jnp.moveaxis(padded, -2, 0)
    return jax.lax.scan(row, jnp.cumsum(rows[0], -1), rows[1:])[0][..., -1]


def soft_dtw(distances, smoothness: float = 0.1):
    """Soft-DTW (Cuturi and Blondel 2017, Eq. 1 and Alg. 1) with ends relaxed by a zero row above and below.

    R[r, j] = d[r, j] + softmin(R[r−1, j−1], R[r−1, j], R[r, j−1]); the zero rows let a path begin and end at any column.
    Arguments and result as `ordered_alignment`.
    """
    distances = distances.astype(jnp.float32)

    def row(above, costs):
        entries = jnp.concatenate([above[..., :1], _softmin(above[..., :-1], above[..., 1:], smoothness)], -1)
        return _along_row(entries + costs, costs, smoothness), None

    rows = jnp.moveaxis(distances, -2, 0)
    rows = jnp.concatenate([rows, jnp.zeros_like(rows[:1])])
    return jax.lax.scan(row, jnp.zeros_like(rows[0]), rows)[0][..., -1]


def drop_dtw(distances, smoothness: float = 0.1, keep: float = 0.3):
    """Drop-DTW (Dvornik et al. 2021, Alg. 1): DTW that may drop columns at a price.

    D⁺[r, j] = d[r, j] + softmin(D[r−1, j−1], D[r, j−1], D⁺[r−1, j]) matches column j to row r, D⁻[r, j] = δ + D[r, j−1] drops
    it, D = softmin(D⁺, D⁻). δ is the distance below which a share `keep` of the matrix lies (their percentile drop cost);
    no gradient goes through it.

    Args:
      distances: float [..., l, m].
      smoothness: λ > 0.
      keep: share of the entries that are cheaper than dropping, in (0, 1].

    Returns:
      float32 [...], D[l, m].
    """
    distances = distances.astype(jnp.float32)
    entries_count = distances.shape[-1] * distances.shape[-2]
    rank = max(1, int(keep * entries_count)) - 1
    flat = jax.lax.stop_gradient(distances).reshape(*distances.shape[:-2], entries_count)
    drop = jnp.sort(flat, -1)[..., rank, None]                                                 # δ, [..., 1]

    def row(above, costs):
        before, matched = above        # D[r−1, j−1] and D⁺[r−1, j]
        entries = costs + _softmin(before, matched, smoothness)
        total = _along_row(entries, _softmin(costs, drop, smoothness), smoothness)
        left = jnp.concatenate([jnp.full_like(total[..., :1], BLOCKED), total[..., :-1]], -1)
        return (left, _softmin(entries, costs + left, smoothness)), total

    rows = jnp.moveaxis(distances, -2, 0)
    start = drop * jnp.arange(distances.shape[-1])                                              # D[0, j−1]: all dropped
    _, totals = jax.lax.scan(row, (start, jnp.full_like(rows[0], BLOCKED)), rows)
    return totals[-1][..., -1]


def _softmin(x, y, smoothness):
    return -smoothness * jnp.logaddexp(-x / smoothness, -y / smoothness)


def _along_row(entering, steps, smoothness):
    """c[j] = softmin(entering[j], c[j−1] + steps[j]) along the last axis, c[−1] unreachable."""
    travelled = jnp.cumsum(steps, -1)
    return travelled - smoothness * jax.lax.cumlogsumexp((travelled - entering) / smoothness, axis=entering.ndim - 1)


# name → (alignment, weight of each of the two directions)
ALIGNMENTS = {
    'otam': (ordered_alignment, 1.0),
    'soft_dtw': (soft_dtw, 0.5),
    'drop_dtw': (drop_dtw, 0.5),
}
