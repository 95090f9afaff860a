"""Temporal alignments: a matrix of frame distances [..., l, m] → the soft-min cost of aligning the
two sequences [...].

Each but VAVA fills a table whose entry needs its neighbours to the left, above and diagonally,
softmin(x) = −λ log Σ exp(−x/λ). The entries of an anti-diagonal do not need each other: one
`lax.scan` over l + m − 1 of them computes each for all matrices at once.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# Of VAVA, as published: λ₁, σ, ζ, and steps of Sinkhorn's algorithm (20, and a last one).
STRUCTURE, PRIOR_WIDTH, VIRTUAL_COST, SINKHORN_STEPS = 1.0, 2.0, 0.5, 21

BLOCKED = 1e6  # a cost that no path takes; infinity would make the gradients NaN


def ordered_alignment(distances: jax.Array, smoothness: float) -> jax.Array:
    """OTAM's D(l, m): cumulative soft-min cost with relaxed ends (Cao et al. 2020, Sec. 3.3).

    The columns get a zero column on either side, 0 … m+1. A path moves right or diagonally; only at
    the ends, columns 1 and m+1, also down, so that rows before and after the action cost nothing.
    c[·, 0] = 0, the first row is a running sum, c[r, j] = d[r, j] + softmin(c[r−1, j−1], c[r, j−1]
    and at the ends c[r−1, j]).

    Args:
      distances: float [..., l, m].
      smoothness: λ > 0.

    Returns:
      float32 [...], c[l−1, m+1]. Rows against columns only: the other direction is that of the
      transposed matrix.
    """
    padded = jnp.pad(distances, [(0, 0)] * (distances.ndim - 1) + [(1, 1)])
    end = padded.shape[-1] - 1

    def entry(row, column, cost, left, above, diagonal):
        inside = (row > 0) & (
            column > 0
        )  # elsewhere from the left alone: a running sum, and of zeros before it
        diagonal = jnp.where(inside, diagonal, BLOCKED)
        above = jnp.where(inside & ((column == 1) | (column == end)), above, BLOCKED)
        return cost + _softmin(smoothness, diagonal, left, above)

    return _last_entry(entry, padded, 0.0)


def soft_dtw(distances: jax.Array, smoothness: float) -> jax.Array:
    """Soft-DTW (Cuturi and Blondel 2017, Eq. 1 and Alg. 1) with ends relaxed by a zero row above
    and below.

    R[r, j] = d[r, j] + softmin(R[r−1, j−1], R[r−1, j], R[r, j−1]); the zero rows let a path begin
    and end at any column. Arguments and result as `ordered_alignment`.
    """
    padded = jnp.pad(distances, [(0, 0)] * (distances.ndim - 2) + [(0, 1), (0, 0)])

    def entry(row, column, cost, left, above, diagonal):
        above, diagonal = (jnp.where(row == 0, 0.0, x) for x in (above, diagonal))
        left, diagonal = (jnp.where(column <= 0, BLOCKED, x) for x in (left, diagonal))
        return cost + _softmin(smoothness, diagonal, left, above)

    return _last_entry(entry, padded, 0.0)


def drop_dtw(distances: jax.Array, smoothness: float, keep: float) -> jax.Array:
    """Drop-DTW (Dvornik et al. 2021, Alg. 1): DTW that may drop columns at a price.

    D⁺[r, j] = d[r, j] + softmin(D[r−1, j−1], D[r, j−1], D⁺[r−1, j]) matches column j to row r,
    D⁻[r, j] = δ + D[r, j−1] drops it, D = softmin(D⁺, D⁻). δ is the distance below which a share
    `keep` of the matrix lies (their percentile drop cost); no gradient goes through it.

    Args:
      distances: float [..., l, m].
      smoothness: λ > 0.
      keep: share of the entries that are cheaper than dropping, in (0, 1].

    Returns:
      float32 [...], D[l, m].
    """
    entries_count = distances.shape[-1] * distances.shape[-2]
    rank = max(1, int(keep * entries_count)) - 1
    flat = jax.lax.stop_gradient(distances).reshape(-1, entries_count).astype(jnp.float32)
    drop = jnp.sort(flat, -1)[:, rank]  # δ of every matrix

    def entry(row, column, cost, left, above, diagonal):
        (_, left), (matched, _), (_, before) = left, above, diagonal
        left, before = (jnp.where(column <= 0, BLOCKED, x) for x in (left, before))
        before = jnp.where(
            row == 0, drop * jnp.maximum(column, 0), before
        )  # D[0, j−1]: all dropped
        matched = cost + _softmin(smoothness, before, left, jnp.where(row == 0, BLOCKED, matched))
        return matched, _softmin(smoothness, matched, drop + left)

    return _last_entry(entry, distances, (BLOCKED, BLOCKED))[1]


def vava(
    distances: jax.Array, smoothness: float, consistency: float, virtual_distance: float
) -> jax.Array:
    """VAVA (Liu et al. 2022): the cost ⟨T, D⟩ of the regularised optimal transport between the
    frames of two clips, where a frame of the rows has mass 1.

    Arguments as of `transport`, result as of `ordered_alignment`.
    """
    plan, costs = transport(distances, smoothness, consistency, virtual_distance)
    return (plan * costs).sum((-1, -2))


def transport(
    distances: jax.Array, smoothness: float, consistency: float, virtual_distance: float
) -> tuple[jax.Array, jax.Array]:
    """T = argmin ⟨T, D⟩ − λ₁ M(T) + λ₂ KL(T ‖ P) between two clips (Liu et al. 2022, Sec. 3).

    Each clip gets a virtual frame in front, at the cost ζ to any other: redundant frames go there.
    With i of N and j of M frames, from 1, the virtual ones included, c = |i/N − j/M| is how far a
    pair is from the diagonal (consistency), and o = |j/M − j*/M| how far from j*, the frame that is
    most like i (optimality). With u = √(1/N² + 1/M²),

        P = φ exp(−(c/u)²/2σ²) + (1−φ) exp(−(o/u)²/2σ²)
        M(T) = Σ T (φ/(c² + 1) + (1−φ)/(o² + 1))

    and in both c = o = 2v/(N + M) for a frame and a virtual one. So T = diag(a) P exp((λ₁S − D)/λ₂)
    diag(b), S the weights of M; a fixed number of Sinkhorn's steps in log space gives a and b, the
    last of them a. λ₁ and λ₂ grow with the clips as in the published code (row O6 of
    docs/paper_vs_code.md). ott-jax would bring a solver for large problems, which iterates to a
    tolerance and differentiates implicitly; a few published steps on 9 × 9 cells need neither.

    Args:
      distances: float [..., l, m], D.
      smoothness: λ₂, before it is scaled by l m / 4.
      consistency: φ, in [0, 1].
      virtual_distance: v, at least 0, in frames.

    Returns:
      (T times N, so that each row sums to 1; D with the virtual frames' costs), float32 [..., l+1,
      m+1], the virtual frames first. The gradient goes through T, not through j*.
    """
    distances = distances.astype(jnp.float32)
    length, width = distances.shape[-2:]
    edges = [(0, 0)] * (distances.ndim - 2) + [(1, 0), (1, 0)]
    rows, columns = length + 1, width + 1
    costs = jnp.pad(distances, edges, constant_values=VIRTUAL_COST)
    i, j = np.arange(1, rows + 1)[:, None] / rows, np.arange(1, columns + 1) / columns
    nearest = jnp.argmin(distances, -1) + 2
    nearest = jnp.pad(nearest, edges[:-1], constant_values=1)[..., None] / columns
    virtual = np.logical_xor(np.arange(rows)[:, None] == 0, np.arange(columns) == 0)
    far = 2 * virtual_distance / (rows + columns)
    priors = [
        (np.float32(consistency), jnp.where(virtual, far, jnp.abs(i - j))),
        (np.float32(1.0 - consistency), jnp.where(virtual, far, jnp.abs(nearest - j))),
    ]
    unit = 1 / rows**2 + 1 / columns**2
    with np.errstate(divide='ignore'):  # log 0 = −∞: no such prior
        log_prior = jnp.logaddexp(
            *(np.log(share) - x**2 / unit / (2 * PRIOR_WIDTH**2) for share, x in priors)
        )
    structure = STRUCTURE * (length + width) * sum(share / (x**2 + 1) for share, x in priors)
    log_kernel = log_prior + (structure - costs) / (smoothness * length * width / 4)

    def step(a, _):
        b = -jax.nn.logsumexp(log_kernel + a, -2, keepdims=True) - np.log(columns)
        a = -jax.nn.logsumexp(log_kernel + b, -1, keepdims=True) - np.log(rows)
        return a, b

    start = jnp.zeros_like(log_kernel[..., :1])
    a, b = jax.lax.scan(step, start, length=SINKHORN_STEPS)
    return rows * jnp.exp(log_kernel + a + b[-1]), costs


def _softmin(smoothness, *values):
    lowest = jax.lax.stop_gradient(functools.reduce(jnp.minimum, values))
    return lowest - smoothness * jnp.log(sum(jnp.exp((lowest - x) / smoothness) for x in values))


def _last_entry(entry, costs, start):
    """The last entry of the table of every matrix of `costs` [..., l, n].

    entry(row, column, cost, left, above, diagonal) → entry, elementwise on [l, matrices], or a tree
    of such arrays; it is also called for columns outside the table, whose results are not used as
    long as columns at most 0 do not look to the left. `start`: a tree of the same structure, values
    before the first anti-diagonal.
    """
    *batch, rows, columns = costs.shape
    costs = jnp.moveaxis(
        costs.astype(jnp.float32).reshape(-1, rows, columns), 0, -1
    )  # matrices last: they fill the vectors
    diagonals = rows + columns - 1
    # Padded by `rows` and cut anew into rows one shorter, row r moves r to the right: [diagonals,
    # rows, matrices].
    flat = jnp.pad(costs, ((0, 0), (0, rows), (0, 0))).reshape(rows * (columns + rows), -1)[
        : rows * diagonals
    ]
    skewed = flat.reshape(rows, diagonals, -1).swapaxes(0, 1)
    row = jnp.arange(rows)[:, None]
    lower = lambda tree: jax.tree.map(lambda x: jnp.concatenate([x[:1], x[:-1]]), tree)

    def step(carry, diagonal):
        last, before = carry
        number, cost = diagonal
        new = entry(row, number - row, cost, last, lower(last), lower(before))
        return (new, last), None

    start = jax.tree.map(lambda x: jnp.full(skewed.shape[1:], x, jnp.float32), start)
    (last, _), _ = jax.lax.scan(step, (start, start), (jnp.arange(diagonals), skewed))
    return jax.tree.map(lambda x: x[-1].reshape(batch), last)


# name → (alignment, weight of each of the two directions)
ALIGNMENTS: dict[str, tuple[Callable[..., jax.Array], float]] = {
    'otam': (ordered_alignment, 1.0),
    'soft_dtw': (soft_dtw, 0.5),
    'drop_dtw': (drop_dtw, 0.5),
    'vava': (vava, 0.5),
}
