"""Checks that a model's logits are finite before it is trained or evaluated."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fsar_jax.config import SETTINGS, setting_of
from fsar_jax.learner import FewShotLearner
from fsar_jax.messages import listed
from fsar_jax.stages import chosen
from fsar_jax.training.state import example_episode


def check_logits(learner: FewShotLearner, variables: dict[str, Any], config: ConfigDict) -> None:
    """Classifies one query of noise in an episode of noise, in evaluation mode.

    Args:
      learner, variables: as for `learner.apply`.
      config: the whole config.

    Raises:
      ValueError: logits that are not finite: the first stage whose output is not, and its settings
        that are not the default.
    """
    support, query = example_episode(config)
    noise = lambda like: np.random.default_rng(0).integers(0, 256, like.shape, np.uint8)
    finite = jax.tree.map(np.asarray, _finite(learner, variables, noise(support), noise(query[:1])))
    if finite.pop('logits'):
        return
    sections = {stage: section for stage, (section, _) in chosen(config.model).items()}
    # Where all stages are finite, it is the factor of the last one, the query similarity.
    broken = next((stage for stage in sections if not finite.get(stage, True)), 'query_similarity')
    section = f'model.{sections[broken]}.'
    changed = {
        key: value
        for key, known in SETTINGS.items()
        if key.startswith(section) and (value := setting_of(config, key)) != known.default
    }
    not_default = listed(f'config.{key}={value!r}' for key, value in changed.items())
    raise ValueError(
        f'the logits of the model are not finite as it starts, from its {broken.replace("_", " ")} '
        f'on: change config.{section[:-1]}, of which these are not the default: '
        f'{not_default or "none"}'
    )


@functools.partial(jax.jit, static_argnames='learner')
def _finite(learner, variables, support, query):
    """{'logits': bool, 'backbone': bool, …}: whether all outputs of the stages are finite."""
    whole_stage = lambda module, method: len(module.path) == 1
    prediction, seen = learner.apply(
        variables,
        support,
        query,
        train=False,
        capture_intermediates=whole_stage,
        mutable=['intermediates'],
    )
    finite = lambda tree: jnp.stack(
        [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)] + [jnp.array(True)]
    ).all()
    return {
        'logits': finite(prediction.logits),
        **{stage: finite(outputs) for stage, outputs in seen['intermediates'].items()},
    }
