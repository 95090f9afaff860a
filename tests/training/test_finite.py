"""Models that cannot give numbers are one line before training: too few time steps for a tuple,
logits that are not finite."""

import functools

import jax
import numpy as np
import pytest
from tiny_run import tiny_config

from fsar_jax.learner import create_learner
from fsar_jax.matchers.prototypes import Prototypes
from fsar_jax.training.finite import check_logits
from fsar_jax.training.state import example_episode
from fsar_jax.training.train import train_and_evaluate


def initial_shapes(method, frames, **model):
    """Traces the initialisation of a method with the 3D backbone, which has one time step for 16
    frames."""
    config = tiny_config(
        method, {'model.backbone.name': 'resnet3d50', 'episode.frames': frames, **model}
    )
    learner = create_learner(config.model)
    support, query = example_episode(config)
    variables = jax.eval_shape(
        functools.partial(learner.init, train=False), jax.random.key(0), support, query
    )
    return jax.eval_shape(functools.partial(learner.apply, train=False), variables, support, query)


@pytest.mark.parametrize(
    'method, frames, model',
    [
        ('trx', 32, {}),
        ('strm', 8, {}),
        ('protonet', 8, {'model.matcher.name': 'tuple_cosine'}),
        (
            'protonet',
            32,
            {'model.matcher.name': 'tuple_cosine', 'model.matcher.cardinalities': (2, 3)},
        ),
    ],
)
def test_fewer_time_steps_than_a_tuple_are_one_line(method, frames, model):
    wanted, left = (3, 2) if frames == 32 else (2, 1)
    with pytest.raises(
        ValueError,
        match=f'tuples of {wanted} frames need as many time steps, but the backbone '
        f'leaves {left} of a clip: raise config.episode.frames',
    ) as error:
        initial_shapes(method, frames, **model)
    assert '\n' not in str(error.value)


@pytest.mark.slow
def test_just_enough_time_steps_are_taken():
    assert initial_shapes('trm', 17).logits.shape == (2, 2)


def made(method, changes=None):
    """(learner, variables, config): numbers as at the start, without compiling the
    initialisation."""
    config = tiny_config(method, changes, width=8)
    learner = create_learner(config.model)
    shapes = jax.eval_shape(
        functools.partial(learner.init, train=False), jax.random.key(0), *example_episode(config)
    )
    rng = np.random.default_rng(0)
    start = lambda path, x: (
        np.full(x.shape, 1.0, x.dtype)
        if path[-1].key in ('var', 'scale')
        else rng.normal(0, 0.1, x.shape).astype(x.dtype)
    )
    return learner, jax.tree_util.tree_map_with_path(start, shapes), config


def test_logits_that_are_not_finite_at_the_start_name_stage_and_settings():
    with pytest.raises(ValueError) as error:
        check_logits(*made('mastaf', {'model.matcher.alpha': 3e38}))
    assert str(error.value) == (
        'the logits of the model are not finite as it starts, from its matcher on: change '
        "config.model.matcher, of which these are not the default: config.model.matcher.name="
        "'attention_fusion', config.model.matcher.loss_weight=0.5, config.model.matcher.dim=16, "
        'config.model.matcher.alpha=3e+38'
    )


def test_the_first_stage_that_breaks_is_named():
    learner, variables, config = made('strm')
    check_logits(learner, variables, config)
    for stage, named in (
        ('backbone', 'its backbone on'),
        ('frame_enrichment', 'its frame enrichment on'),
    ):
        broken = {
            **variables,
            'params': {
                **variables['params'],
                stage: jax.tree.map(lambda x: np.full_like(x, np.nan), variables['params'][stage]),
            },
        }
        with pytest.raises(ValueError, match=f'not finite as it starts, from {named}'):
            check_logits(learner, broken, config)


class Transposed(Prototypes):
    def __call__(self, *arguments):
        return super().__call__(*arguments).T


def test_logits_that_are_transposed_are_seen_where_they_are_square():
    """As they are in the initialisation, and in training with one query of each class."""
    learner, variables, config = made('protonet')
    check_logits(learner, variables, config)
    with pytest.raises(
        ValueError, match=r'Transposed returned logits \[2, 1\], expected \[Q, way\]'
    ):
        check_logits(learner.clone(matcher=Transposed()), variables, config)


@pytest.mark.slow
def test_training_does_not_begin_with_them(tiny_data, tmp_path):
    config = tiny_config(
        'mastaf', {'data.dir': str(tiny_data), 'model.matcher.alpha': 3e38}, width=8
    )
    with pytest.raises(ValueError, match='the logits of the model are not finite as it starts'):
        train_and_evaluate(config, tmp_path / 'run', 'mastaf')
    assert (
        not list((tmp_path / 'run').glob('checkpoints/[0-9]*'))
        and not (tmp_path / 'run' / 'results.json').exists()
    )
