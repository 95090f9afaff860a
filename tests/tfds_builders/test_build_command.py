"""The command: where it writes, what it says of damage, and how it is stopped."""

import errno
import multiprocessing
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fsar_jax import build, machine, stopping, verify
from fsar_jax.data.dataset import open_dataset
from fsar_jax.ingest import archives, video_builder, workers
from fsar_jax.ingest.video_files import write_video
from fsar_jax.stopping import errors_in_one_line

REPOSITORY = pathlib.Path(build.__file__).parents[1]
NAME = 'video_folder/mine'
ODD = ('with [x] and {y}', 'a*b?c', 'two\nlines', "quote's \"and\" $HOME", 'é中%20#', '-rf', '~')


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp('clips')
    for split, name in (('train', 'jump'), ('val', 'sit'), ('test', 'wave')):
        (root / split / name).mkdir(parents=True)
        write_video(root / split / name / 'a.mp4', np.full((8, 16, 16, 3), 90, np.uint8))
    return root


def run(videos, data_dir, *flags, name=NAME):
    flags = (
        f'--dataset={name}',
        f'--videos={videos}',
        f'--dir={data_dir}',
        '--processes=0',
        '--short_side=16',
        *flags,
    )
    return build.build(build.parse(list(flags)))


@pytest.mark.parametrize('odd', ODD, ids=ascii)
def test_paths_with_any_characters(odd, clips, tmp_path, monkeypatch, capsys):
    videos = shutil.copytree(clips, tmp_path / 'videos' / odd)
    for split in ('train', 'test'):  # also in a class folder, where a name is a path and text
        if odd.isprintable():
            (videos / split / os.listdir(videos / split)[0]).rename(
                videos / split / f'{odd} {split}'
            )
    data_dir = tmp_path / 'data' / odd
    directory = run(videos, data_dir)
    dataset = open_dataset(NAME, data_dir, 'train')
    assert directory == data_dir / NAME / '1.0.0' and dataset.read(0)['num_frames'] == 8
    assert run(videos, data_dir) == directory and run(videos, data_dir, '--overwrite') == directory
    printed = capsys.readouterr().out.encode()  # strict: half a character would raise
    assert b'is built already' in printed
    monkeypatch.chdir(tmp_path)  # relative, as most give them
    assert run(pathlib.Path('videos', odd), pathlib.Path('data', odd)) == pathlib.Path(
        'data', odd, NAME, '1.0.0'
    )


def test_paths_of_bytes_that_are_no_text(clips, tmp_path, capsys):
    odd = os.fsdecode(b'caf\xe9')
    directory = run(shutil.copytree(clips, tmp_path / odd), tmp_path / 'data')
    assert (
        open_dataset(NAME, tmp_path / 'data', 'test').read(0)['num_frames'] == 8
        and directory.is_dir()
    )
    # array_record takes no such path.
    with pytest.raises(ValueError, match=r'--dir=.*caf\\udce9.data: the path is not UTF-8'):
        run(clips, tmp_path / odd / 'data')
    with pytest.raises(FileNotFoundError, match=r'--videos=.*caf\\udce9/none is not a folder'):
        run(tmp_path / odd / 'none', tmp_path / 'data', '--overwrite')
    capsys.readouterr().out.encode()


def test_a_tilde_is_the_home_folder(clips, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips, tmp_path / 'my clips')
    assert run('~/my clips', '~/data') == tmp_path / 'data' / NAME / '1.0.0'
    assert not (tmp_path / '~').exists()
    with pytest.raises(FileNotFoundError, match=f'no videos of ucf101_arn in {tmp_path}/lists'):
        build.build(build.parse(['--dataset=ucf101_arn', '--manual_dir=~/lists', '--dir=~']))


@pytest.mark.parametrize('flag', ('dir', 'videos', 'manual_dir'))
@pytest.mark.parametrize(
    'address', ('gs://bucket/data', 's3://bucket/data', 'file:///data', 'gs:/bucket')
)
def test_addresses_are_refused_before_anything_is_made(flag, address, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=f'--{flag}={address}: .*:// addresses are not read or written here'
    ) as caught:
        build.build(
            build.parse(
                [
                    '--dataset=video_folder/mine',
                    f'--videos={clips}',
                    '--dir=data',
                    f'--{flag}={address}',
                ]
            )
        )
    assert '\n' not in str(caught.value) and not os.listdir(tmp_path)


@pytest.mark.parametrize('file', ('metadata.json', 'dataset_info.json', 'features.json'))
@pytest.mark.parametrize('damage', ('empty', 'cut', 'other', 'gone'))
def test_a_damaged_dataset_names_the_file(file, damage, built, clips, tmp_path):
    directory = shutil.copytree(built, tmp_path / NAME / '1.0.0')
    path = directory / file
    if damage == 'gone':
        path.unlink()
    else:
        path.write_bytes({'empty': b'', 'cut': path.read_bytes()[:40], 'other': b'[1, 2]'}[damage])
    with pytest.raises((ValueError, FileNotFoundError), match=f'{file}.*--overwrite') as caught:
        run(clips, tmp_path)
    assert '\n' not in str(caught.value)
    assert run(clips, tmp_path, '--overwrite') == directory
    assert len(open_dataset(NAME, tmp_path, 'train')) == 1


def test_the_advice_for_a_damaged_dataset_builds_the_same_again(built, clips, tmp_path):
    directory = shutil.copytree(built, tmp_path / NAME / '1.0.0')
    sums = (directory / 'SHA256SUMS').read_bytes()
    (directory / 'features.json').write_text('{')
    with pytest.raises(ValueError, match='build it again: python -m fsar_jax.build ') as caught:
        open_dataset(NAME, tmp_path, 'train')
    advice = str(caught.value).partition('build it again: ')[2]
    assert advice in verify.examine(NAME, tmp_path)[0]
    flags = shlex.split(advice.partition('fsar_jax.build ')[2])
    build.build(build.parse([flag.replace('=FOLDER', f'={clips}') for flag in flags]))
    assert (directory / 'SHA256SUMS').read_bytes() == sums


def test_overwriting_tries_skipped_files_of_an_unfinished_build_again(clips, tmp_path):
    """A file that is replaced by one of the same size, such as a download that began as zeros."""
    videos = shutil.copytree(clips, tmp_path / 'videos')
    path = videos / 'train' / 'jump' / 'a.mp4'
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    run(videos, tmp_path, '--shards=0/1')
    path.write_bytes(content)
    run(videos, tmp_path, '--overwrite')
    assert len(open_dataset(NAME, tmp_path, 'train')) == 1


@pytest.fixture(scope='module')
def built(clips, tmp_path_factory):
    return run(clips, tmp_path_factory.mktemp('built'))


@pytest.mark.parametrize(
    'content', (b'', b'{', b'[1, 2]', b'"text"', b'\xff\xfe', b'{"fingerprint": 1}')
)
def test_a_damaged_note_is_a_shard_to_be_made_again(content, clips, tmp_path):
    folder = run(clips, tmp_path, '--shards=0/1')
    for note in folder.glob('*.json'):
        note.write_bytes(content)
    run(clips, tmp_path)
    assert len(open_dataset(NAME, tmp_path, 'test')) == 1


def test_a_disk_that_is_full_at_the_very_end(clips, tmp_path, monkeypatch):
    def full(path, skipped):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(video_builder, 'write_skipped', full)
    with pytest.raises(
        OSError, match='the disk is full: .*; 3 of 3 shards are finished and kept, make room'
    ):
        run(clips, tmp_path)
    monkeypatch.undo()
    shards = {
        path.name: path.stat().st_ino
        for path in (tmp_path / NAME / 'incomplete').glob('*-of-?????')
    }
    directory = run(clips, tmp_path)
    assert shards and {name: (directory / name).stat().st_ino for name in shards} == shards


def test_a_file_that_ends_a_strict_build_ends_its_processes(clips, tmp_path):
    """At once: what the others read meanwhile nobody waits for."""
    videos = shutil.copytree(clips, tmp_path / 'videos')
    (videos / 'train' / 'jump' / '0.mp4').write_bytes(b'no video')
    before = set(multiprocessing.active_children())
    with pytest.raises(ValueError, match='train/jump/0.mp4 cannot be used: not a video'):
        run(videos, tmp_path, '--strict', '--processes=1')
    assert set(multiprocessing.active_children()) == before


def test_a_system_without_linux_signal_masks_and_core_lists(clips, tmp_path, monkeypatch):
    """As macOS: no sched_getaffinity, and what else may lack."""
    for module, name in ((os, 'sched_getaffinity'), (signal, 'pthread_sigmask')):
        monkeypatch.delattr(module, name, raising=False)
    assert machine.usable_cores() == os.cpu_count()
    with workers._without_ctrl_c(), workers._quiet_tracker():
        assert 'ignore:resource_tracker' in os.environ['PYTHONWARNINGS']
    assert 'resource_tracker' not in os.environ.get('PYTHONWARNINGS', '')
    assert workers._pool(1)._mp_context.get_start_method() == 'spawn'
    run(clips, tmp_path)


@pytest.mark.slow
def test_a_script_without_a_main_guard_builds_with_processes(clips, tmp_path):
    """As the lines of README, saved as a file: what is started must not run the file again."""
    script = tmp_path / 'mine.py'
    script.write_text(
        'import tensorflow_datasets as tfds\n'
        'import tfds_builders.video_folder\n'
        "print('started')\n"
        f"builder = tfds.builder('video_folder/mine', videos={str(clips)!r}, data_dir='data', "
        'processes=2)\n'
        'builder.download_and_prepare()\n'
        "print(len(builder.as_data_source('test')), __file__)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count('started') == 1 and lines[-1] == f'1 {script}'
    assert 'Traceback' not in done.stderr


def test_a_dataset_among_its_own_clips_is_refused(clips, tmp_path):
    folder = shutil.copytree(clips, tmp_path / 'clips')
    (tmp_path / 'link').symlink_to(folder)
    for data in (folder / 'data', tmp_path / 'link' / 'data'):
        with pytest.raises(ValueError, match='lies in the folder of the clips, .*: give a --dir'):
            run(folder, data)
        assert not data.exists()
    run(folder, tmp_path / 'clips2')  # beside it, with a name that begins alike


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--dataset=ucf101_arn/replaced'], 'choose another name after ucf101_arn/'),
        (['--dataset=ucf101_arn/incomplete'], 'choose another name after ucf101_arn/'),
        (['--videos_per_shard=-5'], 'videos_per_shard=-5 must be at least 1'),
        (['--dataset=synthetic_actions/aligned', '--seed=-1'], 'seed=-1 must be at least 0'),
    ],
)
def test_values_that_no_build_can_have(flags, words, clips, tmp_path):
    given = [f'--dataset={NAME}'] * (len(flags) == 1 and 'dataset' not in flags[0]) + flags
    videos = [f'--videos={clips}'] * ('synthetic' not in given[0])
    with pytest.raises(ValueError, match=words):
        build.build(build.parse([*given, *videos, f'--dir={tmp_path}/data', '--processes=0']))


def test_processes_that_start_never_see_ctrl_c():
    with workers._without_ctrl_c():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_errors_of_the_system_say_which_path(clips, tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(
        sys,
        'argv',
        ['build', f'--dataset={NAME}', f'--videos={clips}', f'--dir={tmp_path}/file/data'],
    )
    with pytest.raises(SystemExit) as caught, errors_in_one_line():
        build.main()
    assert str(caught.value).startswith('error: ') and f'{tmp_path}/file' in str(caught.value)
    assert 'Errno' not in str(caught.value) and 'Not a directory' in str(caught.value)


def test_names_in_what_it_prints_stay_in_their_line(clips, tmp_path, capsys):
    videos = shutil.copytree(clips, tmp_path / 'videos')
    (videos / 'train' / 'jump' / 'b.mp4\nbuilt other\x1b[2J.txt').write_text('')
    directory = run(videos, tmp_path)
    printed = capsys.readouterr().out
    assert 'b.mp4\\nbuilt other\\x1b[2J.txt' in printed and '\x1b' not in printed
    assert len((directory / 'skipped.tsv').read_text().splitlines()) == 2
    with pytest.raises(ValueError, match=r"unknown dataset 'x\\ny'"):
        build.build(build.parse(['--dataset=x\ny']))


def children(pid):
    """Process ids of all descendants."""
    found = set()
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
        try:
            parent = int(path.read_text().rpartition(')')[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found |= {int(path.parent.name)} | children(int(path.parent.name))
    return found


def runs(pid):
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
@pytest.mark.parametrize(
    'moment, processes, number',
    (
        ('importing', 0, signal.SIGTERM),
        ('decoding', 0, signal.SIGTERM),
        ('decoding', 1, signal.SIGINT),
    ),
)
def test_a_signal_ends_a_build_with_one_line(moment, processes, number, tmp_path):
    """As a terminal sends Ctrl-C: to every process of the command."""
    flags = [
        '--dataset=synthetic_actions/aligned',
        f'--dir={tmp_path}',
        f'--processes={processes}',
        '--size=32',
    ]
    command = [
        sys.executable,
        '-m',
        'fsar_jax.build',
        *flags,
        '--clips_per_class=100',
        '--videos_per_shard=2',
    ]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    folder, deadline = (
        tmp_path / 'synthetic_actions' / 'aligned' / 'incomplete',
        time.monotonic() + 120,
    )
    maps = pathlib.Path(f'/proc/{process.pid}/maps')
    finished = lambda: [note for note in folder.glob('*.json') if not note.name.startswith('.')]
    while not (finished() if moment == 'decoding' else 'numpy' in maps.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    workers = children(process.pid)
    os.killpg(process.pid, number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors.decode()
    printed = [
        line
        for line in errors.decode().replace('\r', '\n').splitlines()
        if line and 'videos/s]' not in line
    ]
    name = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM'}[number]
    assert (
        printed
        == [f'stopped ({name}): the same command goes on with the shards that are not finished']
        and not out
    )
    if moment == 'decoding':
        assert len(workers) == 2 * processes  # with the one that tidies up after them
        while any(map(runs, workers)):
            assert time.monotonic() < deadline, 'workers outlive the build'
            time.sleep(0.01)
        assert finished() and not list(folder.glob('.*')), 'a draft is left'


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits on memory')
@pytest.mark.parametrize('megabytes', (400, 700))
def test_a_limit_on_memory_is_one_line_and_no_wait(megabytes, tmp_path):
    flags = [
        '--dataset=synthetic_actions/aligned',
        f'--dir={tmp_path}',
        '--processes=0',
        '--size=32',
        '--clips_per_class=1',
    ]
    limit = f'ulimit -v {megabytes * 1000}; exec "$@"'
    command = ['sh', '-c', limit, 'sh', sys.executable, '-m', 'fsar_jax.build', *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    (printed,) = done.stderr.splitlines()
    assert done.returncode == 1 and printed.startswith('error: ') and 'ulimit -v' in printed


def test_extraction_ends_with_the_build(tmp_path, monkeypatch):
    """A program that extracts is told to end, too: what waits for it is in the list of what a
    signal ends first."""
    program = tmp_path / 'unrar'
    program.write_text('#!/bin/sh\nexec sleep 100\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setattr(
        subprocess.Popen,
        'communicate',
        lambda self: [end() for end in stopping._finish_first] and ('', ''),
    )
    with pytest.raises(ValueError, match='unrar could not extract .*: status -9'):
        archives._extract('unrar', tmp_path / 'all.rar', tmp_path / 'out')
