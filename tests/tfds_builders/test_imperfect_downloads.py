"""What lies about in real downloads, and what is wrong with them: the videos that are whole are
built all the same."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import zipfile

import benchmark_copies as copies
import numpy as np
import pytest
from benchmark_copies import skipped_in

from fsar_jax import build, verify
from fsar_jax.data.dataset import open_dataset
from fsar_jax.data.frames import encode_jpeg
from fsar_jax.ingest import benchmark_builder, benchmark_files
from fsar_jax.ingest.video_files import read_video


def test_what_lies_about_in_a_download(small, tmp_path):
    """A thumbnail, what macOS leaves, a link that goes round, a .zip that is none: the videos
    beside them are there."""
    videos, lists, lines, _ = small('activitynet100')
    copy = shutil.copytree(videos, tmp_path / 'anet' / 'videos')
    shutil.copy(next(videos.glob('*.mp4')), copy / '._0.mp4')
    (copy / 'v_0.jpg').write_bytes(encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    (copy / 'up').symlink_to('..')
    (tmp_path / 'anet' / 'labels.zip').write_bytes(b'')
    directory = copies.build_copy('activitynet100', tmp_path, tmp_path / 'anet', lists)
    assert list(skipped_in(directory).items()) == [
        (
            ('', 'anet', 'labels.zip'),
            ('unreadable', 'not a .zip, or its end is missing: File is not a zip file'),
        )
    ]
    assert open_dataset('activitynet100', tmp_path, 'test').video_ids == lines['test']


def test_what_macos_leaves_among_frames(small, tmp_path):
    videos, lists, lines, class_of = small('ssv2_small_cmn')
    for line in sum(lines.values(), []):
        folder = tmp_path / 'frames' / class_of[line] / line.split('/')[1]
        folder.mkdir(parents=True)
        for i, frame in enumerate(read_video(videos / f'{line.split("/")[1]}.webm').frames):
            (folder / f'{i}.jpg').write_bytes(encode_jpeg(frame, 90))
        (folder / '._0.jpg').write_bytes(b'Mac OS X')
    with zipfile.ZipFile(tmp_path / 'frames.zip', 'w') as archive:
        for file in sorted((tmp_path / 'frames').rglob('*.jpg')):
            name = file.relative_to(tmp_path / 'frames')
            archive.write(file, pathlib.Path('__MACOSX' if file.name.startswith('.') else '', name))
    for source in ('frames', 'frames.zip'):
        directory = copies.build_copy(
            'ssv2_small_cmn', tmp_path / f'of_{source}', tmp_path / source, lists
        )
        assert skipped_in(directory) == {}
        assert set(open_dataset('ssv2_small_cmn', directory.parents[1], 'train').num_frames) == {10}


def test_a_folder_that_must_not_be_looked_into(small, tmp_path, monkeypatch):
    videos, lists, _, class_of = small('kinetics100_cmn')
    closed, scan = next(iter(class_of.values())), os.scandir

    def refuse(path):
        if os.path.basename(path) == closed:
            raise PermissionError(13, 'Permission denied', path)
        return scan(path)

    monkeypatch.setattr(benchmark_files.os, 'scandir', refuse)
    skipped = skipped_in(copies.build_copy('kinetics100_cmn', tmp_path, videos, lists))
    assert skipped.pop(('', videos.name, closed)) == ('unreadable', 'Permission denied')
    assert len(skipped) == 3 and {(place[1], *why) for place, why in skipped.items()} == {
        (closed, 'missing', '')
    }


def test_a_replacement_for_a_broken_video(small, tmp_path):
    videos, lists, lines, class_of = small('kinetics100_cmn')
    copy = shutil.copytree(videos, tmp_path / 'videos')
    line = lines['test'][0]
    file = copy / copies.file_of('kinetics100_cmn', class_of[line], line.split('/')[1])
    (copy / 'replacement_for_corrupted_k400').mkdir()
    shutil.copy(file, copy / 'replacement_for_corrupted_k400' / file.name)
    file.write_bytes(file.read_bytes()[:300])
    directory = copies.build_copy('kinetics100_cmn', tmp_path, copy, lists)
    assert skipped_in(directory) == {
        ('test', class_of[line], file.name): ('duplicate id', f'as {file.name}')
    }
    assert open_dataset('kinetics100_cmn', tmp_path, 'test').video_ids == lines['test']


def test_lists_of_other_benchmarks_in_one_folder(small, tmp_path):
    """Three of them have lists of one name: those of another are passed over, the ones in a folder
    of one's own come first."""
    videos, lists, lines, _ = small('activitynet100')
    manual = shutil.copytree(lists, tmp_path / 'manual' / 'activitynet100').parent
    for file in lists.iterdir():
        (manual / file.name).write_text('of somebody else\n')
    directory = copies.build_copy('activitynet100', tmp_path, videos, manual)
    assert skipped_in(directory) == {}
    theirs = {
        row.split('\t')[2]
        for row in (build.BENCHMARKS['ucf101_arn'].code_path.parent / 'checksums.tsv')
        .read_text()
        .splitlines()
    }
    assert theirs and theirs <= benchmark_builder._lists_of_others(
        build.BENCHMARKS['activitynet100']
    )
    assert not theirs & benchmark_builder._lists_of_others(build.BENCHMARKS['ucf101_arn'])


def test_annotations_that_are_something_else(small, tmp_path, capsys):
    videos, lists, lines, class_of = small('ssv2_small_cmn')
    shutil.copytree(videos, tmp_path / 'ssv2' / '20bn-something-something-v2')
    copies.write_annotations(
        tmp_path / 'ssv2' / 'labels', lines, class_of, ('train.json', 'validation.json')
    )
    for text in ('[1, 2]', '[{"template": null, "id": 3}]', '{broken', '{"a": 1}'):
        (tmp_path / 'ssv2' / 'train.json').write_text(text)
        copies.build_copy(
            'ssv2_small_cmn',
            tmp_path / 'data',
            tmp_path / 'ssv2' / '20bn-something-something-v2',
            lists,
            '--overwrite',
        )
        printed = capsys.readouterr().out
        assert 'ssv2/train.json is ignored, it is not a list of videos' in printed, text
        assert 'annotations: 0 of 27 listed videos have another class there' in printed, text
    shutil.rmtree(tmp_path / 'ssv2' / 'labels')
    copies.build_copy('ssv2_small_cmn', tmp_path / 'data', videos, lists, '--overwrite')
    assert 'annotations: none found' in capsys.readouterr().out


def test_verify_sees_what_was_lost(small, tmp_path):
    videos, lists, *_ = small('kinetics100_cmn')
    directory = copies.build_copy(
        'kinetics100_cmn', tmp_path, videos, lists, '--videos_per_shard=3'
    )
    assert 'every published video is there' in verify.report('kinetics100_cmn', tmp_path)
    first, second = sorted(directory.glob('*test.array_record*'))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    report = verify.report('kinetics100_cmn', tmp_path)
    assert (
        '2 record files are not whole, build it again with --overwrite' in report
        and 'not the published set' in report
    )
    assert f'{first.name} is not there' in report and f'{second.name} cannot be read' in report


def test_an_error_of_the_decoders_own_ends_no_build(small, tmp_path, monkeypatch):
    videos, lists, lines, class_of = small('kinetics100_cmn')
    make, broken = benchmark_builder.record_from_file, lines['val'][1]

    def fails(path, video_id, *rest):
        if video_id == broken:
            raise RuntimeError('pixel format 99\nis new to me')
        return make(path, video_id, *rest)

    monkeypatch.setattr(benchmark_builder, 'record_from_file', fails)
    skipped = skipped_in(copies.build_copy('kinetics100_cmn', tmp_path, videos, lists))
    assert list(skipped.values()) == [
        ('decoder failed', 'RuntimeError: pixel format 99 is new to me')
    ]


def test_another_copy_of_the_videos_is_not_mixed_in(small, tmp_path):
    """A build that was stopped and goes on with files of other sizes under the same names makes all
    of it of those."""
    videos, lists, *_ = small('kinetics100_cmn')
    better = shutil.copytree(videos, tmp_path / 'better')
    for file in better.rglob('*.mp4'):
        file.write_bytes(file.read_bytes() + bytes(16))  # what follows the last box is passed over
    flags = ('--videos_per_shard=3',)
    unbroken = copies.build_copy('kinetics100_cmn', tmp_path / 'unbroken', better, lists, *flags)
    stopped = copies.build_copy('kinetics100_cmn', tmp_path, videos, lists, *flags, '--shards=0/2')
    before = {
        path.name: path.stat().st_ino for path in stopped.glob('*.array_record-?????-of-?????')
    }
    copies.build_copy('kinetics100_cmn', tmp_path, better, lists, *flags, '--shards=1/2')
    # As a call of an older version left them, which did not note the sizes.
    for note in stopped.glob('*.json'):
        note.write_text(
            json.dumps(
                {
                    key: value
                    for key, value in json.loads(note.read_text()).items()
                    if key != 'source_bytes'
                }
            )
        )
    with pytest.raises(
        ValueError, match='-00000-of-00... was made from other files than those that are there now'
    ):
        copies.build_copy('kinetics100_cmn', tmp_path, better, lists, *flags, '--finish')
    directory = copies.build_copy('kinetics100_cmn', tmp_path, better, lists, *flags)
    assert before and not any(
        (directory / name).stat().st_ino == number for name, number in before.items()
    )
    for path in unbroken.glob('*.array_record*'):
        assert (directory / path.name).read_bytes() == path.read_bytes()


def test_strict_holds_for_shards_of_an_earlier_call(small, tmp_path):
    videos, lists, lines, class_of = small('kinetics100_cmn')
    copy = shutil.copytree(videos, tmp_path / 'videos')
    line = lines['val'][0]
    file = copy / copies.file_of('kinetics100_cmn', class_of[line], line.split('/')[1])
    file.write_bytes(file.read_bytes()[:300])
    for i in range(2):
        copies.build_copy('kinetics100_cmn', tmp_path, copy, lists, f'--shards={i}/2')
    with pytest.raises(
        ValueError, match=f'{file.name} cannot be used: truncated .*without --strict'
    ):
        copies.build_copy('kinetics100_cmn', tmp_path, copy, lists, '--finish', '--strict')


def test_too_many_open_files_are_one_line(small, tmp_path):
    videos, lists, *_ = small('kinetics100_cmn')
    copies.build_copy('kinetics100_cmn', tmp_path, videos, lists, '--videos_per_shard=1')
    dataset = open_dataset('kinetics100_cmn', tmp_path, 'train')
    (soft, hard), taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(map(int, os.listdir('/proc/self/fd'))) + 6, hard)
    )
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for descriptor in (taken.pop() for _ in range(4)):
            os.close(descriptor)
        with pytest.raises(OSError, match='cannot be read .*raise ulimit -n') as caught:
            for position in range(len(dataset)):
                dataset.read(position)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    assert '\n' not in str(caught.value)
