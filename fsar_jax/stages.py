"""Builds the stages that config.model chooses."""

from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from fsar_jax import backbones, enrichment, matchers, samplers
from fsar_jax.fields import build
from fsar_jax.matchers.matcher import Matcher
from fsar_jax.messages import printable
from fsar_jax.samplers.sampler import Sampler
from fsar_jax.stage import Stage


def build_stages(model: ConfigDict) -> dict[str, Any]:
    """{'sampler': UniformSampler(…), 'backbone': …, …} under their names in the learner; None for a
    stage that is left out. A stage takes its settings from its section of config.model, and its
    other fields from `shared_values`.

    Raises:
      ValueError: one line. A class is not derived from that of its stage.
    """
    shared = shared_values(model)
    shared['scan_network'] = samplers.scan_network(model, shared)
    shared['metric'] = build(matchers.chosen(model)['metric'][1], model.matcher, shared)
    # STRM's second classifier compares the same tuples as the matcher.
    shared_by = {'query_similarity': {**model.matcher, **shared}}
    stages = {
        stage: build(module, model[section], shared_by.get(stage, shared))
        for stage, (section, module) in chosen(model).items()
    }
    bases: dict[str, type[Stage]] = {'sampler': Sampler, 'matcher': Matcher}
    for name, stage in stages.items():
        base = bases.get(name, Stage)
        if stage is not None and not isinstance(stage, base):
            raise ValueError(
                f'{name.replace("_", " ")} {type(stage).__name__} is no {base.__name__}: derive '
                f'the class from {base.__module__}.{base.__name__}'
            )
    return stages


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
