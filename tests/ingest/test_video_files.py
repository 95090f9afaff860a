"""Real files in every container, whole and broken in every way that REASONS names."""

import errno
import pickle

import av
import numpy as np
import pytest

from fsar_jax.ingest import video_files
from fsar_jax.ingest.video_files import (
    REASONS,
    VideoError,
    kept_frames,
    read_video,
    seconds_of,
    write_video,
)

SUFFIXES = ('.mp4', '.avi', '.webm', '.mkv')


def moving_bar(num_frames, height=48, width=64):
    """uint8 [num_frames, height, width, 3]: a bar on grey, 2 pixels to the right per frame."""
    frames = np.full((num_frames, height, width, 3), 60, np.uint8)
    for i in range(num_frames):
        frames[i, : height // 2, (2 * i) % width :][:, :8, 0] = 220
        frames[i, height // 2 :, (2 * i) % width :][:, :8, 1] = 220
    return frames


def write_sound(container, stream, seconds):
    for start in range(0, int(seconds * 44100), 1024):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format='fltp', layout='mono'
        )
        frame.sample_rate, frame.pts = 44100, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def reason_of(path, **arguments):
    with pytest.raises(VideoError) as caught:
        read_video(path, **arguments)
    assert caught.value.reason in REASONS
    assert str(path) not in str(caught.value)
    return caught.value.reason


def write_uneven(path, frames, every, missing):
    """Frame i at time i of 25 a second, except those with i % every == missing: an uneven rate, no
    frame lost."""
    name, options = video_files.CODECS[path.suffix]
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(name, rate=25, options=dict(options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.max_b_frames = 'yuv420p', 0
        for i, picture in enumerate(frames):
            if i % every != missing:
                frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
                frame.pts = i
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize('every', (2, 10))
@pytest.mark.parametrize('suffix', SUFFIXES)
def test_an_uneven_frame_rate_is_no_damage(tmp_path, suffix, every):
    """The header of an .avi counts the gaps as frames, .webm and .mkv tell the time only."""
    path = tmp_path / f'clip{suffix}'
    write_uneven(path, moving_bar(60), every, every - 1)
    assert read_video(path).source_frames == 60 - 60 // every
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    assert reason_of(path) == 'truncated'


@pytest.mark.parametrize('place', ['open', 'demux'])
@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_disk_that_fails_says_nothing_about_the_file(tmp_path, monkeypatch, place, number):
    path = tmp_path / 'clip.mp4'
    write_video(path, moving_bar(20))
    original = av.open

    class Failing:
        def __init__(self, container):
            self.container, self.streams, self.duration = (
                container,
                container.streams,
                container.duration,
            )

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

        def demux(self, stream):
            for i, packet in enumerate(self.container.demux(stream)):
                if i == 5:
                    raise av.error.FFmpegError(number, 'of the system')
                yield packet

    def fails(*args, **keywords):
        if place == 'open':
            raise av.error.FFmpegError(number, 'of the system')
        return Failing(original(*args, **keywords))

    monkeypatch.setattr(av, 'open', fails)
    assert reason_of(path) == 'unreadable'


@pytest.mark.parametrize('suffix', ['.mkv', '.webm'])
def test_a_damaged_matroska_header_is_not_a_fault_of_the_disk(tmp_path, suffix):
    """FFmpeg calls it an I/O error; a build would try it again and again."""
    path = tmp_path / f'clip{suffix}'
    write_video(path, moving_bar(20))
    data = bytearray(path.read_bytes())
    data[data.rindex(bytes.fromhex('1549a966'))] = 0xFF  # where the part with the title begins
    path.write_bytes(data)
    assert reason_of(path) == 'not a video'


def test_a_title_in_another_encoding(tmp_path):
    path = tmp_path / 'clip.avi'
    write_video(path, moving_bar(20))
    data = path.read_bytes()
    end = 20 + int.from_bytes(data[16:20], 'little')  # of the LIST of headers
    info = b'INFOINAM' + (6).to_bytes(4, 'little') + b'caf\xe9\0\0'
    data = data[:end] + b'LIST' + len(info).to_bytes(4, 'little') + info + data[end:]
    path.write_bytes(data[:4] + (len(data) - 8).to_bytes(4, 'little') + data[8:])
    assert read_video(path).source_frames == 20


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_what_was_written_is_read_in_order(tmp_path, suffix):
    frames = moving_bar(30)
    write_video(tmp_path / f'clip{suffix}', frames, fps=10)
    video = read_video(tmp_path / f'clip{suffix}')
    assert (video.source_frames, video.fps, video.decode_errors) == (30, 10.0, 0)
    np.testing.assert_array_equal(video.frame_index, np.arange(30))
    read = np.stack(video.frames).astype(int)
    assert np.abs(read - frames).mean() < 3
    difference = np.abs(read[:, None] - frames[None].astype(int)).mean((2, 3, 4))
    np.testing.assert_array_equal(difference.argmin(1), np.arange(30))


def test_only_kept_frames_are_converted(tmp_path):
    write_video(tmp_path / 'clip.mp4', moving_bar(30))
    everything, seen = read_video(tmp_path / 'clip.mp4'), []
    video = read_video(
        tmp_path / 'clip.mp4', max_frames=8, convert=lambda frame: seen.append(1) or frame
    )
    assert len(seen) == 8 and video.source_frames == 30
    np.testing.assert_array_equal(video.frame_index, [0, 4, 8, 12, 17, 21, 25, 29])
    for frame, place in zip(video.frames, video.frame_index, strict=True):
        np.testing.assert_array_equal(frame, everything.frames[place])


@pytest.mark.parametrize('wrong_by', (-7, 5))
def test_a_wrong_packet_count_does_not_change_the_frames(tmp_path, monkeypatch, wrong_by):
    write_video(tmp_path / 'clip.mp4', moving_bar(30))
    expected = read_video(tmp_path / 'clip.mp4', max_frames=8)
    original = video_files._count
    wrong = lambda *arguments: original(*arguments)._replace(packets=30 + wrong_by)
    monkeypatch.setattr(video_files, '_count', wrong)
    video = read_video(tmp_path / 'clip.mp4', max_frames=8)
    np.testing.assert_array_equal(video.frame_index, expected.frame_index)
    np.testing.assert_array_equal(np.stack(video.frames), np.stack(expected.frames))


def test_kept_frames_are_distinct_and_span_the_clip():
    for source in (1, 2, 7, 64, 65, 66, 100, 301):
        for most in (2, 8, 64):
            kept = kept_frames(source, most)
            assert len(kept) == min(source, most) and kept[0] == 0 and kept[-1] == source - 1
            steps = np.diff(kept)
            assert not len(steps) or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    np.testing.assert_array_equal(kept_frames(100, 0), np.arange(100))


def test_the_generation_is_what_may_change_pixels():
    versions = video_files.decoder_versions()
    assert (
        list(versions) == ['av', 'libavformat', 'libavcodec', 'libswscale']
        and versions['av'] == av.__version__
    )
    majors = [int(part.split()[1]) for part in video_files.decoder_generation().split(', ')]
    libraries = [av.library_versions[name][0] for name in list(versions)[1:]]
    assert majors == [int(av.__version__.split('.')[0]), *libraries]


def test_pyav_with_wrong_colours_is_refused_with_what_to_install(tmp_path, monkeypatch):
    write_video(tmp_path / 'clip.mp4', moving_bar(8))
    monkeypatch.setattr(video_files, 'PYAV', 16)
    for call in (video_files.decoder_generation, lambda: read_video(tmp_path / 'clip.mp4')):
        with pytest.raises(ValueError, match=r"PyAV .*wrong colours.*pip install 'av>=17'"):
            call()


def test_missing_empty_and_other_files(tmp_path):
    assert reason_of(tmp_path / 'none.mp4') == 'missing'
    (tmp_path / 'empty.mp4').touch()
    assert reason_of(tmp_path / 'empty.mp4') == 'empty file'
    (tmp_path / 'text.mp4').write_text('this is no video, whatever its name says\n' * 20)
    assert reason_of(tmp_path / 'text.mp4') == 'not a video'
    (tmp_path / 'folder.mp4').mkdir()
    assert reason_of(tmp_path / 'folder.mp4') == 'not a video'


def test_sound_only(tmp_path):
    with av.open(str(tmp_path / 'sound.mp4'), 'w') as container:
        write_sound(container, container.add_stream('aac', rate=44100, layout='mono'), 0.5)
    assert reason_of(tmp_path / 'sound.mp4') == 'no video stream'


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize('kept_share', (0.2, 0.6, 0.85))
def test_a_cut_file(tmp_path, suffix, kept_share):
    path = tmp_path / f'clip{suffix}'
    write_video(path, moving_bar(60))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept_share * len(data))])
    assert reason_of(path) == 'truncated'


def test_longer_sound_does_not_make_a_clip_truncated(tmp_path):
    with av.open(str(tmp_path / 'clip.mkv'), 'w') as container:
        stream, sound = (
            container.add_stream('libx264', rate=10),
            container.add_stream('aac', rate=44100, layout='mono'),
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for frame in moving_bar(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        container.mux(stream.encode(None))
        write_sound(container, sound, 4)
    assert read_video(tmp_path / 'clip.mkv').source_frames == 20


def test_damage_is_counted_and_too_much_of_it_is_an_error(tmp_path):
    path = tmp_path / 'clip.avi'
    rng = np.random.default_rng(0)
    write_video(path, rng.integers(0, 255, (60, 48, 64, 3)).astype(np.uint8))
    data = bytearray(path.read_bytes())
    one = data.copy()
    one[len(data) // 2] ^= 0xFF
    (tmp_path / 'one.avi').write_bytes(one)
    video = read_video(tmp_path / 'one.avi')
    assert 1 <= video.decode_errors <= 3 and video.source_frames >= 58
    for i in range(len(data) // 4, len(data) // 2, 200):
        data[i] ^= 0xFF
    (tmp_path / 'many.avi').write_bytes(data)
    assert reason_of(tmp_path / 'many.avi') == 'decode errors'


def test_a_late_start_does_not_make_a_file_longer(tmp_path):
    """As a recorder writes that goes by the time of the day."""
    write_video(tmp_path / 'now.mkv', moving_bar(36), fps=12, codec='mpeg4')  # in order
    with av.open(tmp_path / 'now.mkv') as now, av.open(tmp_path / 'late.mkv', 'w') as late:
        stream = late.add_stream_from_template(now.streams.video[0])
        for packet in now.demux(now.streams.video[0]):
            if packet.size:
                packet.pts += int(3600 / packet.time_base)
                packet.dts = packet.pts
                packet.stream = stream
                late.mux(packet)
    for name in ('now.mkv', 'late.mkv'):
        assert seconds_of(tmp_path / name) == pytest.approx(3, abs=0.1)


def test_a_clip_below_the_asked_length(tmp_path):
    write_video(tmp_path / 'clip.mp4', moving_bar(3))
    assert read_video(tmp_path / 'clip.mp4').source_frames == 3
    assert reason_of(tmp_path / 'clip.mp4', min_frames=8) == 'too short'


def test_a_picture_that_changes_its_size(tmp_path):
    data = b''
    for width in (64, 96):
        part = tmp_path / f'{width}.h264'
        with av.open(str(part), 'w', format='h264') as container:
            stream = container.add_stream('libx264', rate=10)
            stream.width, stream.height, stream.pix_fmt = width, 48, 'yuv420p'
            for frame in moving_bar(10, 48, width):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
            container.mux(stream.encode(None))
        data += part.read_bytes()
    (tmp_path / 'both.mp4').write_bytes(data)
    assert reason_of(tmp_path / 'both.mp4') == 'frame size changes'


def test_errors_cross_process_borders():
    error = pickle.loads(pickle.dumps(VideoError('truncated', '3 frames')))
    assert (error.reason, error.detail, str(error)) == (
        'truncated',
        '3 frames',
        'truncated: 3 frames',
    )


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_writing_is_deterministic(tmp_path, suffix):
    contents = set()
    for i in range(10):
        write_video(tmp_path / f'{i}{suffix}', moving_bar(12))
        contents.add((tmp_path / f'{i}{suffix}').read_bytes())
    assert len(contents) == 1


def test_writing_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(ValueError, match="cannot write '.gif' files: choose one of .mp4"):
        write_video(tmp_path / 'a.gif', moving_bar(2))
    with pytest.raises(ValueError, match='even H and W, got uint8 .2, 47, 64, 3.'):
        write_video(tmp_path / 'a.mp4', moving_bar(2)[:, :47])
