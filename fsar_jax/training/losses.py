"""What training minimises."""

import jax.numpy as jnp
import optax


def episode_loss(prediction, query_labels, config):
    """L = L_TM + λ L_QC, each a cross entropy over the classes of the episode (STRM, Eq. 7, 9 and 10).

    The published codes sum over the queries of an episode and average over the episodes of a step
    (config.train.loss_reduction = 'sum'); 'mean' averages over the queries too, which for SGD is a learning rate Q times
    smaller. The average over episodes is taken by the train step.

    Args:
      prediction: `Prediction` of one episode.
      query_labels: int [Q], 0 … way−1.
      config: the whole config; reads train.loss_reduction and model.query_similarity.weight (λ).

    Returns:
      float32 scalar.
    """
    reduce = {'sum': jnp.sum, 'mean': jnp.mean}[config.train.loss_reduction]
    weights = {'temporal_matching': 1.0, 'query_similarity': config.model.query_similarity.weight}
    return sum(
        weights[branch] * reduce(optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), query_labels))
        for branch, logits in prediction.auxiliary.items())
