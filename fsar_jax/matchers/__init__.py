"""Stage 4, per episode: embeddings of support and query → logits [Q, way].

Table of contents. A matcher has two methods: `project(features, train)` per video, whose output
evaluation keeps for each test video, and `__call__(support, query, train)` for one episode, which
is vmapped: logits, or (logits, auxiliary) with a dict of further outputs. One with batch norm has
`batch_norm_passes(queries)` too. A new matcher is one file and one line.
"""

import jax.numpy as jnp

from fsar_jax.matchers.action_coordination import SPATIAL, ActionCoordination
from fsar_jax.matchers.alignments import ALIGNMENTS
from fsar_jax.matchers.attention_fusion import KERNELS, AttentionFusion
from fsar_jax.matchers.cross_transformer import CrossTransformer
from fsar_jax.matchers.otam import OrderedAlignment
from fsar_jax.matchers.prototypes import Prototypes
from fsar_jax.matchers.query_similarity import QueryClassSimilarity
from fsar_jax.matchers.set_matching import SetMatching

MATCHERS = {
    'prototypes': lambda model: Prototypes(model.matcher.distance, **_loss_settings(model)),
    'cross_transformer': lambda model: CrossTransformer(
        dim=model.matcher.dim, **_tuple_settings(model), **_loss_settings(model)
    ),
    'otam': lambda model: OrderedAlignment(
        alignment=_one_of(model, 'alignment', ALIGNMENTS),
        smoothness=model.matcher.smoothness,
        keep=model.matcher.keep,
        **_loss_settings(model),
    ),
    'action_coordination': lambda model: ActionCoordination(
        temporal=model.matcher.temporal,
        prototype=model.matcher.prototype,
        spatial=_one_of(model, 'spatial', SPATIAL),
        perturbation=model.matcher.perturbation,
        pairs_per_chunk=model.matcher.pairs_per_chunk,
        distance_norm=model.matcher.distance_norm,
        order=model.matcher.order,
        at_test=model.align_at_test,
        inter_weight=model.matcher.inter_weight,
        inter_variant=model.sampler.variant,
        **_head_settings(model),
        **_loss_settings(model),
    ),
    'set_matching': lambda model: SetMatching(
        heads=model.matcher.heads,
        position=tuple(model.matcher.position),
        classes=model.classifier.classes,
        classifier_weight=model.classifier.weight,
        variant=model.variant,
        dtype=jnp.dtype(model.dtype),
        **_loss_settings(model),
    ),
    'attention_fusion': lambda model: AttentionFusion(
        alpha=model.matcher.alpha,
        kernel=_one_of(model, 'kernel', KERNELS),
        residual=model.matcher.residual,
        classes=model.classifier.classes,
        classifier_weight=model.classifier.weight,
        **_head_settings(model),
        **_loss_settings(model),
    ),
}


def create(model):
    """The matcher of `model.matcher.name` (config.model): a Linen module."""
    if model.matcher.name not in MATCHERS:
        raise ValueError(
            f"config.model.matcher.name='{model.matcher.name}' is not one of {', '.join(MATCHERS)}"
        )
    return MATCHERS[model.matcher.name](model)


def create_query_similarity(model):
    """STRM's second classifier, or None where `model.query_similarity.weight` is 0."""
    if not model.query_similarity.weight:
        return None
    return QueryClassSimilarity(
        dim=model.query_similarity.dim,
        weight=model.query_similarity.weight,
        **_tuple_settings(model),
    )


def _one_of(model, key, known):
    if model.matcher[key] not in known:
        raise ValueError(
            f"config.model.matcher.{key}='{model.matcher[key]}' is not one of {', '.join(known)}"
        )
    return model.matcher[key]


def _loss_settings(model):
    return dict(loss_weight=model.matcher.loss_weight)


def _head_settings(model):
    return dict(
        variant=model.variant,
        frozen=model.backbone.batch_norm == 'frozen',
        dtype=jnp.dtype(model.dtype),
    )


def _tuple_settings(model):
    omega = tuple(model.matcher.cardinalities)
    if not omega or len(set(omega)) < len(omega) or min(omega) < 1:
        raise ValueError(
            f'config.model.matcher.cardinalities={omega} must be distinct and at least 1, and '
            'there must be one'
        )
    return dict(
        cardinalities=omega,
        variant=model.variant,
        dropout=model.matcher.dropout,
        reduction=model.matcher.cardinality_reduction,
        dtype=jnp.dtype(model.dtype),
    )
