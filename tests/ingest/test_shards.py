"""Builds that are killed, cut into slices, or run out of disk end with the bytes of one that was
left in peace."""

import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from array_record.python import array_record_module

from fsar_jax import build
from fsar_jax.data.dataset import open_dataset
from fsar_jax.ingest import video_builder
from fsar_jax.ingest.shards import cut_into_shards, read_note, write_shard
from tfds_builders.synthetic_actions import motions

REPOSITORY = pathlib.Path(build.__file__).parents[1]
KILLS = int(os.environ.get('FSAR_JAX_KILLS', 3))
SMALL = ('--size=32', '--num_frames=10', '--clips_per_class=1', '--videos_per_shard=4')
NAME = 'synthetic_actions/aligned'


def arguments(data_dir, *flags):
    return [f'--dataset={NAME}', f'--dir={data_dir}', '--processes=0', *SMALL, *flags]


def run(data_dir, *flags):
    return build.build(build.parse(arguments(data_dir, *flags)))


def bytes_of(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def finished(folder):
    """{shard: identity of its file on disk} of the shards that are finished: drafts (hidden, a kill
    leaves them) are not."""
    notes = [note for note in folder.glob('*.array_record-*.json') if not note.name.startswith('.')]
    return {
        note.stem: (folder / note.stem).stat().st_ino
        for note in notes
        if (folder / note.stem).exists()
    }


@pytest.fixture(scope='module')
def unbroken_directory(tmp_path_factory):
    return run(tmp_path_factory.mktemp('unbroken'))


@pytest.fixture(scope='module')
def unbroken(unbroken_directory):
    return bytes_of(unbroken_directory)


def test_each_shard_holds_the_videos_that_the_list_gives_it(unbroken_directory):
    """Against the table of classes, one clip of each; other tests compare builds with builds."""
    data_dir = unbroken_directory.parents[2]
    for split, names in motions.SPLITS.items():
        listed = [f'{name}/000' for name in names]
        dataset = open_dataset(NAME, data_dir, split)
        read = [dataset.read(position) for position in range(len(dataset))]
        assert [record['video_id'] for record in read] == dataset.video_ids == listed
        assert [dataset.class_names[record['label']] for record in read] == list(names)
        count = len(names) // 4
        assert len(dataset.files) == count and len(names) == 4 * count
        for number, file in enumerate(dataset.files):
            assert file.endswith(f'-{split}.array_record-{number:05d}-of-{count:05d}')
            reader = array_record_module.ArrayRecordReader(str(unbroken_directory / file))
            assert reader.num_records() == 4
            reader.close()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='inodes and SIGKILL')
def test_killed_at_random_moments(unbroken, tmp_path):
    """Without worker processes and with them, in turn. FSAR_JAX_KILLS=20 for more of them."""
    moments, folder = random.Random(), tmp_path / NAME
    kept, kills, started = {}, 0, time.monotonic()
    while kills < KILLS:
        process = subprocess.Popen(
            [
                sys.executable,
                '-m',
                'fsar_jax.build',
                *arguments(tmp_path),
                f'--processes={kills % 2 * 2}',
            ],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        # From before the first shard on: a process needs seconds to start, and a build of this size
        # one.
        before = len(finished(folder / 'incomplete')) if folder.exists() else 0
        while process.poll() is None and not folder.exists():
            time.sleep(0.01)
        patience = (moments.random() < 0.7 or not kills) and before < 24
        while (
            patience and process.poll() is None and len(finished(folder / 'incomplete')) <= before
        ):
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        kills += 1
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        if (folder / 'incomplete').exists():
            now = finished(folder / 'incomplete')
            assert kept.items() <= now.items(), 'a finished shard was lost or written again'
            kept = now
        assert time.monotonic() - started < 60 + 30 * KILLS
    directory = run(tmp_path)
    assert {name: (directory / name).stat().st_ino for name in kept} == kept
    assert bytes_of(directory) == unbroken
    assert kept, 'every kill came too early to test anything'


@pytest.mark.parametrize(
    'renamed',
    [
        pytest.param(0, id='before the records have their name', marks=pytest.mark.slow),
        pytest.param(1, id='before their note has its name'),
    ],
)
def test_killed_while_a_shard_gets_its_name(unbroken, tmp_path, monkeypatch, renamed):
    """The two moments, too short to be met by chance, at which a whole shard is there and yet is
    not finished."""
    names, rename = [], pathlib.Path.replace

    class Killed(BaseException):
        """What a kill does: nothing is tidied up."""

    def replace(self, target):
        names.append(target.name)
        if len(names) == 2 * 3 + renamed + 1:  # in the fourth shard
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, 'replace', replace)
    monkeypatch.setattr(pathlib.Path, 'unlink', lambda self, missing_ok=False: None)
    with pytest.raises(Killed):
        run(tmp_path)
    monkeypatch.undo()
    folder = tmp_path / NAME / 'incomplete'
    kept, drafts = (
        finished(folder),
        [path.name for path in folder.iterdir() if path.name.startswith('.')],
    )
    assert (len(kept), len(drafts)) == (3, 2 - renamed)
    directory = run(tmp_path)
    assert {name: (directory / name).stat().st_ino for name in kept} == kept
    assert bytes_of(directory) == unbroken


def test_slices_in_any_order_then_finish(unbroken, tmp_path, capsys):
    with pytest.raises(
        ValueError, match=r'25 of 25 shards are not in .*-train.array_record-00000-of-00016'
    ):
        run(tmp_path, '--finish')
    for i in (2, 0):
        run(tmp_path, f'--shards={i}/3')
    with pytest.raises(
        ValueError, match='8 of 25 shards are not in .*00001-of-00016: give the command without'
    ):
        run(tmp_path, '--finish')
    with pytest.raises(FileNotFoundError, match='build it with'):
        open_dataset(NAME, tmp_path, 'train')
    # Another machine without a common disk: its files are copied.
    elsewhere = tmp_path / 'elsewhere'
    run(elsewhere, '--shards=1/3')
    assert (
        'slice 1/3 of synthetic_actions/aligned: 8 shards built, 0 were there'
        in capsys.readouterr().out
    )
    for path in (elsewhere / NAME / 'incomplete').iterdir():
        shutil.copy(path, tmp_path / NAME / 'incomplete')
    run(tmp_path, '--shards=1/3')
    assert '0 shards built, 8 were there, 25 in all slices' in capsys.readouterr().out
    assert bytes_of(run(tmp_path, '--finish')) == unbroken


@pytest.mark.slow
def test_a_shard_of_another_list_is_not_taken_over(unbroken, tmp_path):
    run(tmp_path, '--shards=0/2', '--seed=1')
    with pytest.raises(ValueError, match='25 of 25 shards are not in'):
        run(tmp_path, '--finish')
    cut = tmp_path / NAME / 'incomplete'
    run(tmp_path, '--shards=0/2')
    whole = next(iter(finished(cut)))
    (cut / whole).write_bytes((cut / whole).read_bytes()[:-100])
    assert bytes_of(run(tmp_path)) == unbroken


@pytest.mark.slow
def test_overwrite_goes_on_where_it_stopped(unbroken, tmp_path):
    run(tmp_path)
    run(tmp_path, '--overwrite', '--shards=0/2')
    kept = finished(tmp_path / NAME / 'incomplete')
    assert len(kept) == 13
    directory = run(tmp_path, '--overwrite')
    assert {name: (directory / name).stat().st_ino for name in kept} == kept
    assert bytes_of(directory) == unbroken


def test_a_full_disk_keeps_what_is_done(unbroken, tmp_path, capsys, monkeypatch):
    """The limit on the size of a file fails a write as a full disk does."""
    original = video_builder.write_shard

    def write(folder, shard, *rest):
        limit = 3000 if shard.split == 'val' else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            original(folder, shard, *rest)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    monkeypatch.setattr(video_builder, 'write_shard', write)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError) as caught:
            run(tmp_path)
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    message = (
        'the disk is full: no room for shard 1 of 3 of val; 16 of 25 shards are finished and kept, '
        'make room'
    )
    assert str(caught.value).startswith(message)
    assert 'nothing was skipped' in capsys.readouterr().out
    monkeypatch.undo()
    kept = finished(tmp_path / NAME / 'incomplete')
    assert len(kept) == 16
    directory = run(tmp_path)
    assert '16 of 25 shards are there from an earlier call' in capsys.readouterr().out
    assert {name: (directory / name).stat().st_ino for name in kept} == kept
    assert bytes_of(directory) == unbroken


def test_an_error_that_is_no_full_disk_stays_what_it_is(tmp_path):
    (shard,) = cut_into_shards(
        'name', {'train': [video_builder.VideoSource('a', 0, 1, 'a')]}, 1, {}
    )

    def broken():
        yield b'record'
        raise ValueError('a bug')

    with pytest.raises(ValueError, match='a bug'):
        write_shard(tmp_path, shard, broken(), {})
    assert not list(tmp_path.iterdir()) and read_note(tmp_path, shard) is None


@pytest.mark.parametrize('text', ('3/3', '-1/2', '1', 'a/b', '0/0'))
def test_wrong_slices(text, tmp_path):
    with pytest.raises(ValueError, match=f'--shards={text} should be I/N with I from 0 to N - 1'):
        run(tmp_path, f'--shards={text}')
    with pytest.raises(ValueError, match='give one of them'):
        run(tmp_path, '--shards=0/2', '--finish')
