import dataclasses

import numpy as np
import pytest

from fsar_jax.data.frames import decode_jpeg, resize_short_side
from fsar_jax.ingest.records import RecordSettings, record_features, record_from_file
from fsar_jax.ingest.video_files import VideoError, read_video, write_video


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    """A file with 30 frames of 96x64, smooth, so that JPEG and chroma subsampling change little."""
    y, x = np.mgrid[:64, :96]
    frames = [np.stack([2 * x + 2 * i, 3 * y, 120 + x + y - 3 * i], -1) % 256 for i in range(30)]
    path = tmp_path_factory.mktemp('clip') / 'clip.mp4'
    write_video(path, np.clip(frames, 0, 255).astype(np.uint8), fps=15)
    return path


def test_a_record_says_where_its_frames_come_from(clip):
    record = record_from_file(clip, 'class/clip', 3, RecordSettings(short_side=0, max_frames=8))
    assert {
        key: record[key]
        for key in (
            'video_id',
            'label',
            'num_frames',
            'source_frames',
            'fps',
            'width',
            'height',
            'decode_errors',
        )
    } == {
        'video_id': 'class/clip',
        'label': 3,
        'num_frames': 8,
        'source_frames': 30,
        'fps': 15.0,
        'width': 96,
        'height': 64,
        'decode_errors': 0,
    }
    np.testing.assert_array_equal(record['frame_index'], [0, 4, 8, 12, 17, 21, 25, 29])
    assert record.keys() == record_features(['a']).keys()


@pytest.mark.parametrize(
    'short_side, size', ((0, (96, 64)), (64, (96, 64)), (32, (48, 32)), (100, (150, 100)))
)
def test_frames_are_those_of_the_file_resized(clip, short_side, size):
    settings = RecordSettings(short_side=short_side, max_frames=8)
    record = record_from_file(clip, 'clip', 0, settings)
    assert (record['width'], record['height']) == size
    source = read_video(clip).frames
    for jpeg, index in zip(record['frames'], record['frame_index'], strict=True):
        stored = decode_jpeg(jpeg)
        expected = resize_short_side(source[index], short_side) if short_side else source[index]
        assert stored.shape == (size[1], size[0], 3)
        assert np.abs(stored.astype(int) - expected).mean() < 2.5


def test_zero_keeps_all_frames_and_quality_costs_bytes(clip):
    fine = record_from_file(clip, 'clip', 0, RecordSettings(short_side=0, max_frames=0))
    coarse = record_from_file(
        clip, 'clip', 0, RecordSettings(short_side=0, max_frames=0, jpeg_quality=30)
    )
    assert fine['num_frames'] == coarse['num_frames'] == len(fine['frames']) == 30
    assert sum(map(len, coarse['frames'])) < 0.7 * sum(map(len, fine['frames']))


def test_too_short_a_clip_is_an_error(clip):
    with pytest.raises(VideoError, match='too short: 30 frames, at least 31 are needed'):
        record_from_file(clip, 'clip', 0, RecordSettings(min_frames=31))


@pytest.mark.parametrize(
    'wrong',
    (
        {'short_side': -1},
        {'max_frames': -1},
        {'min_frames': 0},
        {'jpeg_quality': 0},
        {'jpeg_quality': 101},
    ),
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=f'{next(iter(wrong))}={next(iter(wrong.values()))}'):
        dataclasses.replace(RecordSettings(), **wrong)
