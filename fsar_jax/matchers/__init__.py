"""Stage 4, per episode: embeddings of support and query → logits [Q, way].

`MATCHERS` lists the choices, and `Matcher` explains what a matcher does. To add one, write a file
and add a line here. Its fields become keys of config.model.matcher (fsar_jax.fields).
"""

import dataclasses

from ml_collections import ConfigDict

from fsar_jax.fields import setting
from fsar_jax.matchers.action_coordination import ActionCoordination
from fsar_jax.matchers.attention_fusion import AttentionFusion
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


@dataclasses.dataclass(frozen=True)
class Classifier:
    """config.model.classifier: a classifier of the training classes, in matchers that have one."""

    classes: int | None = setting(
        None,
        at_least=1,
        affects='model',
        help="number of training classes; None: counted from the split 'train' in training, "
        'elsewhere no classifier',
    )
    weight: float = setting(
        0.0,
        at_least=0,
        affects='model',
        help="weight of the classifier's cross entropy in the loss; published: HyRSM 0.6, MASTAF 1",
    )


def chosen(model: ConfigDict) -> dict:
    """What config.model chooses: {stage of the learner: (section of config.model, class)}, None for
    a stage that is left out."""
    similarity = QueryClassSimilarity if model.query_similarity.weight else None
    return {
        'matcher': ('matcher', MATCHERS[model.matcher.name]),
        'query_similarity': ('query_similarity', similarity),
    }
