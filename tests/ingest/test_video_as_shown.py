"""What a player shows is what is stored: colours, orientation, shape of the pixels, which stream,
how fast; and files that are made to do harm."""

import fractions
import itertools
import os
import struct

import av
import numpy as np
import pytest

from fsar_jax.ingest import video_files
from fsar_jax.ingest.records import RecordSettings, record_from_file
from fsar_jax.ingest.video_files import REASONS, VideoError, read_video, write_video
from fsar_jax.ingest.video_formats import SUFFIXES

FRAMES = 12
# Upper left, upper right, lower left, lower right.
QUARTERS = ((220, 40, 40), (40, 200, 60), (50, 60, 220), (210, 210, 40))


def quarters(height=48, width=64):
    """uint8 [height, width, 3] whose four quarters have four colours."""
    picture = np.zeros((height, width, 3), np.uint8)
    for (down, right), colour in zip(itertools.product((0, 1), (0, 1)), QUARTERS):
        picture[down * height // 2 :, right * width // 2 :] = colour
    return picture


def write(
    path,
    pictures,
    codec='libx264',
    pix_fmt='yuv420p',
    rate=10,
    aspect=None,
    times=None,
    options=None,
    **container,
):
    """times: time stamps of the frames in milliseconds instead of a constant rate."""
    with av.open(str(path), 'w', **container) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix_fmt
        stream.codec_context.max_b_frames = 0
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if times:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24').reformat(format=pix_fmt)
            if times:
                frame.pts, frame.time_base = times[i], fractions.Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


# -- colours ---------------------------------------------------------------------------------------

PATCHES = np.array(
    [
        (255, 255, 255),
        (0, 0, 0),
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (200, 120, 40),
        (40, 160, 200),
        (128, 128, 128),
    ]
)
# tag, Kr, Kb.
SPACES = {'BT.709': (1, 0.2126, 0.0722), 'BT.601': (6, 0.299, 0.114), 'untagged': (2, 0.299, 0.114)}


def yuv_planes(space, full, bits):
    """Eight patches of 32x32 by the definitions of BT.601 and BT.709: Y [64, 128], and half of it
    for U and V."""
    _, kr, kb = SPACES[space]
    r, g, b = PATCHES.T / 255
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    unit, most = 2 ** (bits - 8), 2**bits - 1
    if full:
        codes = y * most, u * most + 128 * unit, v * most + 128 * unit
    else:
        codes = (16 + 219 * y) * unit, (128 + 224 * u) * unit, (128 + 224 * v) * unit
    return [
        np.kron(code.round().clip(0, most).reshape(2, 4), np.ones((size, size))).astype(
            np.uint16 if bits > 8 else np.uint8
        )
        for code, size in zip(codes, (32, 16, 16))
    ]


@pytest.mark.parametrize('space', SPACES)
@pytest.mark.parametrize('full', (False, True), ids=('limited', 'full'))
@pytest.mark.parametrize(
    'codec, bits, options',
    (
        ('libx264', 8, {'crf': '1', 'preset': 'ultrafast'}),
        ('libx264', 10, {'crf': '1', 'preset': 'ultrafast'}),
        ('libx265', 8, {'x265-params': 'crf=1:bframes=0:log-level=none', 'preset': 'ultrafast'}),
        ('libx265', 10, {'x265-params': 'crf=1:bframes=0:log-level=none', 'preset': 'ultrafast'}),
        ('libvpx-vp9', 8, {'crf': '0', 'b': '0', 'cpu-used': '8', 'deadline': 'realtime'}),
    ),
)
def test_colours_follow_the_tags_of_the_stream(tmp_path, space, full, codec, bits, options):
    if space == 'untagged' and full:
        pytest.skip('full range is a tag')
    path, tag = tmp_path / ('clip.webm' if 'vp9' in codec else 'clip.mkv'), SPACES[space][0]
    pix_fmt, color_range = (
        'yuv420p10le' if bits > 8 else 'yuv420p',
        2 if full else 0 if space == 'untagged' else 1,
    )
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 64, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, color_range
        for _ in range(2):
            frame = av.VideoFrame(128, 64, pix_fmt)
            for plane, codes in zip(frame.planes, yuv_planes(space, full, bits)):
                rows = np.zeros((plane.height, plane.line_size // codes.itemsize), codes.dtype)
                rows[:, : codes.shape[1]] = codes
                plane.update(rows.tobytes())
            frame.colorspace, frame.color_range = tag, color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    shown = read_video(path).frames[1][[16, 48]][:, [16, 48, 80, 112]].reshape(8, 3)
    assert np.abs(shown.astype(int) - PATCHES).max() <= 2


def test_colours_that_cannot_be_converted_are_named(tmp_path):
    ycgco, path = 8, tmp_path / 'clip.mkv'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
        stream.codec_context.colorspace = ycgco
        frame = av.VideoFrame.from_ndarray(quarters(), format='rgb24').reformat(format='yuv420p')
        frame.colorspace = ycgco
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(
        VideoError,
        match='^decoder failed: its colours cannot be converted to RGB: yuv420p, matrix 8 of',
    ):
        read_video(path)


# -- orientation and shape -------------------------------------------------------------------------

MATRICES = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [
    (0, b, c, 0) for b in (1, -1) for c in (1, -1)
]


def shown_by_matrix(picture, a, b, c, d):
    """By the definition of ISO/IEC 14496-12: pixel (x, y) is shown at (a x + c y, b x + d y), moved
    to the first quadrant."""
    height, width = picture.shape[:2]
    place = {
        (a * (2 * x + 1) + c * (2 * y + 1), b * (2 * x + 1) + d * (2 * y + 1)): picture[y, x]
        for y in range(height)
        for x in range(width)
    }
    left, top = (min(values) for values in zip(*place))
    shown = np.zeros((height, width, 3) if a else (width, height, 3), np.uint8)
    for (x, y), colour in place.items():
        shown[(y - top) // 2, (x - left) // 2] = colour
    return shown


@pytest.fixture(scope='module')
def plain_mp4(tmp_path_factory):
    return write(
        tmp_path_factory.mktemp('plain') / 'clip.mp4', [quarters()] * FRAMES, options={'crf': '5'}
    )


def with_matrix(path, a, b, c, d):
    """The bytes of an .mp4 with another display matrix."""
    data = bytearray(path.read_bytes())
    place = data.find(b'tkhd') + 44
    assert struct.unpack('>9i', data[place : place + 36]) == (
        65536,
        0,
        0,
        0,
        65536,
        0,
        0,
        0,
        1 << 30,
    )
    data[place : place + 36] = struct.pack(
        '>9i', *(65536 * v for v in (a, b)), 0, *(65536 * v for v in (c, d)), 0, 0, 0, 1 << 30
    )
    return data


@pytest.mark.parametrize('matrix', MATRICES)
def test_all_eight_orientations(tmp_path, plain_mp4, matrix):
    path = tmp_path / 'clip.mp4'
    path.write_bytes(with_matrix(plain_mp4, *matrix))
    shown = read_video(path).frames[5]
    expected = shown_by_matrix(read_video(plain_mp4).frames[5], *matrix)
    np.testing.assert_array_equal(shown, expected)
    assert np.abs(expected.astype(int) - shown_by_matrix(quarters(), *matrix)).mean() < 4


@pytest.mark.parametrize('suffix', ('.mp4', '.mkv', '.avi', '.mpg'))
def test_pixels_that_are_not_square_are_stored_as_seen(tmp_path, suffix):
    codec = {'.avi': 'mpeg4', '.mpg': 'mpeg2video'}.get(suffix, 'libx264')
    picture = quarters(96, 128)
    path = write(
        tmp_path / f'clip{suffix}',
        [picture] * FRAMES,
        codec,
        rate=25,
        aspect=fractions.Fraction(4, 3),
    )
    seen, coded = read_video(path).frames[5], read_video(path, square_pixels=False).frames[5]
    assert seen.shape == (96, 171, 3) and coded.shape == (96, 128, 3)
    columns = np.clip(((np.arange(171) + 0.5) * 128 / 171).astype(int), 0, 127)
    assert np.abs(seen.astype(int) - coded[:, columns]).mean() < 2
    for square_pixels, width in ((1, 171), (0, 128)):
        record = record_from_file(
            path, 'a', 0, RecordSettings(short_side=0, square_pixels=square_pixels)
        )
        assert (record['width'], record['height']) == (width, 96)
    record = record_from_file(path, 'a', 0, RecordSettings(short_side=48))
    assert (record['width'], record['height']) == (85, 48)


@pytest.mark.parametrize(
    'aspect, width', (((1, 1), 64), ((3, 4), 48), ((8, 9), 57), ((1, 200), 64), ((200, 1), 64))
)
def test_narrow_pixels_and_nonsense(tmp_path, aspect, width):
    path = write(tmp_path / 'clip.mp4', [quarters()] * FRAMES, aspect=fractions.Fraction(*aspect))
    assert read_video(path).frames[0].shape == (48, width, 3)


def test_pixels_are_stretched_before_the_frame_is_turned(tmp_path):
    """A phone that stores 64x48 of 4:3 lying on its side shows 48 pixels across and 85 down."""
    lying = write(tmp_path / 'lying.mp4', [quarters()] * FRAMES, aspect=fractions.Fraction(4, 3))
    path = tmp_path / 'clip.mp4'
    path.write_bytes(with_matrix(lying, 0, 1, -1, 0) if b'tkhd' in lying.read_bytes() else b'')
    shown = read_video(path).frames[5]
    assert shown.shape == (85, 48, 3)
    np.testing.assert_array_equal(shown, shown_by_matrix(read_video(lying).frames[5], 0, 1, -1, 0))


def test_a_rotation_beside_data_that_pyav_does_not_know():
    """PyAV before 19 gives no side data at all then."""

    class Frame:
        rotation = 90

        @property
        def side_data(self):
            raise ValueError('29 is not a valid Type')

    turned = video_files._upright(quarters(), Frame())
    np.testing.assert_array_equal(turned, np.rot90(quarters()))


# -- which stream ----------------------------------------------------------------------------------


def write_streams(path, *streams):
    """Each stream: (pictures, rate, codec, disposition or None); time goes on in all of them at
    once."""
    with av.open(str(path), 'w') as container:
        made = []
        for pictures, rate, codec, disposition in streams:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
            if disposition is not None:
                stream.disposition = disposition
            made.append(stream)
        order = sorted(
            (i / rate, s, i)
            for s, (pictures, rate, *_) in enumerate(streams)
            for i in range(len(pictures))
        )
        for _, s, i in order:
            frame = av.VideoFrame.from_ndarray(streams[s][0][i], format='rgb24').reformat(
                format=made[s].pix_fmt
            )
            container.mux(made[s].encode(frame))
        for stream in made:
            container.mux(stream.encode(None))


@pytest.mark.parametrize('suffix', ('.mp4', '.mkv'))
@pytest.mark.parametrize('preview', (32, 128), ids=('small', 'large'))
def test_a_preview_of_a_frame_a_second_is_not_the_video(tmp_path, suffix, preview):
    path = tmp_path / f'clip{suffix}'
    small = np.zeros((preview * 3 // 4, preview, 3), np.uint8)
    write_streams(path, ([small] * 4, 1, 'libx264', None), ([quarters()] * 40, 10, 'libx264', None))
    video = read_video(path)
    assert (video.source_stream, video.source_frames, video.fps) == (1, 40, 10) and video.frames[
        0
    ].shape == (48, 64, 3)
    assert record_from_file(path, 'a', 0, RecordSettings())['source_stream'] == 1


def test_a_cover_is_not_the_video(tmp_path):
    cover, path = np.zeros((96, 128, 3), np.uint8), tmp_path / 'clip.mp4'
    attached = av.stream.Disposition.attached_pic
    write_streams(
        path, ([cover], 10, 'mjpeg', attached), ([quarters()] * FRAMES, 10, 'libx264', None)
    )
    with av.open(str(path)) as container:
        first = next(
            i for i, stream in enumerate(container.streams.video) if stream.disposition & attached
        )
    video = read_video(path)
    assert (video.source_stream, video.source_frames) == (1 - first, FRAMES)
    write_streams(path, ([cover], 10, 'mjpeg', attached))
    with pytest.raises(VideoError, match='^no video stream: only a cover'):
        read_video(path)


def test_a_picture_that_is_attached_to_an_mkv_is_not_the_video(tmp_path):
    cover = write(
        tmp_path / 'cover.jpg',
        [quarters(96, 128)],
        'mjpeg',
        'yuvj420p',
        container_options={'update': '1'},
    )
    path = tmp_path / 'clip.mkv'
    with av.open(str(path), 'w') as container:
        container.add_attachment('cover.jpg', 'image/jpeg', cover.read_bytes())
        stream = container.add_stream('libx264', rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, 'yuv420p'
        for _ in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quarters(), format='rgb24')))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2
    video = read_video(path)
    assert video.frames[0].shape == (48, 64, 3) and video.source_frames == FRAMES


@pytest.mark.parametrize('suffix', ('.mp4', '.mkv'))
def test_of_two_sizes_the_larger_unless_another_is_marked(tmp_path, suffix):
    path, default = tmp_path / f'clip{suffix}', av.stream.Disposition.default
    small, large = [quarters(24, 32)] * FRAMES, [quarters()] * FRAMES
    for first, second, marked, shown in (
        (small, large, (None, None), 1),
        (large, small, (None, None), 0),
        (small, large, (0, default), 1),
        (large, small, (0, default), 1),
    ):
        write_streams(path, (first, 10, 'libx264', marked[0]), (second, 10, 'libx264', marked[1]))
        assert read_video(path).source_stream == shown, (first[0].shape, marked)


# -- how fast --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'rate', (10, 25, 30, fractions.Fraction(30000, 1001), fractions.Fraction(24000, 1001), 60)
)
@pytest.mark.parametrize('suffix', ('.mp4', '.mkv', '.avi', '.ts'))
def test_a_constant_rate_is_that_of_the_header(tmp_path, suffix, rate):
    path = write(
        tmp_path / f'clip{suffix}',
        [quarters()] * FRAMES,
        rate=rate,
        codec='mpeg4' if suffix == '.avi' else 'libx264',
    )
    with av.open(str(path)) as container:
        header = float(container.streams.video[0].average_rate)
    assert read_video(path).fps == header == pytest.approx(float(rate), rel=1e-3)


@pytest.mark.parametrize('suffix', ('.mkv', '.mp4', '.webm'))
def test_a_rate_that_varies_is_that_of_the_time_stamps(tmp_path, suffix):
    """The header of such an .mkv says 1000."""
    gaps = [33, 34, 66, 17, 41, 120, 33, 50, 25, 80, 33]
    times = [0, *itertools.accumulate(gaps)]
    codec = 'libvpx-vp9' if suffix == '.webm' else 'libx264'
    path = write(tmp_path / f'clip{suffix}', [quarters()] * 12, codec, rate=1000, times=times)
    assert read_video(path).fps == pytest.approx(11 / 0.532, rel=0.01)


def test_a_gif_is_as_fast_as_its_pictures_stay(tmp_path):
    path = tmp_path / 'clip.gif'
    write(
        path,
        [quarters()] * 3 + [quarters()[::-1]] * 9,
        'gif',
        'rgb8',
        times=[100 * i for i in range(12)],
    )
    data = bytearray(path.read_bytes())
    blocks = [i for i in range(len(data)) if data[i : i + 3] == b'!\xf9\x04']
    for i, place in enumerate(blocks):
        # Hundredths of a second.
        data[place + 4 : place + 6] = (20 if i % 2 else 60).to_bytes(2, 'little')
    path.write_bytes(data)
    video = read_video(path)
    assert video.source_frames == len(blocks)
    assert video.fps == pytest.approx(
        len(blocks) / sum(0.2 if i % 2 else 0.6 for i in range(len(blocks)))
    )


# -- containers ------------------------------------------------------------------------------------

OTHER_CODECS = {
    '.avi': 'mpeg4', '.divx': 'mpeg4', '.webm': 'libvpx-vp9', '.flv': 'flv', '.wmv': 'wmv2',
    '.asf': 'wmv2', '.gif': 'gif', '.mpg': 'mpeg2video', '.mpeg': 'mpeg1video',
    '.mpe': 'mpeg2video', '.vob': 'mpeg2video', '.m1v': 'mpeg1video', '.m2v': 'mpeg2video',
    '.mxf': 'mpeg2video', '.rm': 'rv20', '.rmvb': 'rv20', '.ogv': 'libvpx', '.ogm': 'libvpx',
}  # fmt: skip
FORMATS = {
    '.divx': 'avi',
    '.qt': 'mov',
    '.mpe': 'mpeg',
    '.m2t': 'mpegts',
    '.rmvb': 'rm',
    '.m4v': 'mp4',
    '.ogm': 'ogg',
    '.ogv': 'ogg',
}


@pytest.mark.parametrize('suffix', sorted(set(SUFFIXES) - {'.dv'}))  # whose frames are of 720x576
def test_every_kind_of_file_is_read(tmp_path, suffix):
    codec, pictures = (
        OTHER_CODECS.get(suffix, 'libx264'),
        [np.roll(quarters(), 2 * i, 1) for i in range(FRAMES)],
    )
    pix_fmt = 'rgb8' if codec == 'gif' else 'yuv420p'
    path = write(
        tmp_path / f'clip{suffix}', pictures, codec, pix_fmt, rate=25, format=FORMATS.get(suffix)
    )
    video = read_video(path)
    assert (video.source_frames, video.decode_errors) == (FRAMES, 0) and video.fps == pytest.approx(
        25
    )
    # Of few colours.
    assert np.abs(np.array(video.frames).astype(int) - pictures).mean() < (
        30 if suffix == '.gif' else 12
    )


# -- files that are made to do harm ----------------------------------------------------------------


def reason_of(path):
    with pytest.raises(VideoError) as caught:
        read_video(path)
    assert caught.value.reason in REASONS and len(str(caught.value).splitlines()) == 1
    return caught.value.reason


@pytest.mark.parametrize(
    'text',
    (
        '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.ts\n#EXT-X-ENDLIST\n',
        "ffconcat version 1.0\nfile 'other.mp4'\n",
        'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n'
        'm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n',
        '<?xml version="1.0"?><MPD><Period><BaseURL>other.mp4</BaseURL></Period></MPD>',
    ),
    ids=('hls', 'concat', 'sdp', 'dash'),
)
@pytest.mark.parametrize('suffix', ('.mp4', '.m3u8', '.ts'))
def test_a_file_that_points_to_others_opens_none(tmp_path, monkeypatch, text, suffix):
    write_video(tmp_path / 'other.mp4', np.zeros((12, 48, 64, 3), np.uint8))
    write(tmp_path / 'other.ts', [quarters()] * FRAMES)
    path = tmp_path / f'clip{suffix}'
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    assert reason_of(path) == reason_of(path.name) == 'not a video'


def test_a_name_is_a_path_and_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video('clip.mp4', np.zeros((12, 48, 64, 3), np.uint8))
    os.rename('clip.mp4', 'data:clip.mp4')
    assert read_video('data:clip.mp4').source_frames == 12


def test_a_pipe_a_folder_and_a_device_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / 'pipe.mp4')
    (tmp_path / 'folder.mp4').mkdir()
    (tmp_path / 'device.mp4').symlink_to('/dev/zero')
    assert {reason_of(tmp_path / f'{name}.mp4') for name in ('pipe', 'folder', 'device')} == {
        'not a video'
    }


@pytest.mark.parametrize('width, height', ((65535, 65535), (16000, 16000)))
def test_a_header_of_a_gigantic_picture_costs_no_memory(tmp_path, width, height):
    """1 GB in FFmpeg's hands otherwise."""
    path = write(tmp_path / 'clip.gif', [quarters()] * FRAMES, 'gif', 'rgb8')
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack('<HH', width, height)
    path.write_bytes(data)
    before = peak_memory()
    assert reason_of(path) in ('no frames', 'too large')
    assert peak_memory() - before < 100


def peak_memory():
    """MB."""
    resource = pytest.importorskip('resource')
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_picture_above_the_limit_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / 'clip.mp4', [quarters()] * FRAMES)
    monkeypatch.setattr(video_files, 'MAX_PIXELS', 1000)
    with pytest.raises(VideoError, match='^too large: 64x48'):
        read_video(path)


def test_another_kind_of_file_is_no_video(tmp_path):
    path = tmp_path / 'clip.mp4'
    for codec, suffix, options in (
        ('mjpeg', '.jpg', {'update': '1'}),
        ('png', '.png', {'update': '1'}),
    ):
        pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'rgb24'
        write(
            tmp_path / f'picture{suffix}', [quarters()], codec, pix_fmt, container_options=options
        )
        path.write_bytes((tmp_path / f'picture{suffix}').read_bytes())
        assert reason_of(path) == 'not a video', suffix
