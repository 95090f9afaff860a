"""The cores of the job, and locks where there are some and where there are none."""

import errno
import fcntl
import os
import platform
import subprocess
import sys
import threading

import pytest
from tiny_run import REPOSITORY

from fsar_jax import machine


@pytest.mark.skipif(
    not hasattr(os, 'sched_getaffinity'), reason='this system does not bind processes to cores'
)
def test_the_cores_of_the_job_and_not_of_the_machine():
    core = min(os.sched_getaffinity(0))
    program = (
        f'import os; os.sched_setaffinity(0, [{core}]); '
        'from fsar_jax.machine import usable_cores; print(usable_cores())'
    )
    assert (
        subprocess.run(
            [sys.executable, '-c', program], capture_output=True, text=True, check=True
        ).stdout
        == '1\n'
    )


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='ulimit -v')
def test_too_few_threads_for_the_reader_are_one_line_and_no_wait(tmp_path):
    """A limit on memory is one on threads: the pool of array_record waits for ever where it cannot
    start all of its 64."""
    program = """
import resource, sys
from array_record.python import array_record_module
from fsar_jax.machine import start_reader_threads
path = sys.argv[1]
writer = array_record_module.ArrayRecordWriter(path, 'group_size:1')
writer.write(b'record')
writer.close()
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
try:
    start_reader_threads()
except OSError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
start_reader_threads()
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
# The threads run: less is enough now.
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))
print(array_record_module.ArrayRecordReader(path).num_records())
"""
    done = subprocess.run(
        [sys.executable, '-c', program, tmp_path / 'records'],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    refusal, count = done.stdout.splitlines()
    assert refusal.startswith(
        'the 64 threads that read ArrayRecord files cannot all be started: raise the limit on '
        'memory'
    )
    assert count == '1'


FREES = """
import resource, sys
import numpy as np
from fsar_jax.machine import give_back_freed_memory, keep_freed_memory
print(keep_freed_memory())
if sys.argv[1:] == ['back']:
    give_back_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**24)
before = faults()
for _ in range(4):
    np.ones(2**24)  # 128 MB
print(faults() - before)
"""


def test_readers_keep_memory_only_where_nothing_keeps_all_of_it(monkeypatch):
    calls = []
    monkeypatch.setattr(machine, '_set_malloc', lambda *given: calls.append(given) or True)
    monkeypatch.setattr(machine, '_kept', [])
    assert machine.keep_what_readers_free() and machine.keep_freed_memory()
    assert not machine.keep_what_readers_free() and len(calls) == 2
    machine.give_back_freed_memory()
    assert machine.keep_what_readers_free() and len(calls) == 4


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='only glibc gives memory back so')
@pytest.mark.parametrize(
    'given, back, kept',
    [({}, [], True), ({}, ['back'], False), ({'MALLOC_MMAP_THRESHOLD_': '1000000'}, [], False)],
)
def test_memory_that_is_freed_is_kept_until_it_is_to_be_given_back(given, back, kept):
    env = {name: x for name, x in os.environ.items() if not name.startswith('MALLOC_')}
    env.pop('GLIBC_TUNABLES', None)
    command = [sys.executable, '-c', FREES, *back]
    found = subprocess.run(
        command, cwd=REPOSITORY, env=env | given, capture_output=True, text=True, check=True
    ).stdout.split()
    assert found[0] == str(not given)
    assert (int(found[1]) < 1000) == kept  # 4 * 32,768 pages of 4 kB


def test_cores_where_processes_are_not_bound_to_some(monkeypatch):
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)  # macOS
    assert machine.usable_cores() == os.cpu_count()
    monkeypatch.setattr(os, 'cpu_count', lambda: None)
    assert machine.usable_cores() == 1


def test_windows_is_sent_to_wsl():
    program = "import sys; sys.platform = 'win32'; import fsar_jax"
    done = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert (
        done.returncode == 1
        and done.stderr.splitlines()[-1].startswith('ImportError: ')
        and 'install WSL' in done.stderr
    )


def test_shared_and_exclusive(tmp_path):
    path = tmp_path / 'lock'
    with machine.file_lock(path, shared=True), machine.file_lock(path, shared=True):
        with (
            pytest.raises(ValueError, match='somebody else'),
            machine.file_lock(path, 'somebody else has it'),
        ):
            pass
    with (
        machine.file_lock(path),
        pytest.raises(ValueError, match='somebody else'),
        machine.file_lock(path, 'somebody else has it', shared=True),
    ):
        pass


def test_without_a_message_it_waits(tmp_path):
    order = []

    def second():
        with machine.file_lock(tmp_path / 'lock'):
            order.append('second')

    thread = threading.Thread(target=second)
    with machine.file_lock(tmp_path / 'lock'):
        thread.start()
        thread.join(0.2)
        order.append('first')
    thread.join()
    assert order == ['first', 'second']


def test_locks_of_the_kind_that_nfs_makes_of_them(tmp_path, monkeypatch):
    """Byte ranges, which a shared lock may take in a file that is open for reading only, an
    exclusive one for writing."""
    monkeypatch.setattr(fcntl, 'flock', fcntl.lockf)
    for shared in (True, False):
        with machine.file_lock(tmp_path / 'lock', shared=shared):
            pass


@pytest.mark.parametrize('number', machine.NO_LOCKS)
def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    with machine.file_lock(tmp_path / 'lock'):
        pass
    assert 'this file system has no locks, do not start' in capsys.readouterr().err


def test_another_error_is_one(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, 'flock', refuse)
    with pytest.raises(OSError, match='Input/output error'), machine.file_lock(tmp_path / 'lock'):
        pass
