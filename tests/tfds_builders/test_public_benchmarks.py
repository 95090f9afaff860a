"""The six public benchmarks on small copies: layouts, codecs, counts, and everything that can be
wrong with a download."""

import concurrent.futures
import functools
import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import threading
import zipfile

import benchmark_copies as copies
import numpy as np
import pytest
import tensorflow_datasets as tfds
from benchmark_copies import skipped_in

from fsar_jax import build, verify
from fsar_jax.data.dataset import open_dataset, videos_present
from fsar_jax.data.frames import decode_jpeg, encode_jpeg
from fsar_jax.ingest import archives, benchmark_builder, benchmark_files
from fsar_jax.ingest.benchmark_builder import SPLITS, ListFile
from fsar_jax.ingest.video_files import read_video

# The table: classes and videos of train, val and test.
COUNTS = {
    'ucf101_arn': ((70, 10, 21), (9154, 1421, 2745)),
    'hmdb51_arn': ((31, 10, 10), (4280, 1194, 1292)),
    'kinetics100_cmn': ((64, 12, 24), (6400, 1200, 2400)),
    'ssv2_small_cmn': ((64, 12, 24), (6400, 1200, 2400)),
    'ssv2_full_otam': ((64, 12, 24), (67013, 1926, 2857)),
    'activitynet100': ((64, 12, 24), (4480, 840, 1680)),
}


@pytest.mark.parametrize('dataset', COUNTS)
def test_the_published_numbers(dataset):
    builder = build.BENCHMARKS[dataset]
    published, lists = builder.published(), builder.list_files()
    classes, videos = COUNTS[dataset]
    assert tuple(len(published[split]['classes']) for split in SPLITS) == classes
    assert tuple(sum(published[split]['classes'].values()) for split in SPLITS) == videos
    assert tuple(published[split]['num_videos'] for split in SPLITS) == videos
    assert len({name for split in SPLITS for name in published[split]['classes']}) == sum(classes)
    normal = {
        benchmark_files.normal(name) for split in SPLITS for name in published[split]['classes']
    }
    assert len(normal) == sum(classes), 'two classes differ in nothing but spelling'
    for mirror in lists:
        assert [mirror[split].sha256 for split in SPLITS] == [
            lists[0][split].sha256 for split in SPLITS
        ]
        assert all(
            split in mirror[split].name and len(mirror[split].sha256) == 64 for split in SPLITS
        )
    assert builder(data_dir='unused').name == dataset
    assert set(builder.url_infos) == {
        row.split('\t')[0]
        for row in pathlib.Path(builder.code_path.parent, 'checksums.tsv').read_text().splitlines()
    }
    if dataset == 'ssv2_full_otam':
        assert list(published['val']['classes']) == [f'val{i}' for i in range(12)]
        assert published['train']['list_labels'] == [f'train{i}' for i in range(64)]
    readme = pathlib.Path(builder.code_path.parent, 'README.md').read_text()
    for number in videos:
        assert f'{number:,}' in readme, number


@pytest.mark.parametrize('dataset', COUNTS)
def test_a_complete_copy(dataset, small, tmp_path, capsys):
    videos, lists, lines, class_of = small(dataset)
    directory = copies.build_copy(dataset, tmp_path, videos, lists)
    assert directory == tmp_path / dataset / '1.0.0' and skipped_in(directory) == {}
    for split in SPLITS:
        opened = open_dataset(dataset, tmp_path, split)
        assert opened.video_ids == lines[split]
        assert [opened.class_names[label] for label in opened.labels] == [
            class_of[line] for line in lines[split]
        ]
        listed = hashlib.sha256(''.join(f'{line}\n' for line in lines[split]).encode()).hexdigest()
        assert videos_present(opened) == {
            'present': 9,
            'classes': 3,
            'expected': 9,
            'expected_classes': 3,
            'hash': listed,
        }
        for position in (0, 7):
            record, line = opened.read(position), lines[split][position]
            assert (record['video_id'], record['num_frames'], record['width']) == (line, 10, 32)
            file = videos / copies.file_of(dataset, class_of[line], line.split('/')[1])
            frame = decode_jpeg(record['frames'][5]).astype(int)
            assert np.abs(frame - read_video(file).frames[5]).mean() < 5
    text = verify.report(dataset, tmp_path)
    assert (
        'every published video is there' in text
        and text.count('9 of 9') == 3
        and text.count('  complete\n') == 3
    )
    assert text.count('3 of 3') == 3 and text.count('10 frames') == 3 and listed[:12] in text


@pytest.mark.parametrize('dataset', ('kinetics100_cmn', 'ssv2_small_cmn'))
def test_a_listed_video_that_is_not_there(dataset, small, made, tmp_path):
    videos, lists, lines, class_of = small(dataset)
    copy = shutil.copytree(videos, tmp_path / 'videos')
    gone = lines['test'][4]
    file = pathlib.Path(copies.file_of(dataset, class_of[gone], gone.split('/')[1]))
    (copy / file).unlink()
    cut = lines['val'][2]
    cut_file = copy / copies.file_of(dataset, class_of[cut], cut.split('/')[1])
    cut_file.write_bytes(cut_file.read_bytes()[: cut_file.stat().st_size // 2])
    (copy / 'more').mkdir()
    shutil.copy(
        next(copy.rglob(f'*{cut_file.suffix}')), copy / 'more' / f'not_listed{cut_file.suffix}'
    )
    directory = copies.build_copy(dataset, tmp_path, copy, lists)
    skipped = skipped_in(directory)
    assert skipped[('test', class_of[gone], gone.split('/')[1])] == ('missing', '')
    assert skipped[('val', class_of[cut], cut_file.name)][0] == 'truncated' and len(skipped) == 2
    assert open_dataset(dataset, tmp_path, 'test').video_ids == [
        line for line in lines['test'] if line != gone
    ]
    report, whole = verify.examine(dataset, tmp_path)
    assert whole  # what misses videos is not damaged
    assert (
        '8 of 9' in report and 'DIFFERS' in report and f'  test/{class_of[gone]}: 2 of 3' in report
    )
    assert 'not the published set' in report
    with pytest.raises(ValueError, match='cannot be used: missing; without --strict'):
        copies.build_copy(dataset, tmp_path / 'strict', copy, lists, '--strict')
    # The file comes back: the other shards of the unfinished build stand.
    other = tmp_path / 'again'
    copies.build_copy(dataset, other, copy, lists, '--videos_per_shard=3', '--shards=0/1')
    shutil.copy(videos / file, copy / file)
    shutil.copy(videos / cut_file.relative_to(copy), cut_file)
    notes = {
        path: path.stat().st_ino for path in (other / dataset / 'incomplete').glob('*-of-00003')
    }
    directory = copies.build_copy(dataset, other, copy, lists, '--videos_per_shard=3')
    again = [
        path for path, inode in notes.items() if (directory / path.name).stat().st_ino != inode
    ]
    assert len(notes) == 9 and {path.name.partition('-')[2] for path in again} == {
        'test.array_record-00001-of-00003',
        'val.array_record-00000-of-00003',
    }
    assert (
        skipped_in(directory) == {}
        and open_dataset(dataset, other, 'val').video_ids == lines['val']
    )


def test_missing_videos_of_a_class_split_are_counted(small, tmp_path):
    videos, lists, lines, class_of = small('ucf101_arn')
    copy = shutil.copytree(videos, tmp_path / 'UCF-101')
    (copy / 'ApplyLipstick' / 'v_ApplyLipstick_g01_c02.avi').unlink()
    shutil.rmtree(copy / 'Archery')
    # Another spelling of the same class.
    (copy / 'ApplyEyeMakeup').rename(copy / 'apply_eye_makeup')
    (copy / 'Juggling').mkdir()
    shutil.copy(next(copy.rglob('*.avi')), copy / 'Juggling' / 'v_Juggling_g01_c01.avi')
    shutil.copy(
        copy / 'BlowingCandles' / 'v_BlowingCandles_g01_c01.avi',
        copy / 'BlowingCandles' / 'v_BlowingCandles_g01_c01.mp4',
    )
    directory = copies.build_copy('ucf101_arn', tmp_path, copy, lists)
    assert skipped_in(directory) == {
        ('val', 'ApplyLipstick', ''): ('missing', '1 of 3 videos'),
        ('train', 'Archery', ''): ('missing', '3 of 3 videos'),
        ('', 'Juggling', ''): ('label not in the split', '1 videos'),
        ('test', 'BlowingCandles', 'v_BlowingCandles_g01_c01.mp4'): (
            'duplicate id',
            'as v_BlowingCandles_g01_c01.avi',
        ),
    }
    report = verify.report('ucf101_arn', tmp_path)
    assert '  train/Archery: 0 of 3' in report and '  val/ApplyLipstick: 2 of 3' in report


def test_flat_and_renamed_kinetics(small, tmp_path):
    videos, lists, lines, class_of = small('kinetics100_cmn')
    flat = tmp_path / 'flat'
    flat.mkdir()
    for i, file in enumerate(sorted(videos.rglob('*.mp4'))):
        shutil.copy(
            file, flat / (file.name if i % 2 else file.name[: -len('_000000_000010.mp4')] + '.mp4')
        )
    directory = copies.build_copy('kinetics100_cmn', tmp_path, flat, lists)
    assert skipped_in(directory) == {} and 'every published' in verify.report(
        'kinetics100_cmn', tmp_path
    )


@pytest.mark.parametrize('zipped', (False, True))
def test_frames_that_somebody_extracted(zipped, small, tmp_path):
    videos, lists, lines, class_of = small('ssv2_small_cmn')
    root = tmp_path / 'frames'
    for line in sum(lines.values(), []):
        name = line.split('/')[1]
        folder = root / 'jpg' / class_of[line] / name
        folder.mkdir(parents=True)
        for i, frame in enumerate(read_video(videos / f'{name}.webm').frames):
            # 10.jpg comes after 9.jpg.
            (folder / f'{i + 1}.jpg').write_bytes(encode_jpeg(frame, 90))
    damaged = root / 'jpg' / class_of[lines['val'][0]] / lines['val'][0].split('/')[1] / '3.jpg'
    damaged.write_bytes(damaged.read_bytes()[:200])
    source = root
    if zipped:
        source = tmp_path / 'frames.zip'
        with zipfile.ZipFile(source, 'w') as archive:
            for file in root.rglob('*.jpg'):
                archive.write(file, file.relative_to(root))
    directory = copies.build_copy('ssv2_small_cmn', tmp_path, source, lists)
    assert [reason for reason, _ in skipped_in(directory).values()] == ['decode errors']
    opened = open_dataset('ssv2_small_cmn', tmp_path, 'test')
    record = opened.read(4)
    folder = root / 'jpg' / class_of[lines['test'][4]] / lines['test'][4].split('/')[1]
    assert record['frames'] == [(folder / f'{i + 1}.jpg').read_bytes() for i in range(10)]
    assert (record['width'], record['height'], record['fps'], record['num_frames']) == (
        32,
        24,
        0,
        10,
    )
    other = copies.build_copy(
        'ssv2_small_cmn', tmp_path / 'small', source, lists, '--short_side=12', '--max_frames=4'
    )
    record = open_dataset('ssv2_small_cmn', other.parents[1], 'test').read(4)
    assert (record['width'], record['height'], list(record['frame_index'])) == (
        16,
        12,
        [0, 3, 6, 9],
    )
    assert decode_jpeg(record['frames'][3]).shape == (12, 16, 3)


def test_a_compressed_zip_is_refused(small, tmp_path):
    _, lists, *_ = small('ssv2_small_cmn')
    with zipfile.ZipFile(tmp_path / 'frames.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('class/1/1.jpg', b'x' * 1000)
    with pytest.raises(ValueError, match='class/1/1.jpg is compressed'):
        copies.build_copy('ssv2_small_cmn', tmp_path, tmp_path / 'frames.zip', lists)
    (tmp_path / 'no.zip').write_text('text')
    with pytest.raises(ValueError, match='no.zip is not a .zip'):
        copies.build_copy('ssv2_small_cmn', tmp_path, tmp_path / 'no.zip', lists)


def test_lists_that_are_wrong(small, made, tmp_path, monkeypatch, capsys):
    videos, lists, lines, class_of = small('activitynet100')
    own = shutil.copytree(lists, tmp_path / 'lists')
    with open(own / 'testlist03.txt', 'a') as file:
        file.write(f'Juggling/v_x\n{lines["test"][0]}\n')
    with pytest.raises(
        ValueError, match='testlist03.txt is not the published list: get it from https://raw'
    ):
        copies.build_copy('activitynet100', tmp_path, videos, own)
    directory = copies.build_copy('activitynet100', tmp_path, videos, own, '--own_lists')
    name = lines['test'][0].split('/')[1] + '.mp4'
    assert skipped_in(directory) == {
        ('test', 'Juggling', 'v_x'): ('label not in the split', 'list line'),
        ('test', class_of[lines['test'][0]], name): ('duplicate id', f'as {name}'),
    }
    assert 'such as Braidinghair: 4, not 3' in capsys.readouterr().out
    assert open_dataset('activitynet100', tmp_path, 'test').settings['lists'] == 'own'
    with pytest.raises(ValueError, match='lists is own, asked for published'):
        copies.build_copy('activitynet100', tmp_path, videos, lists)
    # The own ones also where the published ones lie beside the videos.
    near = shutil.copytree(lists, tmp_path / 'near')
    moved = shutil.copytree(videos, near / 'videos')
    again = copies.build_copy('activitynet100', tmp_path / 'again', moved, own, '--own_lists')
    assert skipped_in(again) == skipped_in(directory)
    (own / 'vallist03.txt').unlink()
    with pytest.raises(
        FileNotFoundError, match='vallist03.txt is not beside .*: all three lists must be there'
    ):
        copies.build_copy('activitynet100', tmp_path / 'x', videos, own)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_lists_from_the_network_are_checked(small, tmp_path, monkeypatch):
    """A server on this machine stands for the authors'."""
    videos, lists, lines, _ = small('activitynet100')
    served = shutil.copytree(lists, tmp_path / 'served')
    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=str(served))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    builder = build.BENCHMARKS['activitynet100']
    files = {
        split: ListFile(
            f'http://127.0.0.1:{server.server_port}/{file.name}', file.name, file.sha256
        )
        for split, file in builder.list_files()[0].items()
    }
    info = tfds.core.download.checksums.UrlInfo
    infos = {
        f.url: info(size=(lists / f.name).stat().st_size, checksum=f.sha256, filename=f.name)
        for f in files.values()
    }
    monkeypatch.setattr(builder, 'list_files', classmethod(lambda cls: [files]))
    monkeypatch.setattr(builder, 'url_infos', infos)
    nothing = tmp_path / 'nothing'
    try:
        directory = copies.build_copy('activitynet100', tmp_path, videos, nothing)
        assert skipped_in(directory) == {}
        # Another benchmark's lists, where tfds would look first.
        manual = tmp_path / 'manual' / 'downloads' / 'manual'
        manual.mkdir(parents=True)
        for file in files.values():
            (manual / file.name).write_text('of another\n')
        theirs = {hashlib.sha256(b'of another\n').hexdigest()}
        monkeypatch.setattr(benchmark_builder, '_lists_of_others', lambda _: theirs)
        assert (
            skipped_in(copies.build_copy('activitynet100', tmp_path / 'manual', videos, nothing))
            == {}
        )
        (served / 'testlist03.txt').write_text('Juggling/v_x\n')
        with pytest.raises(
            FileNotFoundError,
            match=r'cannot be downloaded \(NonMatchingChecksumError\): put them into',
        ):
            copies.build_copy('activitynet100', tmp_path / 'other', videos, nothing)
    finally:
        server.shutdown()
        # or a download that still waits for its answer keeps the process from ending
        server.server_close()


def test_annotations_that_contradict_the_lists(small, tmp_path, capsys):
    videos, lists, lines, class_of = small('ssv2_small_cmn')
    for naming, folder in (
        (
            ('something-something-v2-train.json', 'something-something-v2-validation.json'),
            tmp_path / 'old',
        ),
        (('train.json', 'validation.json'), tmp_path / 'new' / 'labels'),
    ):
        root = tmp_path / folder.relative_to(tmp_path).parts[0]
        shutil.copytree(lists, root)
        copies.write_annotations(folder, lines, class_of, naming)
        copies.build_copy(
            'ssv2_small_cmn',
            tmp_path / f'{root.name}_data',
            videos,
            root if folder == root else folder.parent,
        )
        assert (
            'annotations: 0 of 27 listed videos have another class there' in capsys.readouterr().out
        )
    rows = json.loads((folder / 'train.json').read_text())
    rows[0]['template'] = 'Juggling [something]'
    (folder / 'train.json').write_text(json.dumps(rows[:-1]))
    copies.build_copy('ssv2_small_cmn', tmp_path / 'data', videos, folder.parent)
    first = rows[0]['id']
    assert (
        f'annotations: 1 of 26 listed videos have another class there, first {first}, listed as'
        in capsys.readouterr().out
    )


def test_an_archive_without_a_program_that_extracts_it(small, tmp_path, monkeypatch):
    small('hmdb51_arn')
    archive = tmp_path / 'download' / 'hmdb51_org.rar'
    archive.parent.mkdir()
    archive.write_bytes(b'Rar!')
    monkeypatch.setenv('PATH', '')
    for videos in (archive.parent, archive):
        with pytest.raises(
            ValueError, match='no program here extracts hmdb51_org.rar: install one of unrar, 7zz'
        ) as caught:
            copies.build_copy('hmdb51_arn', tmp_path / 'data', videos, tmp_path)
        assert '\n' not in str(caught.value)


@pytest.mark.slow
def test_an_archive_of_archives(small, tmp_path, monkeypatch):
    """A stand-in for unrar, as nothing here can write a .rar: it copies a folder that the 'archive'
    names."""
    videos, lists, lines, class_of = small('hmdb51_arn')
    inner = tmp_path / 'inner'
    inner.mkdir()
    # With a folder of the class's name inside, and without.
    for i, folder in enumerate(sorted(videos.iterdir())):
        holder = tmp_path / 'holders' / folder.name
        shutil.copytree(folder, holder / folder.name if i % 2 else holder)
        (inner / f'{folder.name}.rar').write_text(str(holder))
    archive = tmp_path / 'download' / 'hmdb51_org.rar'
    archive.parent.mkdir()
    archive.write_text(str(inner))
    program = tmp_path / 'bin' / 'unrar'
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$4" >> {tmp_path}/calls\nif [ -e {tmp_path}/slow ]; then sleep 0.1; '
        'fi\ncp -r "$(cat "$4")"/. .\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{program.parent}:{os.environ["PATH"]}')
    (archive.parent / 'test_train_splits').mkdir()  # what else the authors hand out lies beside it
    directory = copies.build_copy('hmdb51_arn', tmp_path, archive.parent, lists)
    assert skipped_in(directory) == {} and 'every published' in verify.report(
        'hmdb51_arn', tmp_path
    )
    # Who has extracted the outer archive by hand has one of each class.
    copies.build_copy('hmdb51_arn', tmp_path / 'half', inner, lists)
    assert 'every published' in verify.report('hmdb51_arn', tmp_path / 'half')
    assert len(list(inner.glob('*.rar'))) == 9
    # Two slices of a build that come at once: one extracts, the other waits.
    (tmp_path / 'calls').unlink()
    (tmp_path / 'slow').touch()
    extract = lambda _: archives.extracted(archive, ('hmdb51_org.rar',), [], tmp_path / 'twice')
    with concurrent.futures.ThreadPoolExecutor() as pool:
        one, two = pool.map(extract, range(2))
    (tmp_path / 'slow').unlink()
    assert (
        one == two
        and one.parent == tmp_path / 'twice'
        and len((tmp_path / 'calls').read_text().splitlines()) == 1 + 9
    )
    # A class that comes later is extracted with the others.
    late = shutil.copytree(inner, tmp_path / 'late')
    last = sorted(late.iterdir())[-1].rename(tmp_path / 'last.rar')
    extract = lambda: archives.extracted(
        late, (), [path.name for path in videos.iterdir()], tmp_path / 'places'
    )
    assert len(list(extract().iterdir())) == 8
    shutil.copy(last, late / sorted(inner.iterdir())[-1].name)
    assert len(list(extract().iterdir())) == 9
    # The first program that is here fails, the next one does it.
    monkeypatch.setitem(archives.EXTRACTORS, 'bsdtar', archives.EXTRACTORS['unrar'])
    shutil.copy(program, program.with_name('bsdtar'))
    program.write_text('#!/bin/sh\necho wrong password >&2; exit 3\n')
    copies.build_copy('hmdb51_arn', tmp_path / 'next', archive, lists)
    program.with_name('bsdtar').write_text('#!/bin/sh\nexit 4\n')
    with pytest.raises(
        ValueError,
        match='unrar could not extract .*hmdb51_org.rar: wrong password; bsdtar could not .* '
        'status 4',
    ):
        copies.build_copy('hmdb51_arn', tmp_path / 'other', archive, lists)


def test_where_the_videos_are_not(small, tmp_path):
    for dataset in ('hmdb51_arn', 'kinetics100_cmn'):
        _, lists, *_ = small(dataset)
        (tmp_path / 'wrong').mkdir(exist_ok=True)
        (tmp_path / 'wrong' / 'holiday.mp4').write_bytes(b'x')
        with pytest.raises(
            FileNotFoundError,
            match=f'none of the videos of {dataset} is in .*wrong .1 other videos are',
        ) as caught:
            copies.build_copy(dataset, tmp_path / 'data', tmp_path / 'wrong', lists)
        assert '\n' not in str(caught.value) and not list((tmp_path / 'data' / dataset).glob('*/*'))
    with pytest.raises(
        FileNotFoundError, match='no videos of ucf101_arn in .*: give --videos=PATH, see (.*) for'
    ) as caught:
        build.build(build.parse(['--dataset=ucf101_arn', f'--dir={tmp_path}']))
    (readme,) = re.findall(r'see (.*README\.md) for what it may be', str(caught.value))
    assert pathlib.Path(readme).is_file()
    with pytest.raises(ValueError, match='after ucf101_arn/ comes nothing or a name'):
        build.build(build.parse(['--dataset=ucf101_arn/../x', f'--dir={tmp_path}']))
    with pytest.raises(
        FileNotFoundError,
        match="dataset 'ucf101_arn' is not in .* --dataset=ucf101_arn .*--videos=FOLDER",
    ):
        open_dataset('ucf101_arn', tmp_path, 'train')
    with pytest.raises(FileNotFoundError, match='build it with'):
        verify.report('ucf101_arn', tmp_path)


def test_a_named_config(small, tmp_path):
    videos, lists, lines, _ = small('ucf101_arn')
    directory = copies.build_copy('ucf101_arn/eight', tmp_path, videos, lists, '--max_frames=8')
    assert directory == tmp_path / 'ucf101_arn' / 'eight' / '1.0.0'
    assert set(open_dataset('ucf101_arn/eight', tmp_path, 'val').num_frames) == {8}


@pytest.mark.parametrize(
    'dataset', [pytest.param(x, marks=[pytest.mark.slow] * (x != 'ucf101_arn')) for x in COUNTS]
)
def test_what_the_builder_test_case_of_tfds_checks(dataset, small, tmp_path, monkeypatch):
    """tfds.testing.DatasetBuilderTestCase cannot be imported without TensorFlow: these are its
    checks, read through as_data_source."""
    videos, lists, lines, _ = small(dataset)
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        'download',
        lambda *_: pytest.fail('a list is in manual_dir: no download'),
    )
    shutil.copytree(lists, tmp_path / 'manual')
    shutil.copytree(videos, tmp_path / 'manual' / dataset)
    kind = build.BENCHMARKS[dataset]
    assert dataset in tfds.list_builders(with_community_datasets=False)
    assert kind.get_metadata().description.startswith(f'# {dataset}')
    builder = kind(data_dir=tmp_path / 'data', processes=0)
    assert (
        builder.info.name == dataset
        and builder.builder_config.name == 'default'
        and builder.builder_config.description
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / 'manual')
    )
    # Tfds wrote files after `finish`.
    assert verify.examine(dataset, tmp_path / 'data')[1]
    again = tfds.builder_from_directory(builder.data_path)
    assert again.info.features.get_serialized_info() == builder.info.features.get_serialized_info()
    seen = []
    for split in SPLITS:
        records = list(again.as_data_source(split))
        assert (
            len(records)
            == len(lines[split])
            == again.info.splits[split].num_examples
            == builder.info.splits[split].num_examples
        )
        assert [record['video_id'].decode() for record in records] == lines[split]
        for record in records:
            assert record.keys() == again.info.features.keys()
            for key, spec in again.info.features.items():
                wanted = np.dtype(spec.np_dtype).kind
                assert np.asarray(record[key]).dtype.kind == ('S' if wanted == 'O' else wanted), key
            seen.append(hashlib.sha256(record['frames'].tobytes()).digest())
    assert len(set(seen)) == len(seen), 'two records, of one split or of two, hold the same frames'
