"""Builds the stages that config.model chooses."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from fsar_jax import backbones, enrichment, matchers, samplers
from fsar_jax.fields import build


def build_stages(model: ConfigDict) -> dict[str, Any]:
    """{'sampler': UniformSampler(…), 'backbone': …, …} under their names in the learner; None for a
    stage that is left out. A stage takes its settings from its section of config.model, and its
    other fields from `shared`."""
    shared = dict(
        variant=model.variant,
        dtype=jnp.dtype(model.dtype),
        align_at_test=model.align_at_test,
        frozen=model.backbone.batch_norm == 'frozen',
        classes=model.classifier.classes,
        classifier_weight=model.classifier.weight,
    )
    shared['scan_network'] = samplers.scan_network(model, shared)
    # STRM's second classifier compares the same tuples as the matcher.
    shared_by = {'query_similarity': {**model.matcher, **shared}}
    return {
        stage: build(module, model[section], shared_by.get(stage, shared))
        for stage, (section, module) in chosen(model).items()
    }


def chosen(model: ConfigDict) -> dict:
    """{stage of the learner: (section of config.model, class)} in the order in which a clip passes
    the stages. The class is None for a stage that is left out."""
    return {
        **samplers.chosen(model),
        **backbones.chosen(model),
        **enrichment.chosen(model),
        **matchers.chosen(model),
    }
