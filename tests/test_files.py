"""Paths that people give, files that are whole, and messages that stay on their line."""

import errno
import os
import pathlib

import pytest

from fsar_jax import files, messages


@pytest.mark.parametrize(
    'address',
    ['gs://bucket/runs', 'gs:/bucket/runs', 's3://bucket/x', 'file:///home/me', 'hdfs://h/x'],
)
def test_an_address_is_refused_and_not_made_a_local_folder(address):
    with pytest.raises(ValueError, match=r'--workdir=.*mount the bucket'):
        files.local_path(address, '--workdir')


def test_an_empty_path_is_refused():
    with pytest.raises(ValueError, match='^--workdir is empty: give a path, or leave it out$'):
        files.local_path('', '--workdir')


@pytest.mark.parametrize('path', ['runs/a:b', 'a:b/c', '/x/[y] z', './gs:x'])
def test_other_paths_are_left_as_they_are(path):
    assert files.local_path(path, '--workdir') == pathlib.Path(path)


def test_the_tilde_is_expanded(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert files.local_path('~/runs', '--workdir') == pathlib.Path('/home/me/runs')
    assert files.local_path('./~runs', '--workdir') == pathlib.Path(
        '~runs'
    )  # a folder of that name
    with pytest.raises(ValueError, match='no such user'):
        files.local_path('~nobody-of-this-name/runs', '--workdir')


def test_a_failed_write_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / 'trained_on.json'
    files.write_whole(path, 'before')

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError) as caught:
        files.write_whole(path, 'after')
    assert messages.one_line(caught.value) == f'{path}: No space left on device'
    assert path.read_text() == 'before' and os.listdir(tmp_path) == ['trained_on.json']


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / 'target', tmp_path / 'link'
    target.write_text('before')
    link.symlink_to(target)
    files.write_whole(link, 'after')
    assert link.is_symlink() and target.read_text() == 'after'
    assert sorted(os.listdir(tmp_path)) == ['link', 'target']
    files.check_output(link, '--out')
    link.unlink()
    link.symlink_to(tmp_path / 'nowhere' / 'file')
    with pytest.raises(ValueError, match='--out=.* lies in a folder that does not exist'):
        files.check_output(link, '--out')


@pytest.mark.parametrize(
    'content, where',
    [('', 'line 1, column 1'), ('{"a": 1,\n"b": ', 'line 2, column 6'), ('\udcff', 'decode')],
)
def test_damaged_json_names_the_file_and_the_line(tmp_path, content, where):
    path = tmp_path / 'config.json'
    path.write_bytes(content.encode(errors='surrogateescape'))
    with pytest.raises(ValueError, match=f'{path} is damaged.*{where}.*: train again$'):
        files.read_json(path, 'train again')


def test_foreign_text_stays_on_its_line():
    forged = 'weight\n\x1b[2Kerror: all is well\u202e\udcff'
    assert messages.printable(forged) == r'weight\n\x1b[2Kerror: all is well\u202e\udcff'
    assert messages.printable('ü 日本') == 'ü 日本'
    assert messages.printable('x' * 300) == 'x' * 200 + '…'


def test_long_lists_are_cut():
    assert messages.listed(range(3)) == '0, 1, 2'
    assert messages.listed(range(30_000)) == '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 29,990 more'


def test_errors_of_the_system_are_words_and_a_path():
    assert messages.one_line(OSError(errno.EISDIR, 'Is a directory', '/a')) == '/a: Is a directory'
    assert (
        messages.one_line(OSError(errno.ENOSPC, 'No space left on device'))
        == 'No space left on device'
    )
    assert messages.one_line(ValueError('two\n  lines')) == 'two lines'
