"""Whole files with headers that lie, and cut ones: what the sizes in each container tell."""

import struct

import av
import numpy as np
import pytest

from fsar_jax.ingest import containers
from fsar_jax.ingest.containers import end_of
from fsar_jax.ingest.video_files import VideoError, read_video

CODECS = {
    '.mp4': 'libx264', '.mov': 'libx264', '.3gp': 'libx264', '.mkv': 'libx264',
    '.webm': 'libvpx-vp9', '.avi': 'mpeg4', '.ts': 'libx264', '.m2ts': 'libx264', '.flv': 'flv1',
    '.wmv': 'wmv2', '.mpg': 'mpeg2video', '.vob': 'mpeg2video', '.gif': 'gif',
}  # fmt: skip
FRAMES = 40
FRAGMENTS = {'movflags': 'frag_keyframe+empty_moov+default_base_moof'}
OPTIONS_WITH_PARTS = {
    '.mkv': {'cluster_time_limit': '300'},
    '.webm': {'cluster_time_limit': '300'},
    '.mp4': {'movflags': 'faststart'},
}


def write(path, options=None, sound=0, metadata=None):
    """40 frames of a moving bar at 25 a second, all others than .gif with a keyframe every 10;
    `sound`: seconds of it."""
    with av.open(str(path), 'w', options=options or {}) as container:
        codec = CODECS[path.suffix]
        stream = container.add_stream(codec, rate=25, options={'g': '10'})
        stream.width, stream.height = 64, 48
        stream.pix_fmt = 'rgb8' if codec == 'gif' else 'yuv420p'
        stream.metadata.update(metadata or {})
        noise = container.add_stream('aac', rate=44100, layout='mono') if sound else None
        for i in range(FRAMES):
            picture = np.full((48, 64, 3), 60, np.uint8)
            picture[:, i : i + 8, i % 3] = 220
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24').reformat(
                format=stream.pix_fmt
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(0, int(sound * 44100), 1024):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format='fltp', layout='mono'
            )
            frame.sample_rate, frame.pts = 44100, start
            container.mux(noise.encode(frame))
        if sound:
            container.mux(noise.encode(None))
    return path.read_bytes()


def outcome(path, data):
    """Frames of a file with these bytes, or the reason that there are none."""
    path.write_bytes(data)
    try:
        return read_video(path).source_frames
    except VideoError as error:
        return error.reason


def places(data, pattern):
    """Where a pattern starts."""
    found = [data.find(pattern)]
    while found[-1] >= 0:
        found.append(data.find(pattern, found[-1] + 1))
    return found[:-1]


@pytest.mark.parametrize('suffix', CODECS)
def test_a_whole_file_is_read_and_a_cut_one_is_not(tmp_path, suffix):
    path = tmp_path / f'clip{suffix}'
    data = write(path)
    assert outcome(path, data) == FRAMES
    lengths = [int(share * len(data)) for share in (0.1, 0.25, 0.4, 0.55, 0.7, 0.8)]
    assert {length: outcome(path, data[: length | 1]) for length in lengths} == dict.fromkeys(
        lengths, 'truncated'
    )


@pytest.mark.parametrize(
    'options',
    (
        FRAGMENTS,
        {'movflags': 'frag_keyframe'},
        {'movflags': 'faststart'},
        # fmt: skip
        {'movflags': 'frag_keyframe+empty_moov+dash+global_sidx'},
    ),
)
def test_an_mp4_with_its_index_first_or_in_fragments(tmp_path, options):
    path = tmp_path / 'clip.mp4'
    data = write(path, options)
    assert outcome(path, data) == FRAMES
    for share in (0.2, 0.4, 0.6, 0.8):
        assert outcome(path, data[: int(share * len(data))]) == 'truncated', share
    if 'sidx' in str(options):  # between two fragments
        for start in places(data, b'moof')[1:-1]:
            assert outcome(path, data[: start - 4]) == 'truncated', start


def test_a_cut_between_two_frames_or_two_clusters(tmp_path):
    path = tmp_path / 'clip.mkv'
    data = write(path, OPTIONS_WITH_PARTS['.mkv'])
    clusters = places(data, bytes.fromhex('1f43b675'))
    assert len(clusters) > 4 and outcome(path, data) == FRAMES
    for start in clusters[1:-1]:
        assert outcome(path, data[:start]) == 'truncated', start
    path = tmp_path / 'clip.avi'
    data = write(path)
    for start in places(data, b'00dc')[5:35:6]:
        assert outcome(path, data[:start]) == 'truncated', start
    path = tmp_path / 'clip.mp4'
    data = write(path, OPTIONS_WITH_PARTS['.mp4'])
    path.write_bytes(data)
    with av.open(str(path)) as container:
        starts = [entry.pos for entry in container.streams.video[0].index_entries]
    for start in starts[3:35:6]:
        assert outcome(path, data[:start]) == 'truncated', start


def lie_mp4(data, times):
    for box, at in ((b'mvhd', 20), (b'tkhd', 24), (b'mdhd', 20)):
        for start in places(data, box):
            promised = int.from_bytes(data[start + at : start + at + 4])
            data[start + at : start + at + 4] = int(times * promised).to_bytes(4)


def lie_matroska(data, times):
    start = data.find(bytes.fromhex('448988')) + 3
    data[start : start + 8] = struct.pack(
        '>d', times * struct.unpack('>d', data[start : start + 8])[0]
    )
    for start in places(data, b'00:00:01.6'):
        data[start : start + 10] = f'00:00:{1.6 * times:04.1f}'.encode()


def lie_avi(data, times):
    for start in (48, data.find(b'strh') + 8 + 32):
        data[start : start + 4] = int(times * FRAMES).to_bytes(4, 'little')


def lie_flv(data, times):
    start = data.find(b'\0\x08duration\0') + 11
    data[start : start + 8] = struct.pack('>d', 1.6 * times)


def lie_asf(data, times):
    start = data.find(bytes.fromhex('a1dcab8c47a9cf118ee400c00c205365')) + 64
    for at in (start, start + 8):
        data[at : at + 8] = int(16_000_000 * times + 3000 * 10_000).to_bytes(8, 'little')


@pytest.mark.parametrize('times', (10, 0.1))
@pytest.mark.parametrize('suffix, lie', (
    ('.mp4', lie_mp4), ('.mov', lie_mp4), ('.mkv', lie_matroska), ('.webm', lie_matroska),
    ('.avi', lie_avi), ('.flv', lie_flv), ('.wmv', lie_asf),
))  # fmt: skip
def test_a_header_that_promises_too_much_or_too_little_is_no_damage(tmp_path, suffix, lie, times):
    path = tmp_path / f'clip{suffix}'
    data = bytearray(write(path))
    with av.open(str(path)) as container:
        true = container.duration
    lie(data, times)
    assert outcome(path, data) == FRAMES
    with av.open(str(path)) as container:
        believed = container.duration / true
        assert suffix in ('.mp4', '.mov') or (believed > 5 if times > 1 else believed < 0.2)
    assert outcome(path, data[: int(0.6 * len(data))]) == 'truncated'


def test_sizes_that_lie_are_no_damage_where_the_index_follows(tmp_path):
    for suffix, start, size in (('.mkv', bytes.fromhex('18538067'), 8), ('.avi', b'RIFF', 4)):
        path = tmp_path / f'clip{suffix}'
        data = bytearray(write(path))
        at = data.find(start) + 4
        order = 'big' if size == 8 else 'little'
        data[at : at + size] = (int.from_bytes(data[at : at + size], order) + 100_000).to_bytes(
            size, order
        )
        assert outcome(path, data) == FRAMES, suffix
        assert outcome(path, data[: int(0.6 * len(data))]) == 'truncated', suffix


def test_a_file_of_countless_parts_does_not_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, 'MOST_PARTS', 1000)
    path = tmp_path / 'clip.mkv'
    data = write(path)
    segment = data.find(bytes.fromhex('18538067')) + 12
    path.write_bytes(data[:segment] + b'\xec\x80' * 2000 + data[segment:])
    assert end_of(path).whole is None


@pytest.mark.parametrize('tag', ('DURATION-eng', 'DURATION-deu', 'DURATION', None))
def test_sound_that_outlasts_the_pictures_is_no_damage(tmp_path, tag):
    """Other programs tag the duration with a language, or do not."""
    path = tmp_path / 'clip.mkv'
    count = {'NUMBER_OF_FRAMES-eng': str(FRAMES)}
    data = write(path, sound=6, metadata=count | ({tag: '00:00:01.600000000'} if tag else {}))
    data = data if tag == 'DURATION' else data.replace(b'DURATION\x44\x87', b'NURATION\x44\x87')
    assert outcome(path, data) == FRAMES
    assert outcome(path, data[: int(0.3 * len(data))]) == 'truncated'


def test_a_fragmented_file_that_starts_two_frames_in(tmp_path):
    """Its duration is counted from 0."""
    path = tmp_path / 'clip.mp4'
    data = write(path, FRAGMENTS)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.start_time * stream.time_base == pytest.approx(0.08)
    without_end = data[: data.find(b'mfra') - 4]
    assert outcome(path, data) == outcome(path, without_end) == FRAMES


def test_a_live_recording_has_no_sizes_but_is_whole(tmp_path):
    path = tmp_path / 'clip.mkv'
    data = write(path, {'live': '1'})
    assert end_of(path).whole is None and outcome(path, data) == FRAMES
    assert outcome(path, data[: int(0.6 * len(data))]) == 'truncated'


def test_a_hole_of_zeros_is_damage(tmp_path):
    """A download that reserved its place and broke off has the right size."""
    for suffix in ('.mkv', '.webm', '.avi', '.mp4'):
        path = tmp_path / f'clip{suffix}'
        data = write(path, OPTIONS_WITH_PARTS.get(suffix))
        half = len(data) * 7 // 10
        assert outcome(path, data[:half] + bytes(len(data) - half)) in (
            'truncated',
            'decode errors',
        ), suffix


def test_what_follows_the_end_is_no_damage(tmp_path):
    for suffix in ('.mp4', '.mkv', '.webm', '.avi', '.flv', '.wmv', '.gif', '.ts', '.m2ts', '.mpg'):
        path = tmp_path / f'clip{suffix}'
        data = write(path)
        assert outcome(path, data + bytes(1000)) == FRAMES, suffix


def test_an_index_that_is_missing_is_told_from_one_that_is_damaged(tmp_path):
    path = tmp_path / 'clip.mp4'
    data = write(path)
    start = data.find(b'moov')
    path.write_bytes(data[: start - 4])
    with pytest.raises(VideoError, match='^truncated: .*its index is missing'):
        read_video(path)
    path.write_bytes(data[: start + 100])
    with pytest.raises(VideoError, match="^truncated: .*its part 'moov' goes on beyond its end"):
        read_video(path)
    # A download that reserved its place.
    path.write_bytes(data[: start - 4] + bytes(len(data) - start + 4))
    with pytest.raises(VideoError, match='^truncated: .*its index is missing'):
        read_video(path)
    for damage in (
        data[: start + 4] + b'\xff' * (len(data) - start - 4),
        data[: start + 4] + bytes(len(data) - start - 4),
        data.replace(b'moov', b'moow'),
    ):
        path.write_bytes(damage)
        with pytest.raises(
            VideoError, match='^not a video: the file is MP4, but its header or index is damaged'
        ):
            read_video(path)
    assert outcome(path, data.replace(b'mdat', b'\xff\0\xff\0')) == FRAMES
    for suffix, kind in (('.mkv', 'Matroska'), ('.avi', 'AVI')):
        path = tmp_path / f'clip{suffix}'
        data = write(path)
        path.write_bytes(data[:12] + bytes([255] * 100) + data[112:])
        with pytest.raises(
            VideoError,
            match=f'^not a video: the file is {kind}, but its header or index is damaged',
        ):
            read_video(path)
