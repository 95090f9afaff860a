"""Save, keep, restore, die in the middle of a save, and refuse another model."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from fsar_jax.training.checkpoint_files import saved_settings
from fsar_jax.training.checkpoints import Checkpoints


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: tuple
    key: jax.Array


def make_state(step, features=3, dtype=jnp.float32, extra=False):
    dense = {
        'kernel': jnp.full((4, features), step, dtype),
        'bias': jnp.arange(features, dtype=dtype),
    }
    params = {'dense': dense}
    if extra:
        params['patch_enrichment'] = {'gamma': jnp.ones(())}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return State(jnp.int32(step), params, {}, optimizer.init(params), jax.random.key(step))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_round_trip_of_state_metrics_and_config(tmp_path):
    matcher = {'name': 'prototypes', 'cardinalities': (2, 3)}
    config = ml_collections.ConfigDict({'model': {'matcher': matcher}})
    metrics = {'val_accuracy': 0.25, 'history': [[2, 0.25]]}
    with Checkpoints(tmp_path / 'checkpoints', config=config) as checkpoints:
        assert checkpoints.latest_step is None and checkpoints.best_step is None
        assert checkpoints.save(2, make_state(2), metrics)
        assert not checkpoints.save(2, make_state(5), metrics)
    with Checkpoints(tmp_path / 'checkpoints', read_only=True) as checkpoints:
        state, restored_metrics = checkpoints.restore(jax.eval_shape(lambda: make_state(0)))
        assert_same(state, make_state(2))
        assert restored_metrics == metrics
    written = json.loads((tmp_path / 'checkpoints' / 'config.json').read_text())
    assert written['model']['matcher'] == {'name': 'prototypes', 'cardinalities': [2, 3]}


def test_donating_the_state_right_after_the_save_is_safe(tmp_path):
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros(1_000_000)
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        for step in range(1, 5):
            x = advance(x)
            checkpoints.save(step, {'x': x})
        for step in range(1, 5):
            state, _ = checkpoints.restore({'x': x}, step)
            assert np.unique(state['x']) == [step]


def test_keeps_the_last_and_the_best_and_the_earliest_of_equals(tmp_path):
    accuracy = {1: 0.5, 2: 0.7, 3: 0.6, 4: 0.7, 5: 0.1, 6: 0.2}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, value in accuracy.items():
            checkpoints.save(step, make_state(step), {'val_accuracy': value})
        checkpoints.save(7, make_state(7), {})  # without validation: never the best
        checkpoints.wait()
        assert checkpoints.best_step == 2
    with Checkpoints(tmp_path, keep=2) as checkpoints:  # the same after a restart
        assert (checkpoints.steps, checkpoints.latest_step, checkpoints.best_step) == (
            [2, 6, 7],
            7,
            2,
        )
        state, metrics = checkpoints.restore(make_state(0), checkpoints.best_step)
        assert_same(state, make_state(2))
        assert metrics == {'val_accuracy': 0.7}


def test_another_model_is_one_line_that_names_the_leaves(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(3))
        checkpoints.wait()
        with pytest.raises(ValueError) as error:
            checkpoints.restore(make_state(0, features=5))
        message = str(error.value)
        assert '\n' not in message and 'is of another model' in message
        assert (
            'params/dense/kernel is float32[4,3] in the checkpoint, float32[4,5] in the model '
            'asked for' in message
        )
        assert 'and 1 more' in message  # kernel and bias, in params, mu and nu: 6
        with pytest.raises(
            ValueError, match=r'patch_enrichment/gamma float32\[\] is not in the checkpoint'
        ):
            checkpoints.restore(make_state(0, extra=True))
        with pytest.raises(
            ValueError, match=r'params/dense/bias float32\[3\] is not in the model asked for'
        ):
            checkpoints.restore({'params': {'dense': {'kernel': jnp.zeros((4, 3))}}})
        with pytest.raises(
            ValueError, match=r'bias is float32\[3\] in the checkpoint, bfloat16\[3\]'
        ):
            checkpoints.restore(make_state(0, dtype=jnp.bfloat16))


def test_tells_the_settings_of_the_run_that_made_the_checkpoints(tmp_path):
    config = ml_collections.ConfigDict({'model': {'matcher': {'name': 'prototypes'}}, 'seed': 0})
    assert saved_settings(tmp_path / 'nothing') == {}
    with Checkpoints(tmp_path, config=config) as checkpoints:
        assert saved_settings(tmp_path) == {}
        checkpoints.save(1, make_state(1))
    assert saved_settings(tmp_path) == {'model.matcher.name': 'prototypes', 'seed': 0}


def test_absent_checkpoints_are_one_line(tmp_path):
    with pytest.raises(
        FileNotFoundError, match='no checkpoint in .*nowhere: train first, or check --work'
    ):
        Checkpoints(tmp_path / 'nowhere', read_only=True)
    assert not (tmp_path / 'nowhere').exists()
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match=r'no checkpoint in .* \(there: none\)'):
            checkpoints.restore(make_state(0))
        checkpoints.save(4, make_state(4))
        with pytest.raises(FileNotFoundError, match=r'no checkpoint of step 9 in .* \(there: 4\)'):
            checkpoints.restore(make_state(0), 9)


def test_metrics_that_are_not_json_are_refused_before_anything_is_written(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for bad in (float('nan'), np.float32(0.5)):
            with pytest.raises(ValueError, match='metrics of step 1 cannot be written as JSON'):
                checkpoints.save(1, make_state(1), {'val_accuracy': bad})
    assert os.listdir(tmp_path) == []


KILLED = '''
    import os, signal, sys, threading, time
    import jax.numpy as jnp
    from fsar_jax.training.checkpoints import Checkpoints
    checkpoints = Checkpoints(sys.argv[1], keep=1)
    for step in range(1, 1000):
        state = {'step': jnp.int32(step), 'x': jnp.full(5_000_000, step, jnp.float32)}
        checkpoints.save(step, state, {'val_accuracy': 1 / step})
        print(step, flush=True)
'''


@pytest.mark.slow
def test_a_kill_in_the_middle_of_a_save_leaves_the_earlier_checkpoints(tmp_path):
    abstract = {'step': jnp.int32(0), 'x': jnp.zeros(5_000_000, jnp.float32)}
    reached = 0
    for milliseconds in (0, 10, 30):
        command = [sys.executable, '-c', textwrap.dedent(KILLED), str(tmp_path / str(milliseconds))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            reached = int(process.stdout.readline())
        time.sleep(milliseconds / 1000)  # anywhere between two steps
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with Checkpoints(tmp_path / str(milliseconds), keep=1) as checkpoints:
            assert checkpoints.latest_step >= reached - 1 and checkpoints.best_step == 1
            for step in (checkpoints.latest_step, checkpoints.best_step):
                state, _ = checkpoints.restore(abstract, step)
                assert state['step'] == step and np.unique(state['x']) == [step]
            after = checkpoints.latest_step + 1
            assert checkpoints.save(after, {'step': jnp.int32(after), 'x': abstract['x']})
            checkpoints.wait()
            assert checkpoints.steps == [1, after]
        left = os.listdir(tmp_path / str(milliseconds))  # no debris of the save that was killed
        assert sorted(left) == ['1', str(after)]


SAVE_ON_EIGHT = '''
    import sys, jax, jax.numpy as jnp
    from fsar_jax import mesh as meshes
    from fsar_jax.training.checkpoints import Checkpoints
    mesh = meshes.episode_mesh()
    state = {'params': meshes.replicate(mesh, jnp.arange(6.0)),
             'rows': jax.device_put(jnp.arange(16.0), meshes.along(mesh, 0))}
    with Checkpoints(sys.argv[1]) as checkpoints:
        checkpoints.save(1, state, {'val_accuracy': 0.5})
'''


@pytest.mark.slow
def test_saved_on_eight_devices_restored_on_one(tmp_path):
    env = {
        **os.environ,
        'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
        'JAX_PLATFORMS': 'cpu',
    }
    subprocess.run(
        [sys.executable, '-c', textwrap.dedent(SAVE_ON_EIGHT), str(tmp_path)],
        env=env,
        check=True,
        timeout=120,
    )
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        'params': jax.ShapeDtypeStruct((6,), jnp.float32, sharding=here),
        'rows': jax.ShapeDtypeStruct((16,), jnp.float32, sharding=here),
    }
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(abstract)
    np.testing.assert_array_equal(state['params'], np.arange(6.0))
    np.testing.assert_array_equal(state['rows'], np.arange(16.0))
    assert state['rows'].sharding == here


def test_an_error_in_one_of_several_processes_waits_for_no_other(tmp_path, monkeypatch):
    """The others are in their step, and will not come to a meeting."""
    meeting = lambda *given: pytest.fail('it waits for the other processes')
    with pytest.raises(ValueError, match='a file is gone'):
        with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
            checkpoints.save(1, make_state(1))
            checkpoints.wait_for_files()
            monkeypatch.setattr(jax, 'process_count', lambda: 2)
            monkeypatch.setattr('fsar_jax.training.checkpoints._in_all_processes', meeting)
            raise ValueError('a file is gone')
    assert (tmp_path / 'checkpoints' / '1').is_dir()
