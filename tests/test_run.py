"""run.sh: what it builds and what it starts. The environment is a stand-in that writes down its calls."""

import os
import shutil
import subprocess
import sys

import pytest
from tiny_run import REPOSITORY


@pytest.fixture
def checkout(tmp_path):
    """A directory with run.sh, set up already; its python runs no module and no script, but code given with -c."""
    for name in ('configs', 'fsar_jax', 'setup.cfg'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    shutil.copy(REPOSITORY / 'run.sh', tmp_path)
    (tmp_path / '.venv/bin').mkdir(parents=True)
    shutil.copy(REPOSITORY / 'setup.cfg', tmp_path / '.venv/installed-run')
    python = tmp_path / '.venv/bin/python'
    python.write_text(f'#!/bin/bash\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "$@" >> calls\n')
    python.chmod(0o755)
    return tmp_path


def calls_of(checkout, *arguments):
    (checkout / 'calls').write_text('')
    done = subprocess.run(['./run.sh', *arguments], cwd=checkout, capture_output=True, text=True, timeout=100,
                          env={**os.environ, 'LC_ALL': 'C'})
    assert (done.returncode, done.stderr) == (0, '')
    return (checkout / 'calls').read_text().splitlines()


def build(dataset, directory='data'):
    return f'-m fsar_jax.data.build --dataset=synthetic_actions/{dataset} --dir={directory}'


def test_the_dataset_of_the_config_is_built_where_it_is_an_embedded_one(checkout):
    assert calls_of(checkout) == [build('misaligned'), 'main.py --config=configs/strm.py']
    assert calls_of(checkout, '--config=configs/vim.py', '--workdir=a b') == [
        build('untrimmed'), 'main.py --config=configs/vim.py --workdir=a b']
    assert calls_of(checkout, '--config.data.dir=there', '--config.data.dataset=synthetic_actions/shifted') == [
        build('shifted', 'there'), 'main.py --config=configs/strm.py --config.data.dir=there --config.data.dataset=synthetic_actions/shifted']
    assert calls_of(checkout, '--config', 'configs/strm.py:ssv2') == ['main.py --config configs/strm.py:ssv2']
    assert calls_of(checkout, '--config.epsode.shot=5') == ['main.py --config=configs/strm.py --config.epsode.shot=5']


def test_what_is_built_is_not_built_again(checkout):
    there = checkout / 'data/synthetic_actions/misaligned/incomplete'
    there.mkdir(parents=True)
    (there / 'dataset_info.json').touch()
    assert len(calls_of(checkout)) == 2                                 # a build that was killed in its last moment
    there.rename(there.with_name('1.0.0'))
    assert calls_of(checkout) == ['main.py --config=configs/strm.py']
