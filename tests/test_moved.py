"""Old names of commands and modules, which work for one release."""

import importlib
import runpy
import subprocess
import sys

import pytest
from tiny_run import CPU, REPOSITORY

OLD = {
    'fsar_jax.data.build': ('fsar_jax.build', 'fsar_jax.build'),
    'fsar_jax.data.verify': ('fsar_jax.verify', 'fsar_jax.verify'),
    'fsar_jax.training.compare': ('fsar_jax.compare', 'fsar_jax.evaluation.compare'),
    'fsar_jax.visualize.contact_sheet': (
        'fsar_jax.contact_sheet',
        'fsar_jax.analysis.contact_sheet',
    ),
}


@pytest.mark.parametrize('old', OLD)
def test_an_old_command_runs_the_new_one_and_names_it_on_one_line(old, monkeypatch, capsys):
    started, run_module = [], runpy.run_module
    monkeypatch.setattr(runpy, 'run_module', lambda *name, **how: started.append((*name, how)))
    run_module(old, run_name='__main__')
    new, _ = OLD[old]
    assert started == [(new, {'run_name': '__main__', 'alter_sys': True})]
    assert capsys.readouterr() == (
        '',
        f'note: python -m {old} is now python -m {new}; the old name goes with the next release\n',
    )


@pytest.mark.parametrize('old', OLD)
def test_an_old_import_gives_the_module_that_has_the_functions(old, capsys):
    package, _, name = old.rpartition('.')
    module = importlib.import_module(old)
    assert module is importlib.import_module(OLD[old][1])
    assert getattr(importlib.import_module(package), name) is module
    assert capsys.readouterr() == ('', '')


@pytest.mark.slow
def test_an_old_command_prints_and_exits_as_the_new_one():
    def run(module):
        return subprocess.run(
            [sys.executable, '-m', module, 'a.json'],
            cwd=REPOSITORY,
            env=CPU,
            capture_output=True,
            text=True,
        )

    old, new = run('fsar_jax.training.compare'), run('fsar_jax.compare')
    assert (old.returncode, old.stdout) == (new.returncode, new.stdout) == (2, '')
    note, rest = old.stderr.split('\n', 1)
    assert note.startswith('note: python -m fsar_jax.training.compare is now ')
    assert rest == new.stderr
