"""What ends a command before its time: a signal, after what is to be finished first; wrong input;
readers of its output that go away."""

import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import REPOSITORY, start_main, tiny_flags

from fsar_jax import stopping
from fsar_jax.progress import METRICS_FILE
from fsar_jax.stopping import errors_in_one_line
from fsar_jax.training.checkpoints import Checkpoints

SCRIPT = """
import signal, sys, threading, time
{before}
from fsar_jax.stopping import finish_first, on_signals
on_signals('work is kept')
saved = threading.Event()
with finish_first(saved.wait):
    print('ready', flush=True)
    {work}
"""
LINE = {
    signal.SIGINT: 'stopped (Ctrl-C): work is kept\n',
    signal.SIGTERM: 'stopped (SIGTERM): work is kept\n',
    signal.SIGHUP: 'stopped (SIGHUP): work is kept\n',
}


def stop(number, work, before='', times=1):
    """(exit status, stdout, stderr) of a process that gets the signal while it does `work`."""
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT.format(work=work, before=before)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.stdout.readline()
    for time_ in range(times):
        time.sleep(0.1 * (time_ > 0))
        process.send_signal(number)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said + out, err


@pytest.mark.parametrize(
    'number, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_one_line_and_the_status_after_the_save_in_progress(number, status):
    work = "time.sleep(0.3); print('saved', flush=True); saved.set(); time.sleep(60)"
    assert stop(number, work) == (status, 'ready\nsaved\n', LINE[number])


def test_the_last_message_counts():
    work = (
        'import fsar_jax.stopping as s; s.say_on_signals("nothing is kept"); saved.set(); '
        'time.sleep(60)'
    )
    status, _, err = stop(signal.SIGINT, work)
    assert (status, err) == (130, 'stopped (Ctrl-C): nothing is kept\n')


def test_code_that_swallows_exceptions_does_not_keep_the_process():
    work = """saved.set()
    while True:
        try: time.sleep(0.01)
        except BaseException: pass"""
    assert stop(signal.SIGINT, work) == (130, 'ready\n', LINE[signal.SIGINT])


def test_a_second_signal_does_not_wait():
    assert stop(signal.SIGINT, 'time.sleep(60)', times=2) == (130, 'ready\n', LINE[signal.SIGINT])


def test_a_signal_that_is_ignored_stays_so():
    work = "time.sleep(0.3); print('went on', flush=True)"
    assert stop(signal.SIGINT, work, 'signal.signal(signal.SIGINT, signal.SIG_IGN)') == (
        0,
        'ready\nwent on\n',
        '',
    )


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_line_does_not_undo_the_status(number):
    """Large libraries take a moment to be taken down, without handlers of signals."""
    before = """
class TakenDown:
    def __del__(self, print=print, sleep=time.sleep):
        print('ready', flush=True)
        sleep(0.3)
module = TakenDown()
print = lambda *args, **kwargs: None
"""
    assert stop(number, 'pass', before) == (0, 'ready\n', '')


def test_ctrl_c_while_main_imports(tmp_path):
    process = start_main('--config=configs/protonet.py', f'--workdir={tmp_path}/run')
    time.sleep(0.7)
    assert_one_line(process)


@pytest.mark.slow
def test_ctrl_c_in_training_waits_for_the_checkpoint(tiny_data, tmp_path):
    changes = {'train.num_steps': 10_000, 'train.checkpoint_steps': 2, 'eval.val_episodes': 0}
    process = start_main(*tiny_flags('protonet', tiny_data, tmp_path / 'run', changes))
    folder, metrics = tmp_path / 'run' / 'checkpoints', tmp_path / 'run' / METRICS_FILE
    while process.poll() is None and not (folder.is_dir() and any(folder.glob('[0-9]*'))):
        time.sleep(0.002)
    assert_one_line(process)
    assert not list(folder.glob('*tmp*'))
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert 2 <= checkpoints.latest_step <= metrics.read_bytes().count(b'loss')


def assert_one_line(process):
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    err = re.sub(r'\r?training: .*?[\r\n]+', '', err)  # a slow machine gets as far as showing it
    assert (
        err == 'stopped (Ctrl-C): what was finished is kept, the same command goes on from there\n'
    )
    assert process.returncode == 130


def test_wrong_input_is_one_line_and_a_fault_of_the_code_is_not():
    for error in (ValueError('a\nb'), FloatingPointError('a b'), MemoryError('a b')):
        with pytest.raises(SystemExit) as ended, errors_in_one_line():
            raise error
        assert ended.value.code == 'error: a b'
        with pytest.raises(type(error)), errors_in_one_line(unless=lambda: True):
            raise error
    with pytest.raises(KeyError), errors_in_one_line():
        raise KeyError('a')


@pytest.mark.parametrize(
    'words',
    [
        'UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error: Connection reset by peer',
        'INTERNAL: NCCL operation failed: ncclRemoteError',
        'UNAVAILABLE: Task 1 heartbeat timeout',
        'DEADLINE_EXCEEDED: Barrier timed out. Id: save',
    ],
)
def test_a_process_that_another_one_has_left_ends_at_once_in_one_line(words):
    """JAX would wait for that one at the usual end, and then abort."""
    work = f"""from fsar_jax.stopping import on_signals; on_signals('nothing was written')
    import atexit; atexit.register(sys.stderr.write, 'late')
    raise RuntimeError({words!r})"""
    status, err = end_of(work, subprocess.PIPE)
    assert status == 1 and err == (
        f'error: another process of this run is gone ({words}): see what it printed, and start all '
        'of them again: nothing was written\n'
    )


def of_numpy(x):
    return np.ones((2, 3)) + np.ones((3, 2))


def of_jax(x):
    return jnp.broadcast_to(x, (7,))


@pytest.mark.parametrize('fails', [of_numpy, of_jax])
@pytest.mark.parametrize('compiled', [lambda fails: fails, jax.jit], ids=['eager', 'traced'])
@pytest.mark.parametrize(
    'flag, more', [('', ''), ('--verbosity=1', '; --verbosity=1 shows the traceback')]
)
def test_what_a_library_raises_names_the_line_that_called_it(fails, compiled, flag, more):
    with pytest.raises(SystemExit) as ended, errors_in_one_line(flag=flag):
        compiled(fails)(jnp.ones((3, 2)))
    line = fails.__code__.co_firstlineno + 1
    assert ended.value.code.endswith(f' (at {__file__}:{line}{more})')


def test_a_package_beside_the_libraries_of_python_names_its_lines(monkeypatch):
    """As where it is installed in conda's base environment, without a virtual one."""
    folder = pathlib.Path(__file__).parent
    monkeypatch.setattr(stopping, 'PACKAGE', folder)
    monkeypatch.setattr(stopping, 'PYTHON', str(folder.parent))
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        of_numpy(None)
    assert ended.value.code.endswith(f'(at {__file__}:{of_numpy.__code__.co_firstlineno + 1})')


def test_what_python_raises_of_a_file_names_no_line():
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        json.loads('no json')
    assert ended.value.code == 'error: Expecting value: line 1 column 1 (char 0)'


def end_of(work, stdout):
    """(exit status, stderr) of a command that prints a line and then does `work`; None: without a
    stdout."""
    script = f"""import sys
from fsar_jax.stopping import errors_in_one_line
with errors_in_one_line():
    print('first')
    {work}"""
    buffered = {key: value for key, value in os.environ.items() if key != 'PYTHONUNBUFFERED'}
    close = '' if stdout else '>&-'
    done = subprocess.run(
        ['sh', '-c', f'exec "$0" -c "$1" {close}', sys.executable, script],
        cwd=REPOSITORY,
        env=buffered,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_what_a_terminal_cannot_show_is_no_error():
    script = (
        'from fsar_jax.stopping import errors_in_one_line\n'
        'with errors_in_one_line():\n    print("50% ± 3%")\n'
    )
    env = os.environ | {'PYTHONIOENCODING': 'ascii'}
    command = [sys.executable, '-c', script]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b'50% \\xb1 3%\n')


def test_without_streams_everything_goes_nowhere_and_not_into_a_file(tmp_path):
    work = f"""file = open({str(tmp_path / 'a')!r}, 'w')
    sys.stdout.write('x')
    sys.stderr.write('y')
    file.write('z')"""
    script = (
        'import sys\nfrom fsar_jax.stopping import errors_in_one_line\n'
        f'with errors_in_one_line():\n    {work}\n'
    )
    command = ['sh', '-c', 'exec "$0" -c "$1" >&- 2>&-', sys.executable, script]
    assert subprocess.run(command, cwd=REPOSITORY, timeout=60).returncode == 0
    assert (tmp_path / 'a').read_text() == 'z'


@pytest.mark.parametrize('work', ['print("line " * 20000)', 'print("line")', 'sys.exit("x")'])
def test_a_reader_that_goes_away_is_no_error(work):
    """As `| head` does: while the output is printed, or before its last part is flushed."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, 'wb') as pipe:
        assert end_of(work, pipe) == (128 + signal.SIGPIPE, '')


def test_what_is_wrong_is_said_wherever_the_output_goes():
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, 'wb') as pipe, open('/dev/full', 'wb') as full:
        for stdout in (pipe, full, None):
            assert end_of('raise ValueError("bad")', stdout) == (1, 'error: bad\n')
        status, said = end_of('raise KeyError("a fault")', pipe)
        assert status and "KeyError: 'a fault'" in said
        assert end_of('pass', full) == (1, 'error: No space left on device\n')
        assert end_of('pass', None) == (0, '')


def test_a_pipe_of_something_else_is_an_error(capfd):
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        raise BrokenPipeError(errno.EPIPE, 'Broken pipe')
    assert ended.value.code == 'error: Broken pipe'
