"""The contact sheet shows the frames that evaluation sees, in place."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fsar_jax import contact_sheet as command
from fsar_jax.analysis.contact_sheet import LABEL_WIDTH, contact_sheet
from fsar_jax.data.frames import encode_jpeg
from fsar_jax.messages import one_line


class ThreeClips:
    """Two classes; frame i of a clip is grey level 10·i, with a box in the first class."""

    class_names = ['still', 'other', 'moving']
    labels = np.array([0, 2, 2])

    def read(self, position):
        frames = [encode_jpeg(np.full((16, 16, 3), 10 * i, np.uint8), 95) for i in range(20)]
        boxes = np.zeros((20, 4)) if position else np.tile([2.0, 2, 12, 12], (20, 1))
        return {'frames': frames, 'boxes': boxes, 'action_start': 1, 'action_end': 5}


def test_rows_are_classes_and_columns_the_test_frames():
    sheet = np.asarray(contact_sheet(ThreeClips(), length=4, columns=1, height=16))
    assert sheet.shape == (32, LABEL_WIDTH + 4 * 16, 3)
    shown = sheet[16:, LABEL_WIDTH:].reshape(16, 4, 16, 3).mean((0, 2, 3))
    # Frames 1, 6, 12, 18: the published rule, from 1 to n − 2.
    np.testing.assert_allclose(shown, [10, 60, 120, 180], atol=2)
    assert (sheet[2, LABEL_WIDTH + 2 : LABEL_WIDTH + 13] == 255).all()  # the box of the first class
    assert (sheet[:16, :LABEL_WIDTH] > 200).any()  # its name is written


def test_letters_with_accents_are_no_boxes():
    pytest.importorskip('matplotlib')

    def drawn(name):
        clips = ThreeClips()
        clips.class_names = [name, '', '']
        sheet = contact_sheet(clips, length=4, columns=1, height=32)
        return np.asarray(sheet)[:16, :LABEL_WIDTH]  # without the line below the name

    letters = [drawn(letter) for letter in 'üïéłğÆ']
    assert all(letter.any() for letter in letters)
    assert len({letter.tobytes() for letter in letters}) == len(letters)


def run(*flags):
    """The command, in this process: the error that it ends with, None when all went well."""
    try:
        command.main([*flags])
    except (ValueError, OSError) as error:
        return f'error: {one_line(error)}'


def test_the_command_expands_its_paths_and_writes_the_picture(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'data').symlink_to(tiny_data)
    assert run('--dataset=video_folder/tiny', '--dir=~/data', '--out=~/sheet.PNG') is None
    assert Image.open(tmp_path / 'sheet.PNG').size == (2 * (LABEL_WIDTH + 8 * 80), 2 * 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'sheet.PNG']


@pytest.mark.parametrize(
    'flags, message',
    [
        (
            ['--out=gs://bucket/sheet.png'],
            'error: --out=gs://bucket/sheet.png: gs:// addresses are not',
        ),
        (
            ['--dir=s3://bucket/data', '--out=a.png'],
            'error: --dir=s3://bucket/data: s3:// addresses are not',
        ),
        (['--out=sheet.xyz'], 'error: --out=sheet.xyz does not end in .png or .jpg'),
        (['--out=sheet'], 'error: --out=sheet does not end in .png or .jpg'),
        (['--out=no/such/folder.png'], 'error: --out=no/such/folder.png lies in a folder that'),
        (['--out=a.png', '--frames=0'], 'error: cannot take 0 frames'),
        (['--out=a.png', '--clip=-1'], 'error: --clip=-1 must be at least 0'),
        (['--out=a.png', '--split=dev'], "error: dataset 'video_folder/tiny' has no split 'dev'"),
        (
            ['--out=a.png', '--dataset=video_folder/none'],
            "error: dataset 'video_folder/none' is not in",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tiny_data, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    said = run('--dataset=video_folder/tiny', f'--dir={tiny_data}', *flags)
    assert said.startswith(message) and '\n' not in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize('module', ['fsar_jax.verify', 'fsar_jax.contact_sheet'])
def test_ctrl_c_is_one_line_from_before_the_slow_imports_on(module):
    script = f"""
import runpy, sys, time
from fsar_jax import stopping
real = stopping.on_signals
def on_signals(message):
    real(message)
    assert 'tensorflow_datasets' not in sys.modules and 'numpy' not in sys.modules
    print('ready', flush=True)
    time.sleep(60)
stopping.on_signals = on_signals
runpy.run_module('{module}', run_name='__main__')
"""
    process = subprocess.Popen(
        [sys.executable, '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (
        process.returncode == 130
        and said.startswith('stopped (Ctrl-C): no')
        and said.count('\n') == 1
    )
