"""What training minimises."""

import jax.numpy as jnp
import optax

from fsar_jax.mutual_information import inter_video_loss, intra_video_loss, prototype_logits


def episode_loss(prediction, query_labels, config, classes=None):
    """The weighted sum of the losses that a method's paper names, for one episode.

    - 'temporal_matching', over the classes of the episode, weight model.matcher.loss_weight. A
      matcher that scores positions ('position_matching', MASTAF) is trained by the mean over those
      instead.
    - 'query_similarity' likewise, weight model.query_similarity.weight: L = L_TM + λ L_QC (STRM,
      Eq. 7, 9 and 10).
    - over the training classes, weight model.classifier.weight: every frame of support and query
      ('support_classes' and 'query_classes', HyRSM); every position of the query attended by its
      true class ('global_classes', MASTAF).
    - of a sampler that scans, weight model.sampler.intra_weight: L_intra (VIM, Eq. 28), on class
      means of the scan features over all and over the chosen frames ('…_dense_features',
      '…_selected_features').
    - of action coordination, weight model.matcher.inter_weight: L_inter (VIM, Eq. 33), on the
      query's frames before and after it ('query_frames', 'aligned_frames').

    The codes of STRM and TRX sum over the queries of an episode and average over the episodes of a
    step (config.train.loss_reduction = 'sum'); 'mean' averages over the queries too, which for SGD
    is a learning rate Q times smaller. The losses after the second are means, and so count once per
    query. The average over episodes is taken by the train step.

    Args:
      prediction: `Prediction` of one episode.
      query_labels: int [Q], 0 … way−1.
      config: the whole config; reads train.loss_reduction and the weights above.
      classes: int [way], which training class each class of the episode is; None leaves the
        classifiers out, as for episodes of classes that they do not know.

    Returns:
      float32 scalar.
    """
    model, outputs = config.model, prediction.auxiliary
    reduce = {'sum': jnp.sum, 'mean': jnp.mean}[config.train.loss_reduction]
    per_query = lambda x: reduce(jnp.broadcast_to(x, query_labels.shape))
    if 'position_matching' in outputs:
        each = _cross_entropy(outputs['position_matching'], query_labels[:, None]).mean(-1)
    else:
        each = _cross_entropy(outputs['temporal_matching'], query_labels)
    total = model.matcher.loss_weight * reduce(each)
    if 'query_similarity' in outputs:
        total += model.query_similarity.weight * reduce(
            _cross_entropy(outputs['query_similarity'], query_labels)
        )
    if classes is not None:
        total += model.classifier.weight * sum(
            map(per_query, _classification(outputs, query_labels, classes))
        )
    if model.sampler.intra_weight and 'query_dense_features' in outputs:
        dense, selected = (
            prototype_logits(outputs[f'support_{of}_features'], outputs[f'query_{of}_features'])
            for of in ('dense', 'selected')
        )
        total += model.sampler.intra_weight * per_query(
            intra_video_loss(dense, selected, query_labels, model.sampler.variant)
        )
    if model.matcher.inter_weight and 'aligned_frames' in outputs:
        total += model.matcher.inter_weight * per_query(
            inter_video_loss(
                outputs['temporal_matching'],
                query_labels,
                outputs['query_frames'],
                outputs['aligned_frames'],
                model.sampler.variant,
            )
        )
    return total


def _classification(outputs, query_labels, classes):
    """Mean cross entropies over the training classes, one scalar per classifier."""
    of_query = classes[query_labels]
    if 'query_classes' in outputs:
        support = _cross_entropy(outputs['support_classes'], classes[:, None, None])
        query = _cross_entropy(outputs['query_classes'], of_query[:, None])
        yield jnp.concatenate([support.ravel(), query.ravel()]).mean()
    if 'global_classes' in outputs:
        by_true_class = outputs['global_classes'][jnp.arange(len(query_labels)), query_labels]
        yield _cross_entropy(by_true_class, of_query[:, None]).mean()


def _cross_entropy(logits, labels):
    """logits [..., classes], labels broadcast to [...] → float32 [...]."""
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
