"""ResNets as TSM: channels that move between the frames of a clip (Lin et al. 2019)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import gradient
from test_backbones import backbone_config
from tiny_run import random_variables, tiny_config

from fsar_jax import backbones
from fsar_jax.backbones.resnet import BasicBlock, BottleneckBlock, shift_in_time
from fsar_jax.learner import create_learner


def by_hand(x, clip_length):
    """The published module, frame by frame: an eighth from the next, an eighth from the last."""
    moved, part = np.array(x), x.shape[-1] // 8
    for frame in range(len(x)):
        first, last = frame % clip_length == 0, frame % clip_length == clip_length - 1
        moved[frame, ..., :part] = 0 if last else x[frame + 1, ..., :part]
        moved[frame, ..., part : 2 * part] = 0 if first else x[frame - 1, ..., part : 2 * part]
    return moved


def test_channels_move_by_one_frame_within_a_clip():
    x = np.random.default_rng(0).standard_normal((12, 2, 3, 19)).astype(np.float32)
    for clip_length in (1, 3, 4):
        np.testing.assert_array_equal(shift_in_time(x, clip_length), by_hand(x, clip_length))
    assert shift_in_time(x, 0) is x


def test_the_gradient_moves_back():
    """Against finite differences of the loops, in float64."""
    x, weights = np.random.default_rng(2).standard_normal((2, 4, 1, 2, 17))
    slow = gradient(lambda x: (weights * np.tanh(by_hand(x, 2))).sum(), x)
    found = jax.grad(lambda x: (weights * jnp.tanh(shift_in_time(x, 2))).sum())(jnp.asarray(x))
    np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', [BasicBlock, BottleneckBlock])
def test_a_block_moves_what_it_transforms_and_not_its_shortcut(kind):
    """relu(F(moved) + x) = relu(F(moved) + moved) − moved + x, where F is far above 0."""
    x = np.random.default_rng(1).standard_normal((6, 4, 4, 16)).astype(np.float32)
    plain = kind(16 // kind.expansion, 1, {})
    variables = random_variables(plain, x, train=True)
    last = variables['params']['bn2' if kind is BasicBlock else 'bn3']
    last['bias'] += 20
    moved = by_hand(x, 3)
    want = plain.apply(variables, moved, False) - moved + x
    got = kind(16 // kind.expansion, 1, {}, clip_length=3).apply(variables, x, False)
    assert np.min(want) > 0  # so no rectifier hides a difference
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('name', ['resnet_small', pytest.param('resnet50', marks=pytest.mark.slow)])
def test_a_network_sees_as_far_in_time_as_it_has_blocks(name):
    """resnet_small has three, so a frame sees three to either side; no clip sees another. The
    parameters are those of the network without the shift, so ImageNet weights load."""
    length = 9
    config = backbone_config(name, width=8, temporal_shift=True)
    module, plain = (
        backbones.create(backbone_config(name, width=8, temporal_shift=shift))
        for shift in (True, False)
    )
    assert module.takes_clips and not plain.takes_clips and config.temporal_shift
    clips = jax.random.uniform(jax.random.key(0), (2, length, 32, 32, 3))
    variables = random_variables(plain, clips[0])
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), clips, False))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
    maps = module.apply(variables, clips)
    assert maps.shape[:2] == (2, length)
    changed = module.apply(variables, clips.at[0, 4].set(0.0))
    moves = jnp.abs(changed - maps).max((-3, -2, -1)) > 0
    reach = 3 if name == 'resnet_small' else length
    seen = [abs(t - 4) <= reach for t in range(length)]
    np.testing.assert_array_equal(moves, [seen, [False] * length])


def test_frames_and_clips_are_told_apart():
    for shift, shape in ((True, (2, 32, 32, 3)), (False, (2, 4, 32, 32, 3))):
        module = backbones.create(backbone_config('resnet_small', temporal_shift=shift))
        with pytest.raises(AssertionError, match='rank'):
            jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))


def test_a_method_compares_clips_that_a_shift_has_seen():
    """One setting makes any method one over TSM: the order of frames counts in its features."""
    config = tiny_config('protonet', {'model.backbone.temporal_shift': True}, width=8)
    learner = create_learner(config.model)
    support = jax.random.uniform(jax.random.key(0), (3, 1, 4, 32, 32, 3))
    variables = random_variables(learner, support, support[:, 0])
    forth = learner.apply(variables, support[:, 0], method=learner.embed)['temporal_matching']
    back = learner.apply(variables, support[:, 0, ::-1], method=learner.embed)['temporal_matching']
    for one, other in zip(jax.tree.leaves(forth), jax.tree.leaves(back), strict=True):
        assert one.shape == other.shape and not np.allclose(one, other[:, ::-1], atol=1e-3)
