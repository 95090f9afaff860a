"""What JAX compiles is kept for the next start, in a folder of the user, and never fails a run."""

import os
import pathlib
import subprocess
import sys
import time
import types
import zlib

import pytest

from fsar_jax import programs, train
from fsar_jax.training import train as training


class Config:
    """Stands in for jax.config: `keep_programs` must not change that of the tests."""

    def __init__(self, enabled=True, folder=None):
        self.jax_enable_compilation_cache, self.jax_compilation_cache_dir = enabled, folder
        self.updates = {}

    def update(self, name, value):
        self.updates[name] = value


@pytest.fixture
def config(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    config = Config()
    monkeypatch.setattr(programs, 'jax', types.SimpleNamespace(config=config))
    return config


def test_the_folder_is_in_the_users_cache_and_of_this_kind_of_processor(config, tmp_path):
    programs.keep_programs()
    folder = pathlib.Path(config.updates['jax_compilation_cache_dir'])
    assert folder.parent == tmp_path / 'fsar_jax/programs' and folder.is_dir()
    assert config.updates['jax_persistent_cache_min_compile_time_secs'] == 0


@pytest.mark.parametrize('given', [{'folder': '/elsewhere'}, {'enabled': False}])
def test_what_the_user_has_told_jax_counts(given, monkeypatch, config, tmp_path):
    config.__init__(**given)
    programs.keep_programs()
    assert not config.updates and not list(tmp_path.iterdir())


@pytest.mark.parametrize('home', ['file', 'no home'])
def test_a_folder_that_cannot_be_made_fails_nothing(home, monkeypatch, config, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file') if home == 'file' else '')

    def no_home():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(pathlib.Path, 'home', no_home)
    programs.keep_programs()
    assert not config.updates


def test_half_written_and_long_unused_programs_are_removed(tmp_path):
    now, whole = time.time(), zlib.compress(os.urandom(1000))
    for name, content, age in (
        ('broken', whole[:500], 1000),
        ('being-written', whole[:500], 1),
        ('old', whole, 3000),
        ('newer', whole, 2000),
    ):
        path = tmp_path / f'{name}-cache'
        path.write_bytes(content)
        os.utime(path, (now - age, now - age))
    (tmp_path / 'other').write_text('not a program')
    programs.tidy(tmp_path, limit=len(whole) + 500)
    assert {x.name for x in tmp_path.iterdir()} == {
        'being-written-cache',
        'newer-cache',
        'other',
        'checked',
    }


@pytest.mark.parametrize('given', [(), ('--config.keep_programs=False',)])
def test_a_run_keeps_them_unless_told_otherwise(given, monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(programs, 'keep_programs', lambda: kept.append(1))
    monkeypatch.setattr(training, 'train_and_evaluate', lambda *_: {})
    train.main(['main.py', '--config=protonet', f'--workdir={tmp_path}', *given])
    assert len(kept) == (not given)


PROCESS = """
import jax
from fsar_jax.programs import keep_programs
compiled = []
jax.monitoring.register_event_listener(lambda event, **_: compiled.append(event))
keep_programs()
print(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((8, 8))))
print(sum(event.endswith('/cache_misses') for event in compiled))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    env = {name: x for name, x in os.environ.items() if not name.startswith('JAX_COMPILATION')}
    env |= {'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': str(tmp_path)}
    env['JAX_ENABLE_COMPILATION_CACHE'] = 'true'
    results = [
        subprocess.run(
            [sys.executable, '-c', PROCESS],
            env=env, capture_output=True, text=True, check=True,
            cwd=pathlib.Path(__file__).parents[1],
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert [value for value, _ in results] == ['512.0'] * 2
    assert int(results[0][1]) > 0 and results[1][1] == '0'
