"""Samplers in the flow: VIM in front of any matcher, through learner, evaluation and train step, at
tiny sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TinyScan, get_config, random_variables

import fsar_jax
from fsar_jax import samplers
from fsar_jax.training.losses import episode_loss

TINY = {
    'model.backbone.width': 4,
    'model.enrichment.patches': 2,
    'model.matcher.dim': 8,
    'model.matcher.heads': 2,
    'model.sampler.dense_frames': 5,
    'model.sampler.scan_size': 32,
    'model.sampler.num_samples': 16,
    'model.sampler.samples_per_chunk': 8,
    'model.sampler.hidden': 6,
    'model.sampler.task_dim': 4,
    'episode.frames': 3,
    'episode.image_size': 32,
    'data.resize': 32,
}


@pytest.fixture(autouse=True)
def tiny_scan_network(monkeypatch):
    monkeypatch.setattr(samplers, 'create_scan_network', lambda name, **_: TinyScan())


def tiny_vim(preset='', **changes):
    config = get_config('vim', preset)
    with config.unlocked():
        config.model.backbone.width = 4
        config.update_from_flattened_dict({**TINY, **changes})
    return config


def episode(way=2, shot=1, queries=3, dense=5):
    rng = np.random.default_rng(0)
    clips = lambda *lead: rng.integers(0, 256, (*lead, dense, 32, 32, 3), np.uint8)
    return clips(way, shot), clips(queries)


@pytest.mark.slow
def test_every_part_of_the_sampler_learns(shallow):
    """In one training episode of VIM. That a gradient comes out of any other method is in
    test_methods.py."""
    config = tiny_vim()
    learner = fsar_jax.create_learner(config.model)
    support, query = episode()
    variables, labels = random_variables(learner, support, query), jnp.array([0, 1, 0])

    @jax.jit
    def step(params):
        def loss(params):
            prediction, _ = learner.apply(
                {
                    **variables,
                    'params': {**variables['params'], 'sampler': params},
                    'schedule': {'sampler': {'sigma': 0.5}},
                },
                support,
                query,
                train=True,
                mutable=['batch_stats'],
                rngs={'dropout': jax.random.key(1), 'sampler': jax.random.key(2)},
            )
            return episode_loss(prediction, labels, config), prediction

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, prediction), gradients = step(variables['params']['sampler'])
    assert np.isfinite(value) and prediction.auxiliary['query_indices'].shape == (3, 3)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(
            path
        )


@pytest.mark.slow
@pytest.mark.parametrize('preset', ['', 'otam', 'strm'])
def test_any_method_behind_the_sampler(shallow, preset):
    """At test, scans that were kept give the logits of the whole."""
    learner = fsar_jax.create_learner(tiny_vim(preset).model)
    support, query = episode()
    variables = random_variables(learner, support, query)

    @jax.jit
    def at_test(variables):
        whole = learner.apply(variables, support, query)
        scans = [
            learner.apply(variables, videos, method='embed') for videos in (support[:, 0], query)
        ]
        return whole.logits, learner.apply(
            variables, jax.tree.map(lambda x: x[:, None], scans[0]), scans[1], method='match'
        ).logits

    whole, parts = at_test(variables)
    np.testing.assert_allclose(whole, parts, rtol=1e-4, atol=1e-4)
    assert np.ptp(whole) > 0


def test_a_sampler_without_adaptation_is_part_of_the_embedding(shallow):
    config = tiny_vim(**{'model.sampler.adaptive': False})
    learner = fsar_jax.create_learner(config.model)
    support, query = episode()
    variables = random_variables(learner, support, query)
    embed = lambda x: learner.apply(variables, x, method='embed')
    both = jax.jit(lambda x: (embed(x), embed(x[1:2])))
    kept, alone = jax.tree.map(np.asarray, both(query))
    assert kept['temporal_matching'].shape[:2] == (3, 3) and 'frames' not in kept['sampling']
    np.testing.assert_allclose(
        kept['temporal_matching'][1], alone['temporal_matching'][0], rtol=1e-4, atol=1e-4
    )


def test_turned_off_at_test(shallow):
    """Without sampler and alignment at test, VIM is ProtoNet on evenly spaced frames: the same
    backbone gives the same logits."""
    config = tiny_vim(**{'model.sampler.at_test': False, 'model.align_at_test': False})
    learner = fsar_jax.create_learner(config.model)
    support, query = episode()
    variables = random_variables(learner, support, query)
    with config.unlocked():
        (
            config.model.sampler.name,
            config.model.matcher.name,
            config.model.enrichment.temporal_transform,
        ) = 'uniform', 'prototypes', False
    plain = fsar_jax.create_learner(config.model)
    kept = {collection: {'backbone': tree['backbone']} for collection, tree in variables.items()}
    even = np.array([0, 2, 4])
    off, expected = jax.jit(
        lambda: (
            learner.apply(variables, support, query).logits,
            plain.apply(kept, support[:, :, even], query[:, even]).logits,
        )
    )()
    np.testing.assert_allclose(off, expected, rtol=1e-4, atol=1e-4)


def sigma(config):
    return fsar_jax.create_learner(config.model).schedules(config.train.num_steps)['sampler'][
        'sigma'
    ]


def test_sigma_follows_its_schedule():
    config = tiny_vim(**{'model.sampler.sigma': 0.2, 'train.num_steps': 10})
    np.testing.assert_allclose(
        [sigma(config)(step) for step in (0, 5, 10, 20)], [0.2, 0.1, 0.0, 0.0], atol=1e-7
    )
    with config.unlocked():
        config.model.sampler.update(
            sigma_schedule='steps', sigma_steps=4, sigma_factor=0.5, sigma_end=0.04
        )
    np.testing.assert_allclose(
        [sigma(config)(step) for step in (0, 3, 4, 8, 12)], [0.2, 0.2, 0.1, 0.05, 0.04], atol=1e-7
    )
    with config.unlocked():
        config.model.sampler.sigma_factor = 1.0
    np.testing.assert_allclose([sigma(config)(step) for step in (0, 100)], [0.2, 0.2])


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'sigma': -1.0}, 'config.model.sampler.sigma=-1.0 must be at least 0'),
        ({'intra_weight': -0.5}, 'config.model.sampler.intra_weight=-0.5 must be at least 0'),
        (
            {'variant': 'code'},
            "config.model.sampler.sigma_end=0.0 is too small for "
            "config.model.sampler.variant='code'",
        ),
        (
            {'variant': 'code', 'sigma_schedule': 'constant', 'sigma': 1e-4},
            "config.model.sampler.sigma=0.0001 is too small for .*variant='code'",
        ),
        (
            {'sigma_end': 0.5},
            'config.model.sampler.sigma_end=0.5 must be at most config.model.sampler.sigma=0.1',
        ),
        ({'sigma': float('nan')}, 'config.model.sampler.sigma=nan must be at least 0'),
    ],
)
def test_settings_that_would_ruin_a_run(changes, message):
    config = tiny_vim()
    with config.unlocked():
        config.model.sampler.update(**changes)
    with pytest.raises(ValueError, match=message):
        fsar_jax.config.validate(config)


@pytest.mark.parametrize(
    'changes',
    [{'sigma_end': 0.01}, {'sigma_schedule': 'constant', 'sigma_end': 0.5}, {'sigma': 0.0}],
)
def test_an_amplitude_that_the_code_can_have(changes):
    config = tiny_vim()
    with config.unlocked():
        config.model.sampler.update(variant='code', **changes)
    fsar_jax.config.validate(config)


def test_more_frames_wanted_than_scanned():
    config = tiny_vim(**{'model.sampler.dense_frames': 2})
    with pytest.raises(
        ValueError,
        match='config.model.sampler.dense_frames=2 is fewer than config.episode.frames=3',
    ):
        fsar_jax.config.validate(config)


@pytest.mark.parametrize('sampler', ['task_adaptive', 'motion_guided'])
def test_maps_are_not_sampled_as_if_they_were_frames(sampler):
    config = tiny_vim(**{'model.backbone.name': 'features', 'model.sampler.name': sampler})
    with pytest.raises(
        ValueError,
        match=f"'features' takes maps, and config.model.sampler.name='{sampler}' looks at frames: "
        "choose the sampler 'uniform'",
    ):
        fsar_jax.create_learner(config.model)
