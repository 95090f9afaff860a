"""Videos that come as JPEG files: which of the files become the frames of a record."""

import zipfile

import numpy as np
import pytest

from fsar_jax.data.frames import decode_jpeg, encode_jpeg
from fsar_jax.ingest.frame_files import FrameFolder, record_from_frames, zipped_videos
from fsar_jax.ingest.records import RecordSettings

SPACED = [0, 5, 10, 14, 19]  # 5 of 20: 0, 4.75, 9.5, 14.25, 19, rounded to the next, .5 to even


@pytest.mark.parametrize('zipped', (False, True), ids=('in a folder', 'in a .zip'))
@pytest.mark.parametrize(
    'max_frames, indices', ((5, SPACED), (1, [10]), (0, list(range(20)))), ids=('5', '1', 'all')
)
def test_the_stored_frames_are_spaced_over_the_whole_video(zipped, max_frames, indices, tmp_path):
    """20 frames, each a grey of its own, in files whose names sort otherwise than their numbers."""
    folder = tmp_path / 'jump' / 'clip'
    folder.mkdir(parents=True)
    for i in range(20):
        grey = np.full((16, 24, 3), 10 * i, np.uint8)
        (folder / f'frame_{i + 1}.jpg').write_bytes(encode_jpeg(grey, 95))
    source = FrameFolder(str(folder))
    if zipped:
        with zipfile.ZipFile(tmp_path / 'frames.zip', 'w') as archive:
            for path in folder.iterdir():
                archive.write(path, path.relative_to(tmp_path))
        ((*names, source),) = zipped_videos(tmp_path / 'frames.zip')
        assert names == ['jump', 'clip']
    settings = RecordSettings(short_side=0, max_frames=max_frames, min_frames=1)
    record = record_from_frames(source, 'jump/clip', 0, settings)
    greys = [decode_jpeg(data).mean() for data in record['frames']]
    np.testing.assert_allclose(greys, [10 * i for i in indices], atol=1)
    assert record['frame_index'].tolist() == indices
    assert (record['num_frames'], record['source_frames']) == (len(indices), 20)
