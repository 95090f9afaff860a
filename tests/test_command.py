"""`fsar-jax COMMAND`: each command starts its module as `python -m` would."""

import importlib.util
import runpy
import sys

import pytest

from fsar_jax import __main__ as command


def start(monkeypatch, *arguments):
    """(module, its arguments) that the command starts."""
    started = []
    monkeypatch.setattr(sys, 'argv', ['fsar-jax', *arguments])
    monkeypatch.setattr(runpy, 'run_module', lambda *name, **how: started.append((*name, how)))
    command.main()
    [(module, how)] = started
    assert how == {'run_name': '__main__', 'alter_sys': True}
    return module, sys.argv[1:]


def test_each_command_starts_its_module_with_its_arguments(monkeypatch):
    for name in command.COMMANDS:
        module, arguments = start(monkeypatch, name, '--dir=data', '-x')
        assert importlib.util.find_spec(module), module
        assert arguments[-2:] == ['--dir=data', '-x']
        assert module == f'fsar_jax.{name}' or name == 'evaluate'
    assert start(monkeypatch, 'evaluate', '--config=strm') == (
        'fsar_jax.train',
        ['--mode=evaluate', '--config=strm'],
    )
    assert start(monkeypatch, 'contact-sheet') == ('fsar_jax.contact_sheet', [])


@pytest.mark.parametrize('arguments', [[], ['--help'], ['help']])
def test_without_a_command_all_are_listed(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['fsar-jax', *arguments])
    command.main()
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[2:]] == list(command.COMMANDS)
    assert all(len(line.split()) > 3 for line in out[2:])


def test_an_unknown_command_is_one_line_that_lists_them(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['fsar-jax', 'tr\nain'])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == (
        "error: unknown command 'tr\\nain': did you mean train? Or one of "
        f'{", ".join(command.COMMANDS)}'
    )
