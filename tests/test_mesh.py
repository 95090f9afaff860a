"""Sharding over one device here, eight simulated devices and two processes in subprocesses."""

import os
import socket
import subprocess
import sys
import textwrap
import types

import jax
import numpy as np
import pytest

from fsar_jax import mesh as meshes
from fsar_jax import programs
from fsar_jax.config import default_config
from fsar_jax.training.inputs import _devices

CPU = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
EIGHT_DEVICES = {**CPU, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}


def run_python(code, env=None):
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_one_device_keeps_values_and_names_its_axis():
    mesh = meshes.episode_mesh()
    batch = {'support': np.arange(24).reshape(2, 3, 4), 'labels': np.ones((2, 3))}
    on_device = meshes.shard(mesh, batch, 1)
    assert mesh.axis_names == ('episodes',)
    assert on_device['support'].sharding.spec == jax.sharding.PartitionSpec(None, 'episodes')
    np.testing.assert_array_equal(on_device['support'], batch['support'])
    np.testing.assert_array_equal(meshes.local_rows(mesh, 5), np.arange(5))


def test_eight_devices_split_episodes_and_copy_parameters():
    run_python(
        '''
        import jax, numpy as np, pytest
        from fsar_jax import mesh as meshes
        mesh = meshes.episode_mesh()
        x = np.arange(2 * 16 * 3).reshape(2, 16, 3)
        y = meshes.shard(mesh, {'x': x}, 1)['x']
        np.testing.assert_array_equal(y, x)
        for piece in y.addressable_shards:
            assert piece.data.shape == (2, 2, 3)
            np.testing.assert_array_equal(piece.data, x[piece.index])
        w = meshes.replicate(mesh, {'w': np.ones(3), 'key': jax.random.key(0)})
        assert w['w'].sharding.is_fully_replicated and len(w['w'].addressable_shards) == 8
        assert meshes.round_up(9, mesh) == 16
        sizes = [meshes.episode_mesh(episodes).size for episodes in (1, 4, 6, 11, 12, 16)]
        assert sizes == [1, 4, 6, 1, 6, 8]
        message = '6 episodes do not divide over 8 devices: make config.train.ep'
        with pytest.raises(ValueError, match=message):
            meshes.shard(mesh, np.zeros((1, 6)), 1)
    ''',
        env=EIGHT_DEVICES,
    )


@pytest.mark.slow
def test_two_processes_put_their_parts_together():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    code = '''
        import sys, jax, numpy as np
        jax.distributed.initialize('127.0.0.1:PORT', 2, int(sys.argv[1]))
        from fsar_jax import mesh as meshes
        mesh = meshes.episode_mesh()
        rows = meshes.local_rows(mesh, 8)
        full = np.arange(8.0) ** 2
        weights = meshes.replicate(mesh, {'w': jax.numpy.arange(8.0), 'key': jax.random.key(1)})
        weights = meshes.replicate(mesh, weights)            # again: the same
        total = jax.jit(lambda x, w: (x * w).sum())(meshes.shard(mesh, full[rows], 0), weights['w'])
        jax.random.normal(weights['key'], ())
        assert float(total) == float((full * np.arange(8.0)).sum()), total
        print(rows.tolist())
    '''
    code = textwrap.dedent(code).replace('PORT', str(port))
    command = [sys.executable, '-c', code]
    both = [
        subprocess.Popen(
            command + [str(i)], env=CPU, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], said
    assert [out.split('\n')[-2] for out, _ in said] == ['[0, 1, 2, 3]', '[4, 5, 6, 7]']


def test_the_devices_of_a_process_are_neighbours():
    """As a TPU pod lists them, along its wires; the loader gives each process its share in turn."""
    pod = [types.SimpleNamespace(process_index=p, id=i) for i, p in enumerate([0, 0, 1, 1, 0, 1])]
    assert [(d.process_index, d.id) for d in meshes.in_order(reversed(pod))] == [
        (0, 0),
        (0, 1),
        (0, 4),
        (1, 2),
        (1, 3),
        (1, 5),
    ]


def device(platform, **attributes):
    return types.SimpleNamespace(device_kind='a chip', platform=platform, **attributes)


H100, T4 = (device('gpu', compute_capability=version) for version in ('9.0', '7.5'))
DEVICES = (device('cpu'), H100, T4, device('gpu', compute_capability='gfx90a'), device('tpu'))
BY_DEFAULT = ['float32', 'tensorfloat32', 'float32', 'default', 'bfloat16']


@pytest.mark.parametrize(
    'asked, products',
    [
        (None, BY_DEFAULT),
        ('bfloat16', BY_DEFAULT),  # what JAX also calls the default
        ('highest', ['float32'] * 5),
        ('float32', ['float32'] * 5),
        ('high', ['float32', *['high'] * 4]),
    ],
)
def test_float32_products_are_what_the_device_makes_of_them(asked, products):
    with jax.default_matmul_precision(asked):
        assert [meshes.float32_products(device) for device in DEVICES] == products


@pytest.mark.parametrize(
    'found, dtype, asked, said',
    [
        (H100, 'float32', None, True),
        (device('tpu'), 'float32', None, True),
        (H100, 'float32', 'highest', False),
        (T4, 'float32', None, False),
        (H100, 'bfloat16', None, False),
        (device('cpu'), 'float32', None, False),
    ],
)
def test_the_plan_says_when_float32_products_are_rounded(found, dtype, asked, said):
    config = default_config()
    config.model.dtype = dtype
    one = types.SimpleNamespace(size=1, devices=np.array([found]))
    with jax.default_matmul_precision(asked):
        line = _devices(config, one)
    assert (' unless JAX_DEFAULT_MATMUL_PRECISION=highest)' in line) == said, line


@pytest.mark.parametrize(
    'asked, error, line',
    [
        # as JAX says it where the plugin is there, and no GPU
        ('cuda', AssertionError(), r"^JAX finds no device for JAX_PLATFORMS=cuda: .*\.\[cuda\]'"),
        ('tpu', RuntimeError('no TPU\nmore'), r'JAX_PLATFORMS=tpu \(no TPU\): unset it'),
        (None, RuntimeError('old driver'), r'^JAX .* device \(old driver\): JAX_PLATFORMS=cpu'),
    ],
)
def test_devices_that_do_not_start_are_one_line(monkeypatch, asked, error, line):
    def start():
        raise error

    monkeypatch.setattr(jax, 'devices', start)
    monkeypatch.delenv('JAX_PLATFORMS')
    if asked:
        monkeypatch.setenv('JAX_PLATFORMS', asked)
    monkeypatch.setattr(programs, 'keep_freed_memory', lambda: None)
    for first in (meshes.episode_mesh, lambda: programs.prepare(keep=False)):
        with pytest.raises(ValueError, match=line) as caught:
            first()
        assert '\n' not in str(caught.value)
