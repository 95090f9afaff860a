"""Builds the stages that config.model chooses."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from fsar_jax import backbones, enrichment, matchers, samplers
from fsar_jax.fields import build
from fsar_jax.messages import printable


def build_stages(model: ConfigDict) -> dict[str, Any]:
    """{'sampler': UniformSampler(…), 'backbone': …, …} under their names in the learner; None for a
    stage that is left out. A stage takes its settings from its section of config.model, and its
    other fields from `shared_values`."""
    shared = shared_values(model)
    shared['scan_network'] = samplers.scan_network(model, shared)
    shared['metric'] = build(matchers.chosen(model)['metric'][1], model.matcher, shared)
    # STRM's second classifier compares the same tuples as the matcher.
    shared_by = {'query_similarity': {**model.matcher, **shared}}
    return {
        stage: build(module, model[section], shared_by.get(stage, shared))
        for stage, (section, module) in chosen(model).items()
    }


def shared_values(model: ConfigDict) -> dict[str, Any]:
    """{field: value} of the fields that are not settings of their module."""
    return dict(
        variant=model.variant,
        dtype=jnp.dtype(model.dtype),
        align_at_test=model.align_at_test,
        **backbones.shared(model),
        **enrichment.shared(model),
        **matchers.shared(model),
    )


def choice(model: ConfigDict, stage: str) -> str:
    """How a message names the choice of a stage: "config.model.matcher.name='otam'"."""
    return f"config.model.{stage}.name='{printable(model[stage].name)}'"


def frames_read(config: ConfigDict) -> int:
    """How many frames of a clip the loader hands over: L, or the M among which the sampler chooses
    L."""
    return build_stages(config.model)['sampler'].frames_read(config.episode.frames)


def chosen(model: ConfigDict) -> dict:
    """{stage of the learner: (section of config.model, class)} in the order in which a clip passes
    the stages. The class is None for a stage that is left out."""
    return {
        **samplers.chosen(model),
        **backbones.chosen(model),
        **enrichment.chosen(model),
        **matchers.chosen(model),
    }
