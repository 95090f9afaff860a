"""Stage 4, per episode: embeddings of support and query → logits [Q, way].

Table of contents. A matcher has two methods: `project(features, train)` per video, whose output evaluation keeps for each
test video, and `__call__(support, query, train)` for one episode, which is vmapped. A new matcher is one file and one line.
"""

import jax.numpy as jnp

from fsar_jax.matchers.cross_transformer import CrossTransformer
from fsar_jax.matchers.prototypes import Prototypes
from fsar_jax.matchers.query_similarity import QueryClassSimilarity

MATCHERS = {
    'prototypes': lambda model: Prototypes(model.matcher.distance),
    'cross_transformer': lambda model: CrossTransformer(dim=model.matcher.dim, **_tuple_settings(model)),
}


def create(model):
    """The matcher of `model.matcher.name` (config.model): a Linen module."""
    if model.matcher.name not in MATCHERS:
        raise ValueError(f"config.model.matcher.name='{model.matcher.name}' is not one of {', '.join(MATCHERS)}")
    return MATCHERS[model.matcher.name](model)


def create_query_similarity(model):
    """STRM's second classifier, or None where `model.query_similarity.weight` is 0."""
    if not model.query_similarity.weight:
        return None
    return QueryClassSimilarity(dim=model.query_similarity.dim, **_tuple_settings(model))


def _tuple_settings(model):
    return dict(cardinalities=tuple(model.matcher.cardinalities), variant=model.variant, dropout=model.matcher.dropout,
                reduction=model.matcher.cardinality_reduction, dtype=jnp.dtype(model.dtype))
