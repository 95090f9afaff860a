"""A server with a tiny recogniser, in a thread of the test."""

import socket
import threading
import time

import pytest
from tiny_recognizer import tiny_recognizer, write_clip

HOSTS = frozenset(['127.0.0.1', 'localhost'])


@pytest.fixture
def clips(tmp_path):
    """A function that writes a clip of a colour."""
    folder = tmp_path / 'clips'
    folder.mkdir()

    def clip(colour, seed=0, **settings):
        path = folder / f'{colour}_{seed}.mp4'
        return path if path.exists() else write_clip(path, colour, seed, **settings)

    return clip


@pytest.fixture
def started(tmp_path, clips, monkeypatch):
    """A function that starts a server with one example each of red and green: (port, its temporary
    folder)."""
    uvicorn = pytest.importorskip('uvicorn', reason="needs pip install 'fsar_jax[app]'")
    app = pytest.importorskip('fsar_jax.browser.app')
    servers = []

    def start(classes=('red', 'green'), **limits):
        recognizer = tiny_recognizer(monkeypatch)
        recognizer.fit(dict(zip(classes, ([clips('red')], [clips('green')]))))
        folder = tmp_path / 'uploads'
        folder.mkdir()
        limits = app.Limits(**{'megabytes': 0.1, 'seconds': 20} | limits)
        served = app.web_app(recognizer, folder, limits, HOSTS)
        config = uvicorn.Config(served, log_level='error', http='h11', loop='asyncio')
        listening = socket.create_server(('127.0.0.1', 0))
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={'sockets': [listening]})
        thread.start()
        servers.append((server, thread, listening))
        while not server.started:
            time.sleep(0.01)
        return listening.getsockname()[1], folder

    yield start
    for server, thread, listening in servers:
        server.should_exit = True
        thread.join(20)
        listening.close()
