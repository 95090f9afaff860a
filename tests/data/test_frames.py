"""JPEG, resize and crop: the published geometry and pixels exactly."""

import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fsar_jax.data import frames

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
GEOMETRY = [('crop_geometry_84_a.npz', 96, 84), ('crop_geometry_224_a.npz', 256, 224)]


def smooth_frame(height=48, width=64):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 3, y * 4, x + y], axis=-1).astype(np.uint8)


@pytest.mark.parametrize('file, short_side, crop', GEOMETRY)
def test_geometry_equals_the_published_reader(file, short_side, crop):
    table = np.load(FIXTURES / file)
    for row, (width, height) in enumerate(table['in/width_height'].tolist()):
        size = frames.resized_size(width, height, short_side)
        assert size == tuple(table['out/resized_width_height'][row])
        assert frames.centre_crop_offset(*size, crop) == tuple(table['out/centre_crop_x_y'][row])
        assert frames.random_crop_limits(*size, crop) == tuple(
            table['out/random_crop_max_x_y'][row]
        )
        resized = frames.resize_short_side(np.zeros((1, height, width, 3), np.uint8), short_side)
        assert resized.shape == (1, size[1], size[0], 3)


def test_frames_of_the_right_short_side_are_untouched():
    clip = np.zeros((2, 96, 130, 3), np.uint8)
    assert frames.resize_short_side(clip, 96) is clip


def test_resize_of_a_frame_equals_resize_in_a_stack():
    clip = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 50, 3), np.uint8)
    stacked = frames.resize_short_side(clip, 32)
    np.testing.assert_array_equal(stacked[1, 2], frames.resize_short_side(clip[1, 2], 32))


def test_flip_after_the_mirrored_crop_equals_flip_before_the_crop():
    frame = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    for x in range(31 - 16 + 1):
        mirrored = frames.mirrored_crop_x(x, 31, 16)
        np.testing.assert_array_equal(
            frame[:16, mirrored : mirrored + 16][:, ::-1], frame[:, ::-1][:16, x : x + 16]
        )


def test_a_crop_that_does_not_fit_says_what_to_change():
    with pytest.raises(
        ValueError, match='crop of 84 pixels does not fit in frames of 100x80: lower config.episode'
    ):
        frames.centre_crop_offset(100, 80, 84)


def test_jpeg_round_trip_is_close_and_colours_are_in_order():
    frame = smooth_frame()
    back = frames.decode_jpeg(frames.encode_jpeg(frame, quality=95))
    assert back.shape == frame.shape and back.dtype == np.uint8
    assert np.abs(back.astype(int) - frame).mean() < 2
    red = frames.decode_jpeg(frames.encode_jpeg(np.full((16, 16, 3), [250, 10, 30], np.uint8)))
    assert np.abs(red.astype(int) - [250, 10, 30]).max() <= 3


def test_every_decoder_gives_the_same_pixels(monkeypatch):
    data = frames.encode_jpeg(
        np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8), quality=90
    )
    turned = io.BytesIO()  # its EXIF data say: a quarter turn
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(data)).save(turned, 'jpeg', quality=90, exif=exif)
    first = [frames.decode_jpeg(bytes_) for bytes_ in (data, turned.getvalue())]
    assert first[1].shape == (37, 53, 3)
    for decoder in ('simplejpeg', 'cv2'):
        monkeypatch.setattr(frames, decoder, None)
        for bytes_, expected in zip((data, turned.getvalue()), first):
            np.testing.assert_array_equal(frames.decode_jpeg(bytes_), expected)


def test_the_fallback_encoder_writes_420_jpeg_of_the_same_quality(monkeypatch):
    frame = smooth_frame()
    fast = frames.encode_jpeg(frame, quality=80)
    monkeypatch.setattr(frames, 'simplejpeg', None)
    slow = frames.encode_jpeg(frame, quality=80)
    tables = [Image.open(io.BytesIO(data)).quantization for data in (fast, slow)]
    assert tables[0] == tables[1]
    difference = frames.decode_jpeg(slow).astype(int) - frames.decode_jpeg(fast)
    assert np.abs(difference).max() <= 4, 'another colour order or chroma subsampling'


@pytest.mark.parametrize('decoder', ['simplejpeg', 'cv2', 'PIL'])
@pytest.mark.parametrize('damage', ['empty', 'other bytes', 'truncated'])
def test_a_damaged_jpeg_is_an_error_with_every_decoder(decoder, damage, monkeypatch):
    whole = frames.encode_jpeg(smooth_frame())
    data = {
        'empty': b'',
        'other bytes': b'not a jpeg at all',
        'truncated': whole[: len(whole) // 2],
    }[damage]
    if decoder != 'simplejpeg':
        monkeypatch.setattr(frames, 'simplejpeg', None)
    if decoder == 'PIL':
        monkeypatch.setattr(frames, 'cv2', None)
    with pytest.raises(ValueError, match=f'a frame of {len(data)} bytes is not a readable JPEG'):
        frames.decode_jpeg(data)


def test_only_uint8_rgb_is_encoded():
    with pytest.raises(ValueError, match=r'must be uint8 \[H, W, 3\], got float32 \(4, 4, 3\)'):
        frames.encode_jpeg(np.zeros((4, 4, 3), np.float32))


def test_a_header_that_claims_more_than_the_memory_is_no_readable_jpeg():
    """12.9 GB of pixels in some hundred bytes: under a limit of memory, one frame is refused, not
    the process ended."""
    program = """
import resource, numpy as np
from fsar_jax.data.frames import decode_jpeg, encode_jpeg
data = bytearray(encode_jpeg(np.zeros((16, 16, 3), np.uint8)))
at = data.index(b'\\xff\\xc0') + 5
data[at:at + 4] = (65500).to_bytes(2, 'big') * 2
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    decode_jpeg(bytes(data))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert 'is not a readable JPEG' in done.stdout and done.stderr == ''
