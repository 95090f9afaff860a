"""Folders of real clips, whole and broken, built with the command."""

import csv
import fractions
import functools
import itertools
import os
import pathlib
import shutil
import time

import av
import numpy as np
import pytest

from fsar_jax import build
from fsar_jax.data.dataset import open_dataset
from fsar_jax.data.frames import decode_jpeg
from fsar_jax.ingest import workers
from fsar_jax.ingest.records import RecordSettings
from fsar_jax.ingest.skipped import Skipped, skipped_table
from fsar_jax.ingest.video_builder import VideoSource, videos_per_shard
from fsar_jax.ingest.video_files import REASONS, write_video
from fsar_jax.ingest.workers import ordered_pool
from fsar_jax.machine import file_lock
from tfds_builders import video_folder
from tfds_builders.video_folder.video_folder_dataset_builder import list_folder, split_classes

COLOURS = list(itertools.product((40, 128, 215), repeat=3))


def write_clip(path, colour, num_frames=12):
    """A clip of one colour that darkens slowly, so that each class can be told from its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    light = np.linspace(1, 0.8, num_frames)[:, None, None, None]
    frames = light * np.broadcast_to(np.array(colour), (num_frames, 32, 48, 3))
    # The suffix is in capitals on some cameras; the encoder is chosen by the small one.
    small = path.with_suffix(path.suffix.lower())
    write_video(small, frames.astype(np.uint8))
    small.rename(path)


def run(root, data_dir, *flags, name='mine'):
    return build.build(
        build.parse(
            [
                f'--dataset=video_folder/{name}',
                f'--videos={root}',
                f'--dir={data_dir}',
                '--processes=0',
                '--short_side=32',
                *flags,
            ]
        )
    )


def skipped_in(directory):
    """{path: reason} of skipped.tsv."""
    with open(directory / 'skipped.tsv', newline='') as file:
        return {
            '/'.join(filter(None, (row['split'], row['class'], row['name']))): row['reason']
            for row in csv.DictReader(file, delimiter='\t')
        }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Three classes in three splits, every container, two clips of the same name in two classes."""
    root = tmp_path_factory.mktemp('whole')
    for colour, (split, name) in zip(
        COLOURS, (('train', 'jump'), ('train', 'run'), ('val', 'sit'), ('test', 'wave'))
    ):
        for clip in ('a.mp4', 'b.avi', 'c.webm', 'd.MKV'):
            write_clip(root / split / name / clip, colour)
    return root


@pytest.fixture(scope='module')
def broken(whole, tmp_path_factory):
    """The same with one file or folder for every reason."""
    root = tmp_path_factory.mktemp('broken') / 'clips'
    shutil.copytree(whole, root)
    jump = root / 'train' / 'jump'
    (jump / 'empty.mp4').touch()
    (jump / 'text.mp4').write_text('no video\n' * 50)
    (jump / 'cut.avi').write_bytes((jump / 'b.avi').read_bytes()[:-5000])
    write_clip(jump / 'short.webm', COLOURS[0], num_frames=3)
    with av.open(str(jump / 'sound.mp4'), 'w') as container:
        stream = container.add_stream('aac', rate=44100, layout='mono')
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format='fltp', layout='mono'
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (jump / 'notes.txt').write_text('notes')
    (jump / '.hidden.mp4').write_text('hidden')
    (jump / 'more').mkdir()
    (jump / 'more' / 'deep.mp4').write_text('deep')
    (root / 'train' / 'nothing').mkdir()
    (root / 'train' / 'loose.mp4').write_text('loose')
    (root / 'other' / 'class').mkdir(parents=True)
    (root / 'other' / 'class' / 'x.mp4').write_text('x')
    return root


BROKEN = {
    'train/jump/empty.mp4': 'empty file',
    'train/jump/text.mp4': 'not a video',
    'train/jump/cut.avi': 'truncated',
    'train/jump/short.webm': 'too short',
    'train/jump/sound.mp4': 'no video stream',
    'train/jump/notes.txt': 'not a video',
    'train/jump/.hidden.mp4': 'hidden',
    'train/jump/more/deep.mp4': 'in a folder inside the class folder',
    'train/nothing': 'empty class folder',
    'train/loose.mp4': 'not in a class folder',
    'other/class/x.mp4': 'not in a split folder (train, val, test)',
}


def test_every_container_ends_in_its_split_under_its_class(whole, tmp_path, capsys):
    directory = run(whole, tmp_path)
    assert directory == tmp_path / 'video_folder' / 'mine' / '1.0.0'
    assert 'nothing was skipped' in capsys.readouterr().out and skipped_in(directory) == {}
    ids = {
        split: open_dataset('video_folder/mine', tmp_path, split).video_ids
        for split in ('train', 'val', 'test')
    }
    assert ids == {
        'train': [f'{name}/{clip}' for name in ('jump', 'run') for clip in 'abcd'],
        'val': [f'sit/{clip}' for clip in 'abcd'],
        'test': [f'wave/{clip}' for clip in 'abcd'],
    }
    for split in ids:
        dataset = open_dataset('video_folder/mine', tmp_path, split)
        assert dataset.class_names == ['jump', 'run', 'sit', 'wave']
        for i in range(len(dataset)):
            record = dataset.read(i)
            assert (
                record['video_id'] == dataset.video_ids[i] and record['label'] == dataset.labels[i]
            )
            assert dataset.class_names[record['label']] == record['video_id'].split('/')[0]
            assert record['num_frames'] == dataset.num_frames[i] == 12 and (
                record['width'],
                record['height'],
            ) == (48, 32)
            first = decode_jpeg(record['frames'][0]).mean((0, 1))
            assert np.abs(first - COLOURS[record['label']]).max() < 12


def test_what_cannot_be_used_is_in_the_table_and_nothing_else_is(broken, tmp_path, capsys):
    directory = run(broken, tmp_path)
    assert skipped_in(directory) == BROKEN
    printed = capsys.readouterr().out
    assert f'skipped: {len(BROKEN)}' in printed
    for file, reason in BROKEN.items():
        assert any(reason in line and file in line for line in printed.splitlines()), file
    kept = [
        video_id
        for split in ('train', 'val', 'test')
        for video_id in open_dataset('video_folder/mine', tmp_path, split).video_ids
    ]
    files = {path for path in broken.rglob('*') if path.is_file()}
    assert len(kept) + len(BROKEN) == len(files) + 1  # one of the skipped is an empty folder
    run(broken, tmp_path)
    assert f'is built already: {directory}, {len(BROKEN)} files skipped' in capsys.readouterr().out


def test_strict_stops_and_leaves_nothing_behind(broken, tmp_path):
    with pytest.raises(
        ValueError,
        match='other/class/x.mp4 cannot be used: not in a split folder .*; without --strict',
    ):
        run(broken, tmp_path, '--strict')
    only_cut = tmp_path / 'clips'
    shutil.copytree(broken / 'train' / 'run', only_cut / 'train' / 'jump')
    shutil.copy(broken / 'train' / 'jump' / 'cut.avi', only_cut / 'train' / 'jump')
    with pytest.raises(ValueError, match=r'train/jump/cut.avi cannot be used: truncated \(.*\)'):
        run(only_cut, tmp_path, '--strict')
    assert [path.name for path in (tmp_path / 'video_folder' / 'mine').iterdir()] == ['.lock']


def test_a_failed_overwrite_keeps_what_was_there(whole, broken, tmp_path):
    run(whole, tmp_path)
    with pytest.raises(ValueError, match='--strict'):
        run(broken, tmp_path, '--strict', '--overwrite')
    assert len(open_dataset('video_folder/mine', tmp_path, 'train').read(0)['frames']) == 12


def test_a_changed_folder_or_setting_is_noticed(whole, tmp_path):
    root = tmp_path / 'clips'
    shutil.copytree(whole, root)
    run(root, tmp_path)
    with pytest.raises(
        ValueError, match='other settings .max_frames is 64, asked for 8.: use --overwrite'
    ):
        run(root, tmp_path, '--max_frames=8')
    shutil.copy(root / 'test' / 'wave' / 'a.mp4', root / 'test' / 'wave' / 'e.mp4')
    with pytest.raises(ValueError, match='other settings .folder_hash is'):
        run(root, tmp_path)
    run(root, tmp_path, '--overwrite', '--max_frames=8')
    dataset = open_dataset('video_folder/mine', tmp_path, 'test')
    assert dataset.video_ids[-1] == 'wave/e' and dataset.num_frames.tolist() == [8] * 5


def test_a_killed_build_is_done_again(whole, tmp_path):
    left = (
        tmp_path
        / 'video_folder'
        / 'mine'
        / 'incomplete'
        / 'video_folder'
        / 'mine'
        / 'incomplete.ABC_1.0.0'
    )
    left.mkdir(parents=True)
    (left / 'video_folder-train.array_record-00000-of-00001').write_bytes(b'half a record')
    with pytest.raises(FileNotFoundError, match='build it with python -m fsar_jax.build'):
        open_dataset('video_folder/mine', tmp_path, 'train')
    run(whole, tmp_path)
    assert not left.exists() and len(open_dataset('video_folder/mine', tmp_path, 'train')) == 8


def test_a_split_where_nothing_can_be_used(tmp_path):
    for colour, name in zip(COLOURS, ('train/jump', 'test/wave')):
        write_clip(tmp_path / 'clips' / name / 'a.mp4', colour)
    (tmp_path / 'clips' / 'val' / 'sit').mkdir(parents=True)
    (tmp_path / 'clips' / 'val' / 'sit' / 'a.mp4').touch()
    run(tmp_path / 'clips', tmp_path)
    assert len(open_dataset('video_folder/mine', tmp_path, 'test')) == 1
    with pytest.raises(
        ValueError, match="split 'val' of dataset 'video_folder/mine' is empty: see .*skipped.tsv"
    ):
        open_dataset('video_folder/mine', tmp_path, 'val')
    shutil.rmtree(tmp_path / 'clips' / 'train')
    shutil.rmtree(tmp_path / 'clips' / 'test')
    with pytest.raises(ValueError, match='no video could be used: all 1 were skipped'):
        run(tmp_path / 'clips', tmp_path, name='none')


def test_class_folders_without_splits_and_names_that_clash(tmp_path):
    for colour, name in zip(COLOURS, 'abcdefg'):
        write_clip(tmp_path / name / 'same.mp4', colour)
    shutil.copy(tmp_path / 'a' / 'same.mp4', tmp_path / 'a' / 'same.avi')
    videos = list_folder(tmp_path)
    assert videos.class_names == list('abcdefg') and videos.skipped == []
    split_of = split_classes(list('abcdefg'))
    found = {
        video.video_id: (split, videos.class_names[video.label])
        for split, sources in videos.splits.items()
        for video in sources
    }
    assert found == {f'{name}/same': (split_of[name], name) for name in 'bcdefg'} | {
        'a/same.avi': (split_of['a'], 'a'),
        'a/same.mp4': (split_of['a'], 'a'),
    }


def test_the_split_of_classes_is_a_function_of_their_names():
    names = [f'class {i}' for i in range(100)]
    split_of = split_classes(names)
    assert split_of == split_classes(names[::-1])
    counts = lambda split_of: [
        list(split_of.values()).count(split) for split in ('train', 'val', 'test')
    ]
    assert counts(split_of) == [64, 12, 24]
    # Not in the order of names.
    assert split_of['class 0'] != split_of['class 2'] or split_of['class 0'] != split_of['class 5']
    for count in range(3, 60):
        train, val, test = counts(split_classes(names[:count]))
        assert min(train, val, test) >= (2 if count >= 6 else 1), count
        if count >= 17:
            assert abs(val - 0.12 * count) <= 0.5 and abs(test - 0.24 * count) <= 0.5
    with pytest.raises(ValueError, match='2 class folders cannot be split'):
        split_classes(['a', 'b'])


def test_a_class_in_two_splits(tmp_path):
    for split in ('train', 'test'):
        (tmp_path / split / 'jump').mkdir(parents=True)
    with pytest.raises(ValueError, match="class 'jump' is in more than one split"):
        list_folder(tmp_path)


@pytest.mark.parametrize(
    'flags, message',
    (
        (['--dataset=video_folder/mine'], 'needs --videos=FOLDER'),
        (['--dataset=video_folder/mine', '--videos=nowhere'], '--videos=nowhere is not a folder'),
        (['--dataset=video_folder', '--videos=.'], 'needs a name'),
        (['--dataset=video_folder/../x', '--videos=.'], 'needs a name'),
        (['--dataset=ucf'], "unknown dataset 'ucf': choose one of synthetic_actions, video_folder"),
        (
            ['--dataset=synthetic_actions/odd'],
            'choose synthetic_actions/ followed by one of aligned, misaligned',
        ),
        (['--dataset=synthetic_actions/aligned', '--videos=.'], '--videos is for video_folder'),
        (
            ['--dataset=video_folder/mine', '--videos=.', '--clips_per_class=3'],
            '--clips_per_class is not a setting of video_folder',
        ),
        (
            ['--dataset=synthetic_actions/aligned', '--processes=-1'],
            '--processes=-1 must be at least 0',
        ),
        (
            ['--dataset=synthetic_actions/aligned', '--jpeg_quality=0'],
            'jpeg_quality=0 must be from 1 to 100',
        ),
    ),
)
def test_wrong_flags_are_one_line(flags, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        build.build(build.parse([*flags, f'--dir={tmp_path}']))
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_two_builds_at_once(whole, tmp_path):
    folder = tmp_path / 'video_folder' / 'mine'
    folder.mkdir(parents=True)
    with (
        file_lock(folder / '.lock'),
        pytest.raises(ValueError, match='another process is building'),
    ):
        run(whole, tmp_path)


def die_of_the_bad(source):
    if source.name == 'bad':
        os._exit(3)
    return source.video_id


def clips(bad, count):
    return [
        VideoSource(f'jump/{i}', 0, 'a path', 'bad' if i in bad else 'good') for i in range(count)
    ]


@pytest.mark.slow
def test_a_file_that_ends_the_worker_is_skipped_and_the_others_are_read():
    """Slower to write than to read: the pool may break while nobody waits for it."""
    found = []
    with ordered_pool(1, die_of_the_bad) as run_pool:
        for record, error in run_pool(clips((0, 1, 4), 8)):
            found.append(record or error.reason)
            time.sleep(0.05)
    assert found == ['ended the process' if i in (0, 1, 4) else f'jump/{i}' for i in range(8)]


def test_workers_that_die_of_everything_are_an_error_and_no_wait(monkeypatch):
    monkeypatch.setattr(workers, '_start_worker', functools.partial(os._exit, 3))
    with pytest.raises(
        ChildProcessError, match='worker processes die whatever they do: too little memory'
    ):
        with ordered_pool(1, die_of_the_bad) as run_pool:
            list(run_pool(clips((), 9)))


def test_the_table_is_cut_but_its_counts_are_not():
    skipped = [Skipped('train', 'jump', f'{i:03d}.mp4', 'truncated') for i in range(100)]
    table = skipped_table(skipped, limit=10)
    assert (
        'skipped: 100' in table
        and '009.mp4' in table
        and '010.mp4' not in table
        and '... and 90 more' in table
    )
    assert ['100', 'truncated', 'train/jump'] in [line.split() for line in table.splitlines()]


def test_shards_hold_about_250_megabytes():
    assert 100 <= videos_per_shard(RecordSettings(256, 64)) <= 200  # 1.8 MB a video
    assert videos_per_shard(RecordSettings(64, 32)) > 3000


def test_the_readme_names_every_reason():
    readme = pathlib.Path(video_folder.__file__).with_name('README.md').read_text()
    for reason in (*BROKEN.values(), *REASONS):
        if reason != 'missing':  # a folder lists what is there
            assert reason.split(' (')[0] in readme, reason


def test_names_that_are_no_text(whole, tmp_path):
    """Python keeps the bytes of such a name as surrogates, which neither records nor tables can
    hold."""
    folder = shutil.copytree(whole, tmp_path / 'clips')
    clip = next(folder.rglob('*.mp4'))
    shutil.copy(clip, os.fsdecode(os.fsencode(clip.parent) + b'/caf\xe9.mp4'))
    pathlib.Path(os.fsdecode(os.fsencode(clip.parent) + b'/caf\xe9.txt')).write_text('notes')
    directory = run(folder, tmp_path)
    rows = [
        line.split('\t')[2:4] for line in (directory / 'skipped.tsv').read_text().splitlines()[1:]
    ]
    assert sorted(rows) == [['caf\\xe9.mp4', 'name is not UTF-8'], ['caf\\xe9.txt', 'not a video']]
    clip.parent.rename(os.fsdecode(os.fsencode(clip.parent) + b'\xe9'))
    for root in (folder, clip.parents[1]):  # <split>/<class>/, and <class>/
        with pytest.raises(
            ValueError, match=r"class folder '.*\\udce9' in .* is not a line of UTF-8: rename it"
        ):
            run(root, tmp_path / 'other')
    for other in ('c\n', ' '):  # which a file of lines does not give back
        moved = clip.parent.with_name(other)
        os.rename(os.fsencode(clip.parent) + b'\xe9', moved)
        with pytest.raises(ValueError, match='is not a line of UTF-8: rename it'):
            run(folder, tmp_path / 'other')
        os.rename(moved, os.fsencode(clip.parent) + b'\xe9')
    # text, though not all of it is printed.
    os.rename(os.fsencode(clip.parent) + b'\xe9', clip.parent.with_name('می\u200cدود\xa0x'))
    assert (
        'می\u200cدود\xa0x'
        in open_dataset(
            'video_folder/mine', run(folder, tmp_path / 'other').parents[2], 'train'
        ).class_names
    )


def test_pixels_that_are_not_square_are_a_setting_that_is_kept(tmp_path):
    for i, name in enumerate(('a', 'b', 'c')):
        path = tmp_path / 'clips' / name / '0.mp4'
        path.parent.mkdir(parents=True)
        with av.open(str(path), 'w') as container:
            stream = container.add_stream('libx264', rate=10)
            stream.width, stream.height, stream.pix_fmt = 128, 96, 'yuv420p'
            stream.codec_context.sample_aspect_ratio = fractions.Fraction(4, 3)
            for _ in range(8):
                picture = np.full((96, 128, 3), 60 + 50 * i, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')))
            container.mux(stream.encode(None))
    for flags, square_pixels, width in (([], 1, 171), (['--square_pixels=0'], 0, 128)):
        run(tmp_path / 'clips', tmp_path / f'{width}', '--short_side=0', *flags)
        dataset = open_dataset('video_folder/mine', tmp_path / f'{width}', 'test')
        assert dataset.settings['square_pixels'] == square_pixels
        assert (dataset.read(0)['width'], dataset.read(0)['height']) == (width, 96)
    with pytest.raises(ValueError, match='square_pixels is 0, asked for 1'):
        run(tmp_path / 'clips', tmp_path / '128', '--short_side=0')


def test_a_dataset_that_is_older_than_a_setting_is_left_alone():
    build._check_same(
        'video_folder/mine', {'short_side': 256}, {'short_side': 256, 'square_pixels': 1}
    )
    with pytest.raises(ValueError, match='short_side is 256, asked for 128'):
        build._check_same(
            'video_folder/mine', {'short_side': 256}, {'short_side': 128, 'square_pixels': 1}
        )
