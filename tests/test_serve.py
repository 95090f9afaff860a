"""python -m fsar_jax.serve: its flags, what it refuses, and how it ends."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from tiny_run import CPU, REPOSITORY

from fsar_jax import serve

# The command, with a recogniser that takes no second.
TINY_SERVE = """
import sys, pytest
from tiny_recognizer import tiny_recognizer
from fsar_jax import serve
tiny_recognizer(pytest.MonkeyPatch())
serve.main(sys.argv[1:])
"""


def test_only_this_machine_may_call_unless_the_host_says_otherwise():
    assert serve.parse([]).host == '127.0.0.1'
    assert serve.names_of('127.0.0.1') >= {'localhost', '127.0.0.1'}
    assert serve.names_of('127.0.0.7') >= {'127.0.0.7'}
    assert serve.names_of('0.0.0.0') is None and serve.names_of('192.168.1.5') is None
    assert serve.address_of('::1', 7860) == 'http://[::1]:7860/'


@pytest.mark.parametrize(
    'flag', ['--max-mb=0', '--max-seconds=-1', '--max-mb=nan', '--port=70000', '--max-seconds=inf']
)
def test_a_limit_that_cannot_be_is_refused(flag):
    with pytest.raises(ValueError, match=re.escape(flag)):
        serve.parse([flag])


def test_a_taken_port_and_an_unknown_host_are_one_line():
    with serve.listen('127.0.0.1', 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f'--port={port}: another program uses it'):
            serve.listen('127.0.0.1', port)
    with pytest.raises(OSError, match=r'--host=256\.1\.1\.1'):
        serve.listen('256.1.1.1', 0)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'starlette', None)
    with pytest.raises(ValueError, match=r"starlette.*pip install 'fsar_jax\[app\]'") as error:
        serve.serve(serve.parse(['--port=0']))
    assert '\n' not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize('number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_server_and_nothing_is_left(tmp_path, number, status):
    pytest.importorskip('starlette', reason="needs pip install 'fsar_jax[app]'")
    path = os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / 'tests' / 'browser')))
    server = subprocess.Popen(
        [sys.executable, '-c', TINY_SERVE, '--port=0'],
        env={**CPU, 'TMPDIR': str(tmp_path), 'PYTHONPATH': path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(re.search(r'http://127\.0\.0\.1:(\d+)/', server.stdout.readline())[1])
        [folder] = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o077 == 0  # for its owner alone
        # Another browser's upload is under way.
        with socket.create_connection(('127.0.0.1', port), timeout=10) as upload:
            upload.sendall(
                b'POST /examples?class=a&name=a.mp4 HTTP/1.1\r\nHost: localhost\r\n'
                b'Content-Length: 90000\r\n\r\n' + bytes(40_000)
            )
            connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
            connection.request('GET', '/examples')
            assert connection.getresponse().read() == b'{"classes":[],"expected":""}'
            server.send_signal(number)
            assert server.wait(20) == status
    finally:
        server.kill()
        errors = server.communicate()[1]
    assert errors.strip().splitlines()[-1].endswith('the server has ended, and keeps no clip')
    assert list(tmp_path.iterdir()) == []
