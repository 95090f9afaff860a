"""The loss that training minimises."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fsar_jax.learner import Prediction, create_learner


def episode_loss(
    prediction: Prediction,
    query_labels: jax.Array,
    config: ConfigDict,
    classes: jax.Array | None = None,
) -> jax.Array:
    """The weighted sum of the losses of a model's stages (`FewShotLearner.losses`), for one
    episode.

    The codes of STRM and TRX sum over the queries of an episode and average over the episodes of a
    step (config.train.loss_reduction = 'sum'); 'mean' averages over the queries too, which for SGD
    is a learning rate Q times smaller. A loss that is one number per episode counts once per query.
    The train step averages over episodes.

    Args:
      prediction: `Prediction` of one episode.
      query_labels: int [Q], 0 … way−1.
      config: the whole config; its model and train.loss_reduction count.
      classes: int [way], which training class each class of the episode is; None leaves the
        classifiers out, as for episodes of classes that they do not know.

    Returns:
      float32 scalar.
    """
    reduce = {'sum': jnp.sum, 'mean': jnp.mean}[config.train.loss_reduction]
    losses = create_learner(config.model).losses(prediction.auxiliary, query_labels, classes)
    return sum(
        (
            loss.weight * reduce(jnp.broadcast_to(loss.value, query_labels.shape))
            for loss in losses.values()
        ),
        start=jnp.zeros((), jnp.float32),
    )
