"""The base class of all matchers."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.fields import setting
from fsar_jax.stage import Loss, Stage, cross_entropy
from fsar_jax.torch_names import TorchNames


class Matcher(Stage):
    """Compares the videos of one episode. A matcher adds two methods:

    - `project(features, train)`, per video: `VideoFeatures` of B videos → a pytree with leading
      axis B. Evaluation calls it once per test video and keeps the output.
    - `__call__(support, query, train)`, per episode: support leaves [way, shot, …], query leaves
      [Q, …] → logits float32 [Q, way], or (logits, auxiliary) with a dict of further outputs.

    A matcher with batch norm also has `batch_norm_passes(queries)`: how often one episode updates
    the running statistics. A matcher that can be the metric of another one, which aligns a query to
    each class first, has a third method:

    - `compare_pairs(support, query, train)`: the frames of a class as one clip, and of a query,
      float32 [Q, way, L, C] each, both different for every pair → as `__call__`. The axis Q is the
      first of all outputs.

    Args:
      loss_weight: weight of the cross entropy over the classes of the episode.
    """

    # The names of published weights (fsar_jax.torch_names), where a matcher brings its own.
    published: ClassVar[TorchNames | None] = None

    # by keyword, so that a matcher's own fields keep their positions
    loss_weight: float = setting(
        1.0,
        kw_only=True,
        at_least=0,
        affects='model',
        help="weight of the matcher's cross entropy in the loss",
    )

    def project(self, features: VideoFeatures, train: bool = False) -> Any:
        raise ValueError(
            f'matcher {type(self).__name__} has no `project(features, train)`: add it, as '
            'fsar_jax/matchers/matcher.py says'
        )

    def __call__(self, support: Any, query: Any, train: bool = False) -> Any:
        raise ValueError(
            f'matcher {type(self).__name__} has no `__call__(support, query, train)`: add it, as '
            'fsar_jax/matchers/matcher.py says'
        )

    def check_projected(self, projected: Any, clips: int) -> None:
        """Raises a one-line ValueError where `project` did not return arrays [B, …] of B clips."""
        shapes = [list(jnp.shape(x)) for x in jax.tree.leaves(projected)]
        if not shapes or any(shape[:1] != [clips] for shape in shapes):
            found = ', '.join(map(str, shapes)) or 'no array'
            raise ValueError(
                f'matcher {type(self).__name__}.project returned {found} for B = {clips} clips, '
                'expected B as the first axis of every array'
            )

    def batch_norm_passes(self, queries: int) -> int:
        """How often an episode updates the running statistics of batch norm."""
        raise ValueError(
            f'matcher {type(self).__name__} has batch norm, but no `batch_norm_passes(queries)`: '
            'add it, to return how often an episode updates the running statistics (2 for a batch '
            "norm in `project`, or 1 with batch_norm='joint')"
        )

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """The cross entropy of the logits, one value per query."""
        return {
            'matching': Loss(self.loss_weight, cross_entropy(outputs['temporal_matching'], labels))
        }


def of_pairs(project: Callable[[VideoFeatures], Any], frames: jax.Array) -> Any:
    """A per-video function such as `Matcher.project`, of clips that are different for every pair:
    frames [Q, way, L, C] → leaves [Q, way, …]."""
    features = clips_of_frames(frames.reshape(-1, *frames.shape[2:]))
    return jax.tree.map(lambda x: x.reshape(*frames.shape[:2], *x.shape[1:]), project(features))


def clips_of_frames(frames: jax.Array) -> VideoFeatures:
    """Clips of which only their frames are left: [B, L, C] → what `Matcher.project` takes."""
    return VideoFeatures(maps=frames[:, :, None, None], patch_level=frames, frames=frames)
