"""A built dataset, opened: the index without reading, records with their frames still encoded."""

import concurrent.futures
import pickle
import shutil

import numpy as np
import pytest

from fsar_jax import build
from fsar_jax.checksums import SUMS
from fsar_jax.data.dataset import content_hash, open_dataset, videos_present
from fsar_jax.data.frames import decode_jpeg
from fsar_jax.ingest.video_files import read_video, write_video

NAME = 'video_folder/clips'


def numbered_clip(number, num_frames):
    """uint8 [num_frames, 32, 32, 3]: the clip's number and the frame's as two greys, left and
    right."""
    frames = np.empty((num_frames, 32, 32, 3), np.uint8)
    frames[:, :, :16] = 20 + 20 * number
    frames[:, :, 16:] = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 2 + 20
    return frames


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """(data_dir, clips folder): 3 classes of 4 clips with 70 to 81 frames, of which 64 are
    stored."""
    folder = tmp_path_factory.mktemp('data')
    for number in range(12):
        path = (
            folder
            / 'clips'
            / ('train', 'val', 'test')[number // 4]
            / f'class{number // 4}'
            / f'{number:02d}.mp4'
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, numbered_clip(number, 70 + number))
    build.build(
        build.parse(
            [
                f'--dataset={NAME}',
                f'--videos={folder / "clips"}',
                f'--dir={folder}',
                '--processes=0',
                '--short_side=0',
            ]
        )
    )
    return folder, folder / 'clips'


def test_the_index_needs_no_record(data, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            'tensorflow_datasets.core.dataset_builder.DatasetBuilder.as_data_source', None
        )
        dataset = open_dataset(NAME, data[0], 'val')
    assert (dataset.name, dataset.split, len(dataset)) == (NAME, 'val', 4)
    assert dataset.class_names == ['class0', 'class1', 'class2']
    assert dataset.labels.dtype == np.int32 and dataset.labels.tolist() == [1] * 4
    assert dataset.num_frames.dtype == np.int32 and dataset.num_frames.tolist() == [64] * 4
    assert dataset.video_ids == [f'class1/{number:02d}' for number in range(4, 8)]
    assert dataset.settings['max_frames'] == 64 and dataset.settings['jpeg_quality'] == 95


def test_the_same_content_elsewhere_has_one_hash_and_other_pixels_another(data, tmp_path):
    folder, clips = data
    opened = open_dataset(NAME, folder, 'test')
    shutil.copytree(folder / NAME, tmp_path / 'copy' / NAME)
    assert content_hash(open_dataset(NAME, tmp_path / 'copy', 'test')) == content_hash(opened)
    others = [content_hash(opened), content_hash(open_dataset(NAME, folder, 'val'))]
    for number, flag in enumerate(('--short_side=0', '--jpeg_quality=70')):
        shutil.copytree(clips, tmp_path / f'{number}')
        for path in (tmp_path / f'{number}').glob('*/*/*.mp4'):
            write_video(
                path,
                numbered_clip(int(path.stem), 70 + int(path.stem))[
                    :, :, :: -1 if number == 0 else 1
                ],
            )
        build.build(
            build.parse(
                [
                    f'--dataset={NAME}',
                    f'--videos={tmp_path}/{number}',
                    f'--dir={tmp_path}/data{number}',
                    '--processes=0',
                    '--short_side=0',
                    flag,
                ]
            )
        )
        other = open_dataset(NAME, tmp_path / f'data{number}', 'test')
        assert other.video_ids == opened.video_ids and (other.num_frames == opened.num_frames).all()
        others.append(content_hash(other))
    # As many bytes, of other pixels: a shard copied from a machine whose JPEG encoder differs.
    sums = tmp_path / 'copy' / NAME / opened.directory.name / SUMS
    lines = sums.read_text().splitlines()
    sums.write_text(
        ''.join(
            f'{line.translate(str.maketrans("01", "10")) if "-test" in line else line}\n'
            for line in lines
        )
    )
    others.append(content_hash(open_dataset(NAME, tmp_path / 'copy', 'test')))
    assert len(set(others)) == 5
    sums.write_text('cut')
    with pytest.raises(
        ValueError, match=f'{SUMS} is damaged: line 1 is not a checksum.*fsar_jax.verify'
    ):
        content_hash(open_dataset(NAME, tmp_path / 'copy', 'test'))


def test_a_subset_is_the_split_with_those_videos_alone(data):
    whole = open_dataset(NAME, data[0], 'test')
    part = whole.subset([3, 0, 2]).subset(np.array([2, 1]))  # of positions 3, 0, 2: 2 and 0
    assert len(part) == 2 and part.whole is whole and whole.whole is whole
    assert part.video_ids == ['class2/10', 'class2/08']
    for held in (part.labels, part.num_frames):
        assert held.dtype == np.int32 and len(held) == 2
    assert [part.read(i)['video_id'] for i in (0, 1)] == part.video_ids
    assert pickle.loads(pickle.dumps(part)).read(1)['video_id'] == 'class2/08'
    for name in ('name', 'split', 'class_names', 'settings', 'made_with', 'expected', 'advice'):
        assert getattr(part, name) == getattr(whole, name), name
    assert content_hash(part) == content_hash(whole)
    assert videos_present(part) == videos_present(whole) and videos_present(part)['present'] == 4
    assert len(whole.subset([])) == 0 and not len(part.dropped)
    for positions in ([0, 4], [-1], [[0, 1]], [0.0], np.array([True, False, True, True])):
        with pytest.raises(IndexError, match=f'of {NAME}|{NAME} test'):
            whole.subset(positions)
    with pytest.raises(IndexError, match='position 2 is outside a subset of 2 videos'):
        part.read(2)


def test_a_record_holds_its_frames_undecoded(data):
    dataset = open_dataset(NAME, data[0], 'test')
    for position in (3, 0):
        number = 8 + position
        record = dataset.read(position)
        assert (
            record['video_id'] == f'class2/{number:02d}'
            and record['label'] == 2
            and record['fps'] == 12
        )
        assert (
            record['source_frames'] == 70 + number
            and record['num_frames'] == len(record['frames']) == 64
        )
        assert all(
            isinstance(frame, bytes) and frame[:2] == b'\xff\xd8' for frame in record['frames']
        )
        np.testing.assert_array_equal(
            record['frame_index'], np.round(np.linspace(0, 69 + number, 64))
        )
        source = read_video(data[1] / 'test' / 'class2' / f'{number:02d}.mp4').frames
        for stored in range(0, 64, 8):  # 8 of 64: only these are decoded
            frame = decode_jpeg(record['frames'][stored]).astype(int)
            assert np.abs(frame - source[record['frame_index'][stored]]).mean() < 2
            assert abs(frame[:, :12].mean() - (20 + 20 * number)) < 3


def test_pickled_and_from_many_threads_it_reads_the_same(data):
    dataset = open_dataset(NAME, data[0], 'train')
    first = [dataset.read(i)['frames'] for i in range(4)]
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 5000 and copy.video_ids == dataset.video_ids
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for position, record in zip(
            [i % 4 for i in range(64)], pool.map(lambda i: copy.read(i % 4), range(64))
        ):
            assert record['frames'] == first[position]


def test_positions_outside_are_refused(data):
    dataset = open_dataset(NAME, data[0], 'train')
    for position in (-1, 4):
        with pytest.raises(
            IndexError,
            match=f"position {position} is outside split 'train' of {NAME}, which has 4 videos",
        ):
            dataset.read(position)


def test_absent_datasets_and_splits_say_what_to_do(data, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        open_dataset('synthetic_actions/misaligned', tmp_path, 'train')
    assert str(caught.value) == (
        f"dataset 'synthetic_actions/misaligned' is not in {tmp_path}: build it with python -m "
        f'fsar_jax.build --dataset=synthetic_actions/misaligned --dir={tmp_path}'
    )
    with pytest.raises(FileNotFoundError, match='--videos=FOLDER$'):
        open_dataset('video_folder/none', tmp_path, 'train')
    slip = f'{NAME}s'
    with pytest.raises(
        FileNotFoundError, match=f'{slip}.*, or choose one that is there: .*{NAME}$'
    ):
        open_dataset(slip, data[0], 'train')
    with pytest.raises(ValueError, match=f"'{NAME}' has no split 'dev': it has train, val, test"):
        open_dataset(NAME, data[0], 'dev')


def test_the_newest_version_is_opened(data, tmp_path):
    built = data[0] / NAME / '1.0.0'
    for version in ('2.0.0', '10.0.0', 'incomplete'):
        shutil.copytree(built, tmp_path / NAME / version)
    metadata = tmp_path / NAME / '10.0.0' / 'metadata.json'
    metadata.write_text(metadata.read_text().replace('"max_frames": 64', '"max_frames": 63'))
    assert open_dataset(NAME, tmp_path, 'train').settings['max_frames'] == 63
