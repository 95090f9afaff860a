"""OTAM: temporal alignment of a query with every support video by soft-min dynamic programming."""

import chex
import jax
import jax.numpy as jnp

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.fields import setting
from fsar_jax.layers import frame_cosine
from fsar_jax.matchers.alignments import ALIGNMENTS, transport
from fsar_jax.matchers.matcher import Matcher

SHARP = 1e-4  # a smoothness at which the soft minimum is the minimum, for pictures
COSINE_MARGIN = 0.01  # added to ‖a‖‖b‖ in the published code (row O3 of docs/paper_vs_code.md)


class OrderedAlignment(Matcher):
    """logit = −mean over shots of D(d) + D(dᵀ), d[x, y] = 1 − cos(q_x, s_y) (OTAM, Cao et al. 2020,
    Eq. 5).

    D is the soft-min cost of aligning query and support frames in order with relaxed ends.
    Soft-DTW, Drop-DTW and VAVA can take its place (VIM, Table 15), averaged over the directions. No
    parameters, no variants: the paper leaves what the code decides (rows O1 to O7) open.

    Args:
      alignment: 'otam', 'soft_dtw', 'drop_dtw' or 'vava' (`fsar_jax.matchers.alignments`).
      smoothness: λ of the soft minimum; of 'vava', λ₂ of the transport's regularisation.
      keep: for 'drop_dtw', the share of frame pairs that are cheaper than dropping.
      consistency, virtual_distance: for 'vava', φ and v.
    """

    alignment: str = setting(
        'otam', choices=tuple(ALIGNMENTS), affects='model', help='how two clips are aligned in time'
    )
    smoothness: float = setting(
        0.1,
        above=0,
        affects='model',
        help='lambda of the soft minimum, or of the transport; the smaller, the closer to the '
        'minimum',
    )
    keep: float = setting(
        0.3,
        above=0,
        at_most=1,
        affects='model',
        help="for 'drop_dtw': dropping a frame costs more than this share of the frame pairs",
    )
    consistency: float = setting(
        0.5,
        at_least=0,
        at_most=1,
        affects='model',
        help="for 'vava': phi, share of the prior that frames match in order; the rest is that a "
        'frame matches the one that is most alike',
    )

    virtual_distance: float = setting(
        2.0,
        at_least=0,
        affects='model',
        help="for 'vava': so many frames away from all others counts the virtual frame, which "
        'redundant frames match; published: 7.5, too far for clips of 8 frames',
    )

    def project(self, features: VideoFeatures, train: bool = False) -> jax.Array:
        """Per video: the frames themselves, [B, L, D]."""
        return features.frames

    def __call__(self, support: jax.Array, query: jax.Array, train: bool = False) -> jax.Array:
        """Per episode: support [way, shot, L, D], query [Q, L, D] → logits float32 [Q, way]."""
        logits = self.logits(self.distances(support, query))
        chex.assert_shape(logits, (query.shape[0], support.shape[0]))
        return logits

    def compare_pairs(self, support: jax.Array, query: jax.Array, train: bool = False) -> jax.Array:
        """Of aligned pairs: support and query [Q, way, L, D] → logits float32 [Q, way]."""
        distances = 1.0 - frame_cosine('qwxd,qwyd->qwxy', query, support, COSINE_MARGIN)
        return self.logits(distances[:, :, None])

    def logits(self, distances: jax.Array) -> jax.Array:
        """d [Q, way, shot, L, L] → float32 [Q, way]."""
        cost, weight = ALIGNMENTS[self.alignment]
        settings = {
            'drop_dtw': {'keep': self.keep},
            'vava': {'consistency': self.consistency, 'virtual_distance': self.virtual_distance},
        }.get(self.alignment, {})
        both = cost(jnp.stack([distances, distances.swapaxes(-1, -2)]), self.smoothness, **settings)
        return (-weight * both.sum(0).mean(-1)).astype(jnp.float32)

    def distances(self, support: jax.Array, query: jax.Array) -> jax.Array:
        """d of all pairs of frames: support [way, shot, L, D], query [Q, L, D] → float32 [Q, way,
        shot, L, L], the query's frames in the rows."""
        return 1.0 - frame_cosine('qxd,wsyd->qwsxy', query, support, COSINE_MARGIN)

    def explain(self, support: jax.Array, query: jax.Array) -> dict[str, jax.Array]:
        """{'distances', 'path', 'path_back'} [Q, way, shot, L, L], the query's frames in the rows:
        d, and 1 where the cheapest paths pass. OTAM's 'path' has a cell for each frame of the
        support and may leave out the query's first and last; 'path_back' is the other way round.
        Of 'vava' they say what part of a frame goes to which."""
        distances = self.distances(support, query)
        path, back = (
            transport(x, self.smoothness, self.consistency, self.virtual_distance)[0][..., 1:, 1:]
            if self.alignment == 'vava'
            else cheapest_path(x, self.alignment, self.keep)
            for x in (distances, distances.swapaxes(-1, -2))
        )
        return {'distances': distances, 'path': path, 'path_back': back.swapaxes(-1, -2)}


def cheapest_path(distances: jax.Array, alignment: str, keep: float) -> jax.Array:
    """1 in the cells of [..., l, m] that the path of least cost passes, 0 in the others; paths that
    cost the same share it.

    The cost is a sum over the path's cells, so the gradient for a distance says whether its cell is
    one of them. The soft minimum is made as good as hard for it.
    """
    settings = {'keep': keep} if alignment == 'drop_dtw' else {}
    cost = lambda d: ALIGNMENTS[alignment][0](d, SHARP, **settings).sum()
    return jax.grad(cost)(distances.astype(jnp.float32))
