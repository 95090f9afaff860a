"""Wrong flags are one line, with the flag that was meant; outputs are tried before the work."""

import os
import pathlib

import pytest

from fsar_jax import build, compare, contact_sheet, export, files, recognize, report, serve, table
from fsar_jax.arguments import Parser


@pytest.mark.parametrize(
    'command, arguments, words',
    [
        (build.parse, ['--datset=a'], 'unknown flag --datset: did you mean --dataset?'),
        (build.parse, ['--dataset=a', '--seed=x'], "argument --seed: invalid int value: 'x'"),
        (contact_sheet.main, ['--dataset=a'], 'the following arguments are required: --out'),
        (export.main, ['--workdir=a', 'b'], "unexpected argument 'b'"),
        (recognize.main, ['--example=a', '--clips', 'b'], 'did you mean --examples?'),
        (recognize.main, ['--cli\nps=b'], r'unknown flag --cli\nps: did you mean --clips?'),
        (report.main, ['--workdr=a'], 'unknown flag --workdr: did you mean --workdir?'),
        (serve.parse, ['--port=many'], "argument --port: invalid int value: 'many'"),
        (serve.parse, ['-x'], 'unknown flag -x ('),
        (table.main, [], 'the following arguments are required: results'),
    ],
)
def test_a_wrong_flag_is_one_line(command, arguments, words, capsys):
    with pytest.raises(SystemExit) as ended:
        command(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith('error: ') and said.count('\n') == 1
    assert words in said and '--help lists the flags' in said


def test_compare_names_an_unknown_flag(capsys):
    assert compare.main(['a', 'b', '--latex']) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: unknown flag --latex (usage: ') and said.count('\n') == 1


def test_what_follows_two_dashes_is_no_flag():
    parser = Parser(prog='x')
    parser.add_argument('names', nargs='*')
    assert parser.parse(['--', '--a']).names == ['--a']


def test_an_output_is_tried_and_nothing_is_left(tmp_path, monkeypatch):
    files.check_output(tmp_path / 'a.json', '--json')
    files.check_output_folder(tmp_path / 'new' / 'below', '--out')
    files.check_output_folder(pathlib.Path('not-there'), '--out')
    assert not list(tmp_path.iterdir())
    (tmp_path / 'file').touch()
    refused = [
        (files.check_output, tmp_path, 'is a folder'),
        (files.check_output, tmp_path / 'no' / 'a.json', 'in a folder that does not exist'),
        (files.check_output, tmp_path / 'file' / 'a.json', 'in a folder that does not exist'),
        (files.check_output, tmp_path / ('a' * 250), 'cannot be written: File name too long'),
        (files.check_output, pathlib.Path('/proc/a.json'), 'cannot be written: '),
        (files.check_output, pathlib.Path('/dev/null'), 'is a device or a pipe'),
        (files.check_output_folder, tmp_path / 'file', 'is a file, or lies below one'),
        (files.check_output_folder, tmp_path / 'file' / 'x', 'is a file, or lies below one'),
        (files.check_output_folder, pathlib.Path('/proc/x'), 'cannot be written: '),
    ]
    for check, path, words in refused:
        with pytest.raises((ValueError, OSError), match=words):
            check(path, '--out')

    def full(fd):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='a.json cannot be written: No space left on device'):
        files.check_output(tmp_path / 'a.json', '--json')
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize(
    'command',
    [
        lambda out: recognize.main(['--examples=nowhere', '--clips=nowhere', f'--json={out}/a']),
        lambda out: recognize.main(['--examples=nowhere', '--save=s.x', f'--out={out}/a.html']),
        lambda out: contact_sheet.main(['--dataset=none', f'--out={out}/a.png']),
        lambda out: report.main(['--workdir=nowhere', f'--out={out}/a']),
        lambda out: export.main([f'--workdir={os.getcwd()}', f'--out={out}/a.safetensors']),
    ],
)
def test_every_command_tries_its_output_first(command, monkeypatch):
    """Each of these would fail for another reason later."""
    monkeypatch.setattr(report, 'check_extra', lambda: None)
    with pytest.raises(OSError, match='--(out|json)=/proc/a.* cannot be written'):
        command('/proc')
