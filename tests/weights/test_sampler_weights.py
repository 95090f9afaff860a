"""VIM's released sampler as a whole: its state dict fills the sampler's place in the variables of
the learner."""

import jax
import numpy as np
import pytest
from test_scan_network_weights import PUBLISHED, UNPUBLISHED, drawn
from tiny_run import tiny_config

import fsar_jax
from fsar_jax.training.state import example_episode
from fsar_jax.weights import sampler_from_torch

SCAN, HIDDEN, TASK = 'shufflenet_v2_small', 12, 6


def sampler_config(adaptive):
    return tiny_config(
        'vim',
        {
            'model.sampler.scan_network': SCAN,
            'model.sampler.variant': 'code',
            'model.sampler.adaptive': adaptive,
            'model.sampler.hidden': HIDDEN,
            'model.sampler.task_dim': TASK,
        },
    )


def released(published, adaptive):
    """Names as in the fixtures of the published class, at the width of the scan network's
    features."""
    # The class has its generator, used or not; the fixture without adaptation leaves it out.
    kinds = ('vim_selector_1shot_a', 'vim_selector_plain_a')[: 1 if adaptive else 2]
    names = {name: None for kind in kinds for name in published(kind).weights}
    width = PUBLISHED[SCAN]['conv5.0.weight'][0]
    shapes = {
        'evaluator.0.pe': (1, 20, 2 * width),
        'evaluator.1.weight': (HIDDEN, 2 * width),
        'evaluator.1.bias': (HIDDEN,),
        'evaluator.3.weight': (1, HIDDEN),
        'evaluator.3.bias': (1,),
        'generator.encoder.weight': (2 * TASK, width),
        'generator.encoder.bias': (2 * TASK,),
        'generator.gen.weight': (HIDDEN, TASK),
        'generator.gen.bias': (HIDDEN,),
    }
    scan = {
        f'backbone.{name}': shape
        for name, shape in PUBLISHED[SCAN].items()
        if not name.startswith(UNPUBLISHED)
    }
    return drawn({**{name: shapes[name] for name in names}, **scan})


@pytest.mark.parametrize('adaptive', [True, False])
def test_the_released_sampler_fills_ours(published, adaptive):
    config = sampler_config(adaptive)
    weights = released(published, adaptive)
    found = sampler_from_torch(weights, config.model)
    expected = jax.eval_shape(
        fsar_jax.create_learner(config.model).init, jax.random.key(0), *example_episode(config)
    )
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
    assert shapes(found) == shapes(
        {collection: {'sampler': tree['sampler']} for collection, tree in expected.items()}
    )
    ours = found['params']['sampler']
    np.testing.assert_array_equal(ours['evaluator']['kernel'], weights['evaluator.1.weight'].T)
    last = ours['generator']['frame_weights']['kernel'] if adaptive else ours['score']['kernel']
    np.testing.assert_array_equal(
        last, weights['generator.gen.weight' if adaptive else 'evaluator.3.weight'].T
    )


def test_the_printed_sampler_has_no_released_weights():
    config = sampler_config(True)
    config.model.sampler.variant = 'paper'
    with pytest.raises(
        ValueError,
        match="the published sampler belongs to config.model.sampler.name='task_adaptive' with "
        "variant='code'",
    ):
        sampler_from_torch({}, config.model)
