"""What each part of a trained run is worth: python benchmarks/replaced_parts.py
--workdir=runs/ta2n [--num_episodes=3000]

Replaces one part at test time, leaves everything else as trained, and evaluates the same episodes.
A part that does its work well loses accuracy when it is replaced.

- TA2N: the window of the temporal transform by one window for all clips, the matrix M of temporal
  coordination by the uniform matrix or the identity (between the clips that are compared, not
  between the shots of a class), the offsets of spatial coordination by zero or by those of the
  episode's next query.
- ProtoNet and OTAM: the metric by that of the other.
- A sampler that chooses or amplifies: its choice by evenly spaced frames, its amplification by
  plain frames.

Parts that the run does not have are left out.
"""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from fsar_jax.enrichment.temporal_transform import TemporalTransform, warp
from fsar_jax.evaluation.evaluate import TrainedModel, episodes_of, evaluate_episodes
from fsar_jax.evaluation.results import accuracy_with_interval
from fsar_jax.learner import create_learner
from fsar_jax.matchers.action_coordination import ActionCoordination
from fsar_jax.matchers.offset_masks import OffsetPredictor
from fsar_jax.mesh import episode_mesh
from fsar_jax.training.inputs import open_split
from fsar_jax.training.run_settings import run_config
from fsar_jax.training.selected import best_of_run

WORKDIR = flags.DEFINE_string('workdir', None, 'The workdir of a run.', required=True)
DATA = flags.DEFINE_string('dir', 'data', 'Where datasets are kept.')
EPISODES = flags.DEFINE_integer('num_episodes', 3000, 'The same test episodes for every row.')


def window(a, b):
    """Every clip gets the window (a, b)."""

    def replacement(call, maps, *_, **__):
        windows = jnp.broadcast_to(jnp.array([a, b], jnp.float32), (len(maps), 2))
        return warp(maps, windows), windows

    return TemporalTransform, '__call__', replacement


def changed(module, method, change):
    """The output of the method goes through `change`."""
    return module, method, lambda call, *given, **named: change(call(*given, **named))


def uniform(m):
    return jnp.full_like(m, 1 / m.shape[-1])


def identity(m):
    return jnp.broadcast_to(jnp.eye(m.shape[-1], dtype=m.dtype), m.shape)


def of_next_query(offsets):
    return jnp.roll(offsets, -1, axis=0)


# row -> (class of a module, its method, what is called instead: with the method and its arguments)
METHODS = {
    'window (1, 0)': window(1.0, 0.0),
    'window (0.964, 0)': window(0.964, 0.0),  # where training starts
    'window (0.9, 0)': window(0.9, 0.0),
    'window (0.8, 0)': window(0.8, 0.0),
    'M uniform': changed(ActionCoordination, 'evolution', uniform),
    'M identity': changed(ActionCoordination, 'evolution', identity),
    'offsets zero': changed(OffsetPredictor, '__call__', jnp.zeros_like),
    'offsets of the next query': changed(OffsetPredictor, '__call__', of_next_query),
}


def replacing(module, method, replacement):
    """Context in which that method of every module of that class is replaced, but where it aligns
    the shots of a class."""
    between_shots = False

    def intercept(call, given, named, context):
        nonlocal between_shots
        if context.method_name == 'prototypes':
            between_shots = True
            try:
                return call(*given, **named)
            finally:
                between_shots = False
        of_it = isinstance(context.module, module) and context.method_name == method
        if of_it and not between_shots:
            return replacement(call, *given, **named)
        return call(*given, **named)

    return nn.intercept_methods(intercept)


def rows(model):
    """{row: (settings of the model that change, arguments of `replacing` or None)} for the parts
    that this model has."""
    matcher, sampler = model.matcher, model.sampler
    alignment = matcher.name == 'action_coordination'
    has = {
        TemporalTransform: model.enrichment.temporal_transform,
        ActionCoordination: alignment and matcher.temporal,
        OffsetPredictor: alignment and matcher.spatial in ('mask', 'grid'),
    }
    found = {row: ({}, method) for row, method in METHODS.items() if has[method[0]]}
    other = {'prototypes': 'otam', 'otam': 'prototypes'}.get(matcher.name)
    if other:
        found[f'metric {other}'] = ({'matcher.name': other}, None)
    if sampler.name == 'task_adaptive' and sampler.temporal:
        found['evenly spaced frames'] = ({'sampler.temporal': False}, None)
    if sampler.name == 'motion_guided':
        found['evenly spaced frames'] = ({'sampler.at_test': False}, None)
    if sampler.name == 'task_adaptive' and sampler.spatial != 'none':
        found['no amplification'] = ({'sampler.spatial': 'none'}, None)
    return found


def main(_):
    logging.set_verbosity(logging.WARNING)
    config, mesh = run_config(WORKDIR.value), episode_mesh()
    variables = best_of_run(WORKDIR.value, mesh).state.variables
    config.data.dir = DATA.value
    config.eval.frame_cache_gb = 0.0  # whole episodes, in which the methods are called as above
    dataset = open_split(config, 'test', config.eval.query)
    episodes = episodes_of(dataset, config, EPISODES.value)
    queries = episodes.labels.shape[1]
    interval = lambda correct: '{:.2f} ± {:.2f}'.format(
        *(100 * x for x in accuracy_with_interval(correct, queries))
    )

    def evaluate(settings, method):
        model = config.model.copy_and_resolve_references().unlock()
        model.update_from_flattened_dict(settings)
        jax.clear_caches()  # compiled functions know nothing of the replacement
        with replacing(*method) if method else contextlib.nullcontext():
            trained = TrainedModel(create_learner(model), variables, config, mesh)
            found = evaluate_episodes(trained, dataset, episodes)
        loss = optax.softmax_cross_entropy_with_integer_labels(found.logits, episodes.labels)
        return found.correct, float(np.mean(loss))

    print(f"{'replaced':<28} {'accuracy':>16} {'minus as trained':>17} {'loss':>7}")
    as_trained, loss = evaluate({}, None)
    print(f"{'nothing':<28} {interval(as_trained):>16} {'':>17} {loss:>7.3f}", flush=True)
    for row, replacement in rows(config.model).items():
        correct, loss = evaluate(*replacement)
        print(
            f'{row:<28} {interval(correct):>16} {interval(correct - as_trained):>17} {loss:>7.3f}',
            flush=True,
        )


if __name__ == '__main__':
    app.run(main)
