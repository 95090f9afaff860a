"""The train step against slow loops: gradients, running statistics, accumulation, schedules,
dropout keys."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import SAMPLER, largest_difference, random_batch, shallow_networks, tiny_config

from fsar_jax.backbones import BatchNorm
from fsar_jax.backbones.scan import SCAN_NETWORKS
from fsar_jax.learner import create_learner
from fsar_jax.matchers.cross_transformer import CrossTransformer
from fsar_jax.mesh import episode_mesh, replicate, shard
from fsar_jax.stage import Stage
from fsar_jax.training.state import (
    create_optimizer,
    create_train_state,
    example_episode,
    flip_clips,
    fold_running_statistics,
    learning_rate_schedule,
    make_train_step,
    train_state_shapes,
)

SMALL = {
    'train.optimizer': 'sgd',
    'train.schedule': 'constant',
    'train.learning_rate': 0.01,
    'train.episodes_per_step': 4,
    'episode.query': 1,
    'model.matcher.dim': 8,
}
POOLED = {'model.backbone.name': 'features', 'data.feature_shape': (1, 1, 16)}


class Run:
    """A method with its compiled step; `step` starts from the same state every time."""

    def __init__(self, method, changes=None, start=None):
        self.config = tiny_config(method, {**SMALL, **(changes or {})}, width=8)
        with shallow_networks():
            self.learner = create_learner(self.config.model)
        self.mesh = episode_mesh()
        self.start = start or jax.tree.map(
            np.asarray, create_train_state(self.config, self.learner)
        )
        self.train_step = make_train_step(self.learner, self.config, self.mesh)
        self.episode = jax.jit(self._episode)

    def state(self):
        return replicate(self.mesh, jax.tree.map(jnp.array, self.start))

    def step(self, batch):
        state, metrics = self.train_step(self.state(), shard(self.mesh, batch, axis=1))
        return jax.tree.map(np.asarray, (state, metrics))

    def _episode(self, params, batch_stats, episode):
        """One episode alone: (loss, (accuracy, batch statistics)), and the gradient of the loss."""

        def loss(params):
            clips = [
                jnp.where(flip[..., None, None, None, None], jnp.flip(x, -2), x)
                for x, flip in (
                    (episode['support'], episode['support_flip']),
                    (episode['query'], episode['query_flip']),
                )
            ]
            key = jax.random.fold_in(jax.random.key(self.config.seed), episode['episode'])
            prediction, new = self.learner.apply(
                {'params': params, 'batch_stats': batch_stats},
                *clips,
                train=True,
                rngs={'dropout': key},
                mutable=['batch_stats'],
            )
            weights = {
                'temporal_matching': 1.0,
                'query_similarity': self.config.model.query_similarity.weight,
            }
            total = sum(
                weights[name]
                * -jax.nn.log_softmax(logits)[jnp.arange(len(logits)), episode['labels']].sum()
                for name, logits in prediction.auxiliary.items()
            )
            return total, (
                (prediction.logits.argmax(-1) == episode['labels']).mean(),
                new.get('batch_stats', {}),
            )

        return jax.value_and_grad(loss, has_aux=True)(params)

    def one_by_one(self, batch):
        """Episodes in a row, each from the batch statistics that the one before left: losses, mean
        gradient, statistics."""
        batch_stats, losses, gradients, accuracies = self.start.batch_stats, [], [], []
        for index in np.ndindex(batch['labels'].shape[:2]):
            episode = {key: value[index] for key, value in batch.items()}
            (loss, (accuracy, batch_stats)), gradient = self.episode(
                self.start.params, batch_stats, episode
            )
            losses.append(loss), gradients.append(gradient), accuracies.append(accuracy)
        mean = jax.tree.map(lambda *x: np.mean(np.stack(x), 0), *gradients)
        return np.array(losses), mean, jax.tree.map(np.asarray, batch_stats), np.mean(accuracies)


@pytest.fixture(scope='module')
def strm():
    return Run('strm')


@pytest.fixture(scope='module')
def batch(strm):
    return random_batch(strm.config)


@pytest.fixture(scope='module')
def after(strm, batch):
    return strm.step(batch)


def permuted(batch, order):
    return {key: value[:, order] for key, value in batch.items()}


@pytest.mark.slow
def test_the_start_is_what_init_gives_however_it_is_compiled(strm):
    init = jax.jit(partial(strm.learner.init, train=False))
    expected = init(jax.random.key(strm.config.seed), *example_episode(strm.config))
    # jax 0.10: the last bit of some depends on the compiler's effort.
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    jax.tree.map(near, strm.start.variables, {**expected})
    shapes = train_state_shapes(strm.config, strm.learner)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), strm.start) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )


@pytest.mark.slow
def test_a_step_equals_its_episodes_one_by_one(strm, batch, after):
    """SGD by hand: p − rate · mean gradient; the sum over queries, λ, dropout keys, flips and batch
    statistics are all in it."""
    state, metrics = after
    losses, gradient, batch_stats, accuracy = strm.one_by_one(batch)
    np.testing.assert_allclose(metrics['losses'].ravel(), losses, rtol=1e-5)
    np.testing.assert_allclose(metrics['loss'], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics['accuracy'], accuracy, rtol=1e-6)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics['gradient_norm'], norm, rtol=1e-5)
    by_hand = jax.tree.map(lambda p, g: p - 0.01 * g, strm.start.params, gradient)
    assert largest_difference(state.params, by_hand) < 1e-6
    assert largest_difference(state.params, strm.start.params) > 1e-3
    assert largest_difference(state.batch_stats, batch_stats) < 1e-6
    assert state.step == 1


@pytest.mark.slow
def test_parts_in_sequence_change_nothing(strm, batch, after):
    parts = Run('strm', {'train.accumulation_steps': 2}, strm.start)
    state, metrics = parts.step({key: x.reshape(2, 2, *x.shape[2:]) for key, x in batch.items()})
    assert largest_difference(state.params, after[0].params) < 1e-6
    assert largest_difference(state.batch_stats, after[0].batch_stats) < 1e-6
    np.testing.assert_allclose(metrics['loss'], after[1]['loss'], rtol=1e-6)
    assert metrics['losses'].shape == (2, 2)


@pytest.mark.slow
def test_a_step_on_pooled_features_equals_its_episodes_one_by_one():
    """There, all episodes pass in a loop, whatever the parts are."""
    run = Run('trm', {**POOLED, 'train.accumulation_steps': 2})
    e, rng, batch = run.config.episode, np.random.default_rng(0), random_batch(run.config)
    for name, clips in (('support', (e.way, e.shot)), ('query', (e.way * e.query,))):
        shape = (2, 2, *clips, e.frames, *run.config.data.feature_shape)
        batch[name] = rng.normal(size=shape).astype(np.float32)
        batch[f'{name}_flip'][:] = False
    state, metrics = run.step(batch)
    losses, gradient, _, accuracy = run.one_by_one(batch)
    assert metrics['losses'].shape == (2, 2)
    np.testing.assert_allclose(metrics['losses'].ravel(), losses, rtol=1e-5)
    np.testing.assert_allclose(metrics['accuracy'], accuracy, rtol=1e-6)
    by_hand = jax.tree.map(lambda p, g: p - 0.01 * g, run.start.params, gradient)
    assert largest_difference(state.params, by_hand) < 1e-6
    assert largest_difference(state.params, run.start.params) > 1e-4
    assert 'scan' in str(jax.make_jaxpr(run.train_step)(run.start, batch))


@pytest.mark.slow
def test_dropout_belongs_to_the_episode_and_not_to_its_place(strm, batch, after):
    order = [2, 0, 3, 1]
    state, metrics = strm.step(permuted(batch, order))
    np.testing.assert_allclose(metrics['losses'], after[1]['losses'][:, order], rtol=1e-6)
    assert largest_difference(state.params, after[0].params) < 1e-6
    _, other = strm.step({**batch, 'episode': batch['episode'] + 4})
    assert (np.abs(other['losses'] - after[1]['losses']) > 1e-4).all()


def test_running_statistics_remember_the_order(strm, batch, after):
    """The last episode weighs most, as in the published codes."""
    state, _ = strm.step(permuted(batch, [3, 2, 1, 0]))
    assert largest_difference(state.batch_stats, after[0].batch_stats) > 1e-5


def test_state_is_donated_and_nothing_compiles_twice(strm, batch, after):
    state = strm.state()
    for _ in range(2):
        old = state
        state, _ = strm.train_step(state, shard(strm.mesh, batch, axis=1))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert strm.train_step._cache_size() == 1


def test_parameters_that_are_not_finite_are_seen(strm, batch, after):
    assert after[1]['finite']
    state = strm.state()
    leaves, tree = jax.tree.flatten(state.params)
    state = state.replace(
        params=jax.tree.unflatten(tree, [leaves[0].at[0].set(jnp.nan), *leaves[1:]])
    )
    _, metrics = strm.train_step(state, shard(strm.mesh, batch, axis=1))
    assert not metrics['finite']


def test_the_loss_falls_on_one_batch(strm, batch, after):
    state = strm.state()
    for _ in range(20):
        state, metrics = strm.train_step(state, shard(strm.mesh, batch, axis=1))
    assert metrics['loss'] < 0.7 * after[1]['loss']


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['joint', 'frozen'])
def test_batch_norm_modes(mode):
    run = Run('protonet', {'model.backbone.batch_norm': mode, 'train.episodes_per_step': 3})
    batch = random_batch(run.config)
    state, _ = run.step(batch)
    change = largest_difference(state.batch_stats, run.start.batch_stats)
    if mode == 'frozen':
        assert change == 0
    else:
        assert change > 1e-3
        assert largest_difference(state.batch_stats, run.one_by_one(batch)[2]) < 1e-6


def test_folding_statistics_equals_a_loop():
    rng = np.random.default_rng(0)
    start, updates, decay = rng.normal(size=3), rng.normal(size=(6, 3)), 0.81
    sequence = start
    for update in updates:
        sequence = decay * sequence + update
    alone = {'mean': jnp.asarray(decay * start + updates, jnp.float32)}
    folded = fold_running_statistics({'mean': jnp.asarray(start, jnp.float32)}, alone, decay)
    np.testing.assert_allclose(folded['mean'], sequence, rtol=1e-5)
    assert fold_running_statistics({}, {}, decay) == {}
    # An accelerator rounds the factors of float32 products unless it is told not to.
    fold = lambda r, r_e: fold_running_statistics(r, r_e, decay)
    traced = jax.make_jaxpr(fold)(jnp.zeros(4), jnp.zeros((3, 4)))
    assert 'HIGHEST' in str(traced)


def test_running_statistics_of_a_sampler_have_the_momentum_of_its_scan_network():
    for name in SCAN_NETWORKS:
        learner = create_learner(tiny_config('vim', {'model.sampler.scan_network': name}).model)
        momentum = 0.99 if name.startswith('efficientnet') else 0.9
        assert learner.sampler.batch_norm_momentum == momentum, name


class OfAUser(Stage):
    """A backbone that is a batch norm."""

    frozen: bool = False

    @nn.compact
    def __call__(self, frames, train=False):
        return BatchNorm(name='bn')(frames, train)


class Frozen(OfAUser):
    @nn.compact
    def __call__(self, frames, train=False):
        return BatchNorm(frozen=self.frozen, name='bn')(frames, train)


class OfFlax(OfAUser):
    @nn.compact
    def __call__(self, frames, train=False):
        running = not train or self.frozen
        return nn.BatchNorm(use_running_average=running, name='bn')(frames)


class OfFlaxAtItsMomentum(OfFlax):
    batch_norm_momentum = 0.99


def traced_step(backbone, rule):
    """The shapes of a step with this backbone and config.model.backbone.batch_norm."""
    config = tiny_config('protonet', {**SMALL, 'model.backbone.batch_norm': rule})
    frozen = {'frozen': True} if rule == 'frozen' else {}
    learner = create_learner(config.model, backbone=backbone(**frozen))
    state = train_state_shapes(config, learner)
    step = make_train_step(learner, config, episode_mesh(1))
    return jax.eval_shape(step, state, random_batch(config))


@pytest.mark.parametrize(
    'backbone, rule, message',
    [
        (OfAUser, 'frozen', "bn of backbone OfAUser normalises by the batch, although batch_norm"),
        (OfFlax, 'split', 'bn of backbone OfFlax has momentum 0.99, and the class says 0.9: use'),
        (OfFlax, 'joint', 'bn of backbone OfFlax has momentum 0.99, and the class says 0.9: use'),
    ],
)
def test_a_batch_norm_that_would_not_do_as_the_config_says_is_one_line(backbone, rule, message):
    with pytest.raises(ValueError, match=f'^the batch norm {message}'):
        traced_step(backbone, rule)


@pytest.mark.parametrize(
    'backbone, rule',
    [(OfAUser, 'split'), (Frozen, 'frozen'), (OfFlax, 'frozen'), (OfFlaxAtItsMomentum, 'split')],
)
def test_a_batch_norm_that_does_is_taken(backbone, rule):
    state, _ = traced_step(backbone, rule)
    assert set(state.batch_stats) == {'backbone'}


@pytest.mark.slow
def test_a_stage_has_a_learning_rate_of_its_own(monkeypatch):
    def moved(rate):
        monkeypatch.setattr(CrossTransformer, 'rate', rate)
        run = Run('trm', {'train.episodes_per_step': 1, 'model.backbone.trained': False})
        after, _ = run.step(random_batch(run.config))
        return jax.tree.map(lambda a, b: a - b, after.params, run.start.params)

    usual, half = moved(1.0), moved(0.5)
    assert not any(np.any(x) for x in jax.tree.leaves(usual['backbone']))
    for ours, theirs in zip(jax.tree.leaves(half['matcher']), jax.tree.leaves(usual['matcher'])):
        np.testing.assert_allclose(ours, theirs / 2, rtol=1e-3, atol=1e-7)
    assert any(np.any(x) for x in jax.tree.leaves(usual['matcher']))


@pytest.mark.slow
def test_a_scan_network_that_is_not_trained_stays_as_it_starts():
    changes = {
        **SAMPLER,
        'model.sampler.name': 'task_adaptive',
        'train.optimizer': 'adam',
        'train.weight_decay': 0.1,
        'train.episodes_per_step': 1,
    }

    def moved(trained):
        run = Run('protonet', {**changes, 'model.sampler.scan_trained': trained})
        batch = random_batch(run.config)
        after, _ = run.step(batch)
        moved = lambda a, b: np.abs(a - b).max() > 0
        params = jax.tree.map(moved, after.params, run.start.params)
        stats = jax.tree.map(moved, after.batch_stats, run.start.batch_stats)
        return params['sampler'].pop('scan_network'), stats['sampler'], params

    for trained in (True, False):
        *of_scan, rest = moved(trained)
        assert all(any(jax.tree.leaves(tree)) == trained for tree in of_scan)
        assert any(jax.tree.leaves(rest['sampler'])) and any(jax.tree.leaves(rest['backbone']))


def test_flips_mirror_the_width_of_flagged_clips_only():
    clips = np.arange(2 * 2 * 3 * 4 * 5 * 3).reshape(2, 2, 3, 4, 5, 3)
    flip = np.array([[True, False], [False, True]])
    flipped = np.asarray(flip_clips(clips, flip))
    for index in np.ndindex(2, 2):
        expected = clips[index][:, :, ::-1] if flip[index] else clips[index]
        np.testing.assert_array_equal(flipped[index], expected)


def rates(**changes):
    config = tiny_config(
        'strm',
        {
            'train.num_steps': 10,
            'train.learning_rate': 0.5,
            **{f'train.{key}': value for key, value in changes.items()},
        },
    )
    return np.array([learning_rate_schedule(config.train)(step) for step in range(11)])


def test_learning_rates():
    np.testing.assert_allclose(rates(schedule='constant'), 0.5)
    cosine = 0.25 * (1 + np.cos(np.pi * np.arange(11) / 10))
    np.testing.assert_allclose(rates(schedule='cosine'), cosine, atol=1e-7)
    warm = rates(schedule='cosine', warmup_steps=4)
    np.testing.assert_allclose(warm[:5], [0, 0.125, 0.25, 0.375, 0.5], atol=1e-7)
    assert warm[10] == 0 and (np.diff(warm[4:]) < 0).all()
    # From the step after 3 and 7 finished ones on.
    steps = [0.5] * 3 + [0.05] * 4 + [0.005] * 4
    np.testing.assert_allclose(rates(schedule='steps', schedule_steps=(3, 7)), steps, rtol=1e-6)
    np.testing.assert_allclose(
        rates(schedule='steps', schedule_steps=(4,), schedule_factor=0.5), [0.5] * 4 + [0.25] * 7
    )
    np.testing.assert_allclose(
        rates(schedule='steps', schedule_steps=(3, 7), warmup_steps=2)[2:], steps[2:], rtol=1e-6
    )


def test_a_periodic_schedule_is_the_steps_that_one_would_list():
    halved = lambda step: 0.5 * 0.5 ** (step // 4)
    expected = [halved(step) for step in range(11)]
    by_period = {'schedule': 'periodic', 'schedule_every': 4, 'schedule_factor': 0.5}
    np.testing.assert_allclose(rates(**by_period), expected, rtol=1e-6)
    listed = rates(schedule='steps', schedule_steps=(4, 8), schedule_factor=0.5)
    np.testing.assert_allclose(rates(**by_period), listed, rtol=1e-6)
    # Counted from the end of the warm-up.
    warm = rates(**by_period, warmup_steps=2)
    np.testing.assert_allclose(warm, [0, 0.25, *expected[:9]], rtol=1e-6)
    # No drop comes a step early or late, as far as the longest preset goes.
    config = tiny_config('strm', {f'train.{key}': value for key, value in by_period.items()})
    config.train.update(learning_rate=1.0, schedule_every=125)
    around = np.array([125 * k + shift for k in range(1, 41) for shift in (-1, 0)])
    rate = np.asarray(jax.vmap(learning_rate_schedule(config.train))(around))
    np.testing.assert_allclose(rate, 0.5 ** (around // 125.0), rtol=1e-5)


def updated(params, gradients, **changes):
    config = tiny_config(
        'strm',
        {
            'train.schedule': 'constant',
            'train.learning_rate': 0.1,
            **{f'train.{key}': value for key, value in changes.items()},
        },
    )
    optimizer = create_optimizer(config.train)
    state = optimizer.init(params)
    for gradient in gradients:
        update, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = params + update
    return np.asarray(params)


def test_optimisers_by_hand():
    p, g, h = np.array([1.0, -2.0]), np.array([3.0, 4.0]), np.array([1.0, 0.0])
    sgd = partial(updated, jnp.asarray(p, jnp.float32), optimizer='sgd')
    np.testing.assert_allclose(sgd([g, h]), p - 0.1 * (g + h), rtol=1e-6)
    np.testing.assert_allclose(sgd([g, h], momentum=0.9), p - 0.1 * (g + 0.9 * g + h), rtol=1e-6)
    np.testing.assert_allclose(sgd([g], weight_decay=0.2), p - 0.1 * (g + 0.2 * p), rtol=1e-6)
    np.testing.assert_allclose(sgd([g], clip_norm=1.0), p - 0.1 * g / 5, rtol=1e-6)
    np.testing.assert_allclose(sgd([h], clip_norm=2.0), p - 0.1 * h, rtol=1e-6)
    # Adam's first step is the sign; its weight decay does not pass through the moments.
    adam = updated(jnp.asarray(p, jnp.float32), [g], optimizer='adam', weight_decay=0.2)
    np.testing.assert_allclose(adam, p - 0.1 * (np.sign(g) + 0.2 * p), rtol=1e-5)
