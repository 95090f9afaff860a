"""The wheel, used as somebody does who installed it and has no checkout."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from tiny_run import CPU, REPOSITORY

IMPORT_EVERYTHING = '''
import pathlib, pkgutil, sys
import fsar_jax, tfds_builders
for package in (fsar_jax, tfds_builders):
    assert pathlib.Path(package.__file__).is_relative_to(sys.argv[1]), package.__file__
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
        __import__(module.name)
from fsar_jax.build import BENCHMARKS
splits = [split for builder in BENCHMARKS.values() for split in builder.published().values()]
print(sum(len(split['classes']) for split in splits),
      sum(len(mirror) for builder in BENCHMARKS.values() for mirror in builder.list_files()))
'''


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """run(*arguments of python, status=0) in a folder that has nothing but the wheel's packages on
    its path: stdout, or stderr where an error is expected."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(REPOSITORY / name, source)
    for name in ('fsar_jax', 'tfds_builders'):
        shutil.copytree(
            REPOSITORY / name, source / name, ignore=shutil.ignore_patterns('__pycache__')
        )
    build = f'from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})'
    subprocess.run([sys.executable, '-c', build], cwd=source, check=True, capture_output=True)
    [wheel] = folder.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / 'site')
    (folder / 'elsewhere').mkdir()

    def run(*arguments, status=0):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=folder / 'elsewhere',
            capture_output=True,
            text=True,
            env={**CPU, 'PYTHONPATH': os.fspath(folder / 'site'), 'PYTHONDONTWRITEBYTECODE': '1'},
            timeout=300,
        )
        assert done.returncode == status, done.stderr[-2000:]
        return done.stderr if status else done.stdout

    run.site = folder / 'site'
    return run


@pytest.mark.slow
def test_everything_in_it_imports_and_finds_its_files(installed):
    """Six benchmarks: their class lists, and their lists of videos."""
    classes, lists = map(int, installed('-c', IMPORT_EVERYTHING, installed.site).split())
    assert classes == 101 + 51 + 100 + 100 + 100 + 100 and lists >= 5 * 3


COMMAND = """
import importlib.metadata
[script] = importlib.metadata.entry_points(group='console_scripts', name='fsar-jax')
script.load()()
"""


@pytest.mark.slow
def test_its_commands_run(installed):
    """Through the entry point of the script `fsar-jax`, and with methods found by their names."""
    shipped = {path.name for path in (installed.site / 'fsar_jax' / 'configs').iterdir()}
    assert shipped == {path.name for path in (REPOSITORY / 'configs').glob('*.py')}
    assert '  train  ' in installed('-c', COMMAND)
    assert 'vim-t4 ' in installed('-c', COMMAND, 'sweep', '--list')
    dataset = '--dataset=synthetic_actions/misaligned', '--dir=data'
    train = 'train', '--config=vim:trx', '--config.data.dataset=synthetic_actions/misaligned'
    assert installed('-c', COMMAND, *train, status=1).strip() == (
        "error: dataset 'synthetic_actions/misaligned' is not in data: build it with "
        f'python -m fsar_jax.build {" ".join(dataset)}'
    )
    small = '--clips_per_class=2', '--num_frames=8', '--size=32', '--processes=1'
    installed('-c', COMMAND, 'build', *dataset, *small)
    assert installed('-m', 'fsar_jax.verify', *dataset).endswith('nothing is damaged\n')
    assert installed('-c', COMMAND, *train, '--config.episode.shot=2', status=1).startswith(
        "error: class '"
    )
