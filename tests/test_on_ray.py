"""Parts of a command as tasks on a Ray cluster: what they ask for, what they return, and on a
cluster of two nodes, one of which is killed, the same files as without one."""

import contextlib
import importlib.util
import os
import pathlib
import socket
import sys
import threading
import time
import types

import numpy as np
import pytest
from test_sweep import NAMES, calls
from test_sweep import folder as rows  # noqa: F401, a fixture
from tiny_run import CPU, REPOSITORY, TINY

from fsar_jax import build, extract, on_ray, sweep
from fsar_jax.evaluation.results import read_results
from fsar_jax.ingest.video_files import write_video

with_ray = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec('ray') is None,
        reason="Ray is not installed: pip install 'fsar_jax[ray]'",
    ),
]


@pytest.mark.parametrize(
    'nodes, cpus, options, slots',
    [
        ([{'CPU': 16}, {'CPU': 5}, {}], 2, {'num_cpus': 2}, 10),
        ([{'CPU': 64, 'GPU': 8}, {'CPU': 16, 'GPU': 4}], 0, {'num_gpus': 1, 'num_cpus': 4}, 12),
        ([{'CPU': 64, 'GPU': 8}, {'CPU': 16}], 1, {'num_cpus': 1}, 80),
        ([{'CPU': 8}, {'CPU': 200, 'TPU': 4}, {'TPU': 4}], 0, {'resources': {'TPU': 4}}, 2),
        ([{'CPU': 0}, {'CPU': 4}, {'CPU': 9}], 0, {'num_cpus': 4}, 3),
        ([{'CPU': 0}], 0, {'num_cpus': 1}, 1),  # one that starts its nodes when they are asked for
    ],
)
def test_what_a_task_asks_for_and_how_many_run_at_once(nodes, cpus, options, slots):
    assert on_ray.room_for(nodes, cpus) == (options, slots)


def test_the_flag_may_have_no_address_and_parts_do_not_get_it():
    assert on_ray.spelled_out(['vim-t4', '--ray', 'x', '--ray=h:1']) == [
        'vim-t4',
        '--ray=auto',
        'x',
        '--ray=h:1',
    ]
    assert on_ray.without_ray(['--ray', 'vim-t4', '--ray=h:1', '--rays']) == ['vim-t4', '--rays']


def fails(part):
    raise {'value': ValueError('two\nlines'), 'exit': SystemExit('error: a wrong flag')}[part]


def doubled(part):
    return 2 * part, os.getcwd()


def test_a_part_runs_in_the_folder_of_the_command_and_an_error_is_one_line(tmp_path):
    assert on_ray.call('test_on_ray:doubled', 4, str(tmp_path)) == (8, str(tmp_path))
    assert on_ray.call('test_on_ray:fails', 'value', str(tmp_path)).line == 'two lines'
    assert on_ray.call('test_on_ray:fails', 'exit', str(tmp_path)).line == 'a wrong flag'
    missing = on_ray.call('test_on_ray:doubled', 4, str(tmp_path / 'not there'))
    assert 'not there is not on every node of the Ray cluster' in missing.line


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        self.cause = cause


@pytest.fixture
def address():
    """HOST:PORT at which something listens."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        yield f'127.0.0.1:{server.getsockname()[1]}'


def stand_in_for_ray(lost=(), bug=None):
    """The calls of Ray that `Cluster` makes, here, one part after the other, the last one first."""
    ray, asked = types.ModuleType('ray'), []
    ray.exceptions = types.SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    ray.init = lambda address, **options: asked.append(address)
    ray.shutdown = lambda: asked.append('shut down')

    def remote(**options):
        asked.append(options)
        return lambda call: types.SimpleNamespace(remote=lambda *args: (call, args))

    def get(reference):
        call, (function, part, where) = reference
        if part in lost:
            raise RayError('The node died.')
        if bug:
            raise RayTaskError(bug)
        return call(function, part, where)

    ray.remote, ray.get = remote, get
    ray.wait = lambda waiting, num_returns, timeout: (waiting[-1:], waiting[:-1])
    return ray, asked


def test_parts_are_returned_as_they_end(monkeypatch, address):
    ray, asked = stand_in_for_ray()
    monkeypatch.setitem(sys.modules, 'ray', ray)
    with on_ray.Cluster(address) as cluster:
        ended = list(cluster.run('test_on_ray:doubled', [1, 2, 3], {'num_cpus': 2}))
    assert [[(n, found) for n, (found, _) in part] for part in ended] == [
        [(2, 6)],
        [(1, 4)],
        [(0, 2)],
    ]
    assert asked == [address, {'max_retries': 10, 'num_cpus': 2}, 'shut down']


@pytest.mark.parametrize(
    'parts, lost, bug, line',
    [
        (['value'], (), None, '^two lines$'),
        ([1, 2], (1,), None, r'^part 1 of 2 was lost with its worker 11 times \(The node died\.\)'),
        ([1], (), ImportError('no fsar_jax'), 'cannot import fsar_jax .no fsar_jax.: install it'),
    ],
)
def test_what_fails_ends_the_command_with_one_line(monkeypatch, address, parts, lost, bug, line):
    ray, asked = stand_in_for_ray(lost, bug)
    monkeypatch.setitem(sys.modules, 'ray', ray)
    function = 'test_on_ray:fails' if parts == ['value'] else 'test_on_ray:doubled'
    with pytest.raises(ValueError, match=line), on_ray.Cluster(address) as cluster:
        list(cluster.run(function, parts, {}))
    assert asked[-1] == 'shut down'


def test_without_ray_or_a_cluster_the_command_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv('RAY_ADDRESS', raising=False)
    monkeypatch.setattr(on_ray, 'STARTED_HERE', tmp_path / 'none')
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'fsar_jax\[ray\]'"):
        on_ray.Cluster('auto')
    ray, _ = stand_in_for_ray()

    def init(address, **options):
        raise ConnectionError('Could not find\nany running instance')

    ray.init = init
    monkeypatch.setitem(sys.modules, 'ray', ray)
    with pytest.raises(
        ValueError, match='--ray=auto: there is no Ray cluster .*`ray start --head`'
    ):
        on_ray.Cluster('auto')
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv('RAY_ADDRESS', f'127.0.0.1:{port}')  # nothing listens there any more
    for address in (f'127.0.0.1:{port}', 'auto'):
        with pytest.raises(ValueError, match=f'--ray={address}: .*Connection refused'):
            on_ray.Cluster(address)
    for flags in (['--shards=0/2'], ['--finish']):
        with pytest.raises(ValueError, match='give no --shards or --finish'):
            build.build(build.parse(['--dataset=synthetic_actions/aligned', '--ray', *flags]))
    with pytest.raises(ValueError, match='give no --rows'):
        sweep.main(['vim-t4', '--ray', '--rows=0/2'])


# ── With Ray ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope='module')
def cluster():
    """A cluster of this machine without cores. `two_nodes` adds nodes."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for key, value in CPU.items():  # of the nodes, whose workers inherit it
            patch.setenv(key, value)
        paths = [REPOSITORY, REPOSITORY / 'tests']
        patch.setenv('PYTHONPATH', os.pathsep.join(map(str, paths)))
        patch.setattr(on_ray, 'LOOK_SECONDS', 0.2)
        started = Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
        yield started
        started.shutdown()


@contextlib.contextmanager
def two_nodes(cluster, begun):
    """Two nodes of one core. In the block, the second is killed as soon as `begun()` is true."""
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    over, killed = threading.Event(), []

    def kill():
        while not over.is_set():
            if begun():
                cluster.remove_node(nodes[1], allow_graceful=False)
                killed.append(nodes.pop())
                return
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield cluster.address
    finally:
        over.set()
        thread.join()
        for node in nodes:
            cluster.remove_node(node, allow_graceful=False)
    assert killed


def content(folder, but=()):
    """{name: bytes} of the files in a folder."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name not in but
    }


class TestOnACluster:
    pytestmark = with_ray

    def test_a_build_is_that_of_one_process_and_a_broken_file_is_skipped_by_name(
        self, cluster, tmp_path, capsys
    ):
        clips = tmp_path / 'clips'
        rng = np.random.default_rng(0)
        for number in range(12):
            place = clips / 'train' / f'class {number % 2}'
            place.mkdir(parents=True, exist_ok=True)
            write_video(place / f'{number}.mp4', rng.integers(0, 256, (8, 32, 40, 3), np.uint8))
        (clips / 'train' / 'class 0' / 'broken.mp4').write_bytes(b'no video')
        flags = ['--dataset=video_folder/mine', f'--videos={clips}', '--videos_per_shard=1']
        one = build.build(build.parse([*flags, f'--dir={tmp_path / "one"}', '--processes=0']))
        unfinished = tmp_path / 'two' / 'video_folder/mine' / 'incomplete'
        with two_nodes(cluster, lambda: any(unfinished.glob('*.json'))) as address:
            two = build.build(
                build.parse([*flags, f'--dir={tmp_path / "two"}', f'--ray={address}'])
            )
        assert content(two) == content(one)
        assert 'broken.mp4' in (two / 'skipped.tsv').read_text()
        assert '13 shards in 8 slices, 2 at once' in capsys.readouterr().out

    def test_features_are_those_of_one_process(self, cluster, tiny_data, tmp_path):
        settings = TINY | {'data.dir': tiny_data}
        flags = ['extract', '--config=trm', '--videos_per_shard=5']
        flags += [f'--config.{key}={value}' for key, value in settings.items()]
        extract.main([*flags, f'--dir={tmp_path / "one"}'])
        begun = lambda: any((tmp_path / 'two').glob('*.npy'))
        with two_nodes(cluster, begun) as address:
            extract.main([*flags, f'--dir={tmp_path / "two"}', f'--ray={address}'])
        assert content(tmp_path / 'two', ('.slices',)) == content(tmp_path / 'one')

    def test_a_sweep_runs_every_row_once_and_a_lost_one_again(
        self,
        cluster,
        rows,  # noqa: F811
        monkeypatch,
        capsys,
    ):
        (rows / 'with_stand_in.py').write_text(
            'import sys\nfrom fsar_jax import sweep\n'
            f'sweep.PROGRAM = sys.executable, {str(rows / "stand_in.py")!r}\n'
            'sweep.LOOK_SECONDS = 0.1\nrun_share = sweep.run_share\n'
        )
        monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(rows), os.environ['PYTHONPATH']]))
        run = on_ray.Cluster.run
        monkeypatch.setattr(
            on_ray.Cluster,
            'run',
            lambda self, name, *rest: run(self, 'with_stand_in:run_share', *rest),
        )
        with two_nodes(cluster, lambda: bool(calls(rows))) as address:
            status = sweep.main(['rows.txt', '--root=out', '--seeds=0,1', f'--ray={address}'])
        assert status == 1  # of the row that fails
        for name in NAMES:
            for seed in (0, 1):
                if 'rate=0' not in name:
                    assert read_results(pathlib.Path('out', name, f'seed{seed}'))['shot'] in (1, 2)
        out, err = capsys.readouterr()
        assert '(2 seeds)' in out and '6 parts, 2 at once' in out
        assert 'error: 2 of 8 runs failed' in err


@pytest.mark.slow
def test_slices_of_features_together_are_those_of_one_process(tiny_data, tmp_path, shallow, capsys):
    settings = TINY | {'data.dir': tiny_data}
    flags = ['extract', '--config=trm', '--videos_per_shard=12']
    flags += [f'--config.{key}={value}' for key, value in settings.items()]
    extract.main([*flags, f'--dir={tmp_path / "one"}'])
    two = [*flags, f'--dir={tmp_path / "two"}']
    extract.main([*two, '--shards=1/2'])
    assert '2 files extracted, 0 were there, 2 of 4 in all slices' in capsys.readouterr().out
    with pytest.raises(OSError, match='is not whole'):
        extract.open_header(tmp_path / 'two')
    extract.main([*two, '--shards=0/2'])
    assert content(tmp_path / 'two', ('.slices',)) == content(tmp_path / 'one')
    assert not list((tmp_path / 'two').glob('*.sha256'))
    with pytest.raises(ValueError, match='--shards=2/2 should be I/N'):
        extract.main([*two, '--shards=2/2'])
    with pytest.raises(ValueError, match='give no --overwrite with it'):
        extract.main([*two, '--shards=0/2', '--overwrite'])
