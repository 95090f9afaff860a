"""Stage 4, per episode: embeddings of support and query → logits [Q, way].

`MATCHERS` lists the choices, and `Matcher` explains what a matcher does. To add one, write a file
and add a line here. Its fields become keys of config.model.matcher (fsar_jax.fields).
"""

import dataclasses

from ml_collections import ConfigDict

from fsar_jax.fields import setting
from fsar_jax.matchers.action_coordination import ActionCoordination
from fsar_jax.matchers.attention_fusion import AttentionFusion
from fsar_jax.matchers.classifier import Classifier as Classifier
from fsar_jax.matchers.cross_transformer import CrossTransformer
from fsar_jax.matchers.matching_net import MatchingNet
from fsar_jax.matchers.otam import OrderedAlignment
from fsar_jax.matchers.prototypes import Prototypes
from fsar_jax.matchers.query_similarity import QueryClassSimilarity
from fsar_jax.matchers.set_matching import SetMatching

MATCHERS = {
    'prototypes': Prototypes,
    'matching_net': MatchingNet,
    'cross_transformer': CrossTransformer,
    'otam': OrderedAlignment,
    'action_coordination': ActionCoordination,
    'set_matching': SetMatching,
    'attention_fusion': AttentionFusion,
}


@dataclasses.dataclass(frozen=True)
class MatcherChoice:
    """The settings of config.model.matcher that are not fields of a matcher."""

    name: str = setting(
        'cross_transformer',
        choices=tuple(MATCHERS),
        affects='model',
        help='how a query is compared with the support clips of a class',
    )


def shared(model: ConfigDict) -> dict:
    """{field: value} that the matchers with a classifier have from config.model.classifier."""
    return {'classes': model.classifier.classes, 'classifier_weight': model.classifier.weight}


def chosen(model: ConfigDict) -> dict:
    """What config.model chooses: {stage of the learner: (section of config.model, class)}, None for
    a stage that is left out."""
    similarity = QueryClassSimilarity if model.query_similarity.weight else None
    return {
        'matcher': ('matcher', MATCHERS[model.matcher.name]),
        'query_similarity': ('query_similarity', similarity),
    }
