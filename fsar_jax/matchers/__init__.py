"""Stage 4, per episode: embeddings of support and query → logits [Q, way].

`MATCHERS` lists the choices, and `Matcher` explains what a matcher does. To add one, write a file
and add a line here. Its fields become keys of config.model.matcher (fsar_jax.fields).
"""

import dataclasses
from collections.abc import Collection

from ml_collections import ConfigDict

from fsar_jax.fields import has_field, setting
from fsar_jax.matchers.action_coordination import ActionCoordination
from fsar_jax.matchers.attention_fusion import AttentionFusion
from fsar_jax.matchers.attentive_relation import AttentiveRelation
from fsar_jax.matchers.classifier import Classifier as Classifier
from fsar_jax.matchers.cross_transformer import CrossTransformer
from fsar_jax.matchers.matching_net import MatchingNet
from fsar_jax.matchers.otam import OrderedAlignment
from fsar_jax.matchers.prototypes import Prototypes
from fsar_jax.matchers.query_similarity import QueryClassSimilarity
from fsar_jax.matchers.set_matching import SetMatching
from fsar_jax.matchers.tuple_cosine import TupleCosine

MATCHERS = {
    'prototypes': Prototypes,
    'matching_net': MatchingNet,
    'cross_transformer': CrossTransformer,
    'tuple_cosine': TupleCosine,
    'otam': OrderedAlignment,
    'action_coordination': ActionCoordination,
    'set_matching': SetMatching,
    'attention_fusion': AttentionFusion,
    'attentive_relation': AttentiveRelation,
}


class _Metrics(Collection):
    """The names of the matchers that compare aligned pairs, those of MATCHERS at any time."""

    def __iter__(self):
        return (name for name, matcher in MATCHERS.items() if hasattr(matcher, 'compare_pairs'))

    def __contains__(self, name):
        return any(name == own for own in self)

    def __len__(self):
        return sum(1 for _ in self)


METRICS = _Metrics()


@dataclasses.dataclass(frozen=True)
class MatcherChoice:
    """The settings of config.model.matcher that are not fields of a matcher."""

    name: str = setting(
        'cross_transformer',
        choices=MATCHERS,
        affects='model',
        help='how a query is compared with the support clips of a class',
    )
    metric: str | None = setting(
        None,
        choices=METRICS,
        affects='model',
        help="for 'action_coordination': the matcher that compares the aligned pairs, with its "
        'settings; None: the cosine of each pair of frames',
    )


def shared(model: ConfigDict) -> dict:
    """{field: value} that the matchers with a classifier have from config.model.classifier."""
    return {'classes': model.classifier.classes, 'classifier_weight': model.classifier.weight}


def chosen(model: ConfigDict) -> dict:
    """What config.model chooses: {stage of the learner: (section of config.model, class)}, None for
    a stage that is left out."""
    matcher, metric = MATCHERS[model.matcher.name], model.matcher.metric
    similarity = QueryClassSimilarity if model.query_similarity.weight else None
    return {
        'matcher': ('matcher', matcher),
        'metric': (
            'matcher',
            MATCHERS[metric] if metric and has_field(matcher, 'metric') else None,
        ),
        'query_similarity': ('query_similarity', similarity),
    }
