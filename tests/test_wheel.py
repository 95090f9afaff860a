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
print(sum(len(split['classes']) for builder in BENCHMARKS.values() for split in builder.published().values()),
      sum(len(mirror) for builder in BENCHMARKS.values() for mirror in builder.list_files()))
'''


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """run(*arguments of python) in a folder that has nothing but the wheel's packages on its
    path."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in ('setup.cfg', 'pyproject.toml', 'README.md'):
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

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=folder / 'elsewhere',
            capture_output=True,
            text=True,
            env={**CPU, 'PYTHONPATH': os.fspath(folder / 'site'), 'PYTHONDONTWRITEBYTECODE': '1'},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run.site = folder / 'site'
    return run


def test_everything_in_it_imports_and_finds_its_files(installed):
    """Six benchmarks: their class lists, and their lists of videos."""
    classes, lists = map(int, installed('-c', IMPORT_EVERYTHING, installed.site).split())
    assert classes == 101 + 51 + 100 + 100 + 100 + 100 and lists >= 5 * 3


def test_its_commands_run(installed):
    installed(
        '-m',
        'fsar_jax.build',
        '--dataset=synthetic_actions/misaligned',
        '--dir=data',
        '--clips_per_class=2',
        '--num_frames=8',
        '--size=32',
        '--processes=0',
    )
    assert 'synthetic_actions/misaligned' in installed(
        '-m', 'fsar_jax.verify', '--dataset=synthetic_actions/misaligned', '--dir=data'
    )
    assert 'usage' in installed('-m', 'fsar_jax.contact_sheet', '--help')
