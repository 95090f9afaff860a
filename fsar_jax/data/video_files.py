"""Video files: every frame decoded, only the kept ones converted, and a reason for each file that is no good.

Frames are taken in decoder order, never by seeking or by time stamps: the stamps of .avi files are scrambled,
and a clip of a few seconds is read faster from end to end.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import av
import numpy as np

# reason -> what it means; the only reasons a VideoError has.
REASONS = {
    'missing': 'there is no such file',
    'unreadable': 'the file is there, but the system does not let it be read; a call that goes on with the build tries again',
    'ended the process': 'twice the process that read it died: out of memory, or the decoder crashes; tried again as well',
    'empty file': 'the file has 0 bytes',
    'not a video': 'no known container: a text file, an archive, or a header that is damaged',
    'no video stream': 'a container without pictures: audio or subtitles only',
    'no frames': 'a video stream of which not one frame could be decoded',
    'truncated': 'less than 95% of the frames and of the time that the header promises: cut, or the download broke off',
    'decode errors': 'more than 5% of the frames are damaged',
    'frame size changes': 'the kept frames do not all have the same size',
    'too short': 'fewer frames than asked for',
    'decoder failed': 'the decoder raised an error of its own: the detail says which',
}
COMPLETE_FRACTION = 0.95  # sound files measure 1.00 to 1.01 of the promised frames, cut ones 0.5 to 0.85
DAMAGED_FRACTION = 0.05
OF_THE_SYSTEM = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EACCES, errno.EMFILE, errno.ENFILE)

# What a builder takes for a video by its name; whether it is one, reading it tells.
SUFFIXES = (
    *('.mp4', '.m4v', '.mov', '.qt', '.3gp', '.3g2', '.f4v', '.webm', '.mkv', '.avi', '.divx'),
    *('.mpg', '.mpeg', '.mpe', '.m1v', '.m2v', '.vob', '.ts', '.mts', '.m2ts', '.flv', '.wmv', '.asf'),
    *('.ogv', '.ogm', '.rm', '.rmvb', '.dv', '.mxf', '.gif'),
)

PYAV = int(av.__version__.split('.')[0])
OLDEST_PYAV = 17  # below it, BT.709 is converted with the matrix of BT.601: colours up to 25 of 255 off

# Titles are in any encoding: PyAV decodes them as it is told until 18, with replacements from 19 on.
OPENING = {'metadata_errors': 'replace'} if PYAV < 19 else {}

DECODING_LIBRARIES = ('libavformat', 'libavcodec', 'libswscale')  # of FFmpeg

# suffix -> (encoder, its options); quality near lossless, speed before size
H264 = {
    'crf': '18',
    'preset': 'veryfast',
    'x264-params': 'cpu-independent=1',
}  # else its bytes vary from run to run
CODECS = {
    '.mp4': ('libx264', H264),
    '.mkv': ('libx264', H264),
    '.avi': ('mpeg4', {'b': '4000000'}),
    '.webm': ('libvpx-vp9', {'crf': '20', 'b': '0', 'deadline': 'realtime', 'cpu-used': '8'}),
}


class VideoError(ValueError):
    """A file that gives no usable clip.

    reason: a key of REASONS.  detail: numbers or the decoder's words, without paths.
    """

    def __init__(self, reason: str, detail: str = ''):
        self.reason, self.detail = reason, detail
        super().__init__(f'{reason}: {detail}' if detail else reason)

    def __reduce__(self):  # exceptions with two arguments do not survive a process boundary otherwise
        return type(self), (self.reason, self.detail)


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """What was kept of a file.

    frames: list of uint8 [H, W, 3] RGB, upright, or of what `convert` made of them.
    frame_index: int32 [stored], place of each kept frame among the decoded ones.
    source_frames: frames decoded from the file.
    fps: frames per second by the header, 0 when it does not say.
    decode_errors: packets that could not be decoded and frames that the decoder marked as damaged.
    """

    frames: list[Any]
    frame_index: np.ndarray
    source_frames: int
    fps: float
    decode_errors: int


def decoder_versions() -> dict[str, str]:
    """What decodes here: {'av': '19.0.2', 'libavformat': '63.1.102', 'libavcodec': ..., 'libswscale': ...}."""
    libraries = {name: '.'.join(map(str, av.library_versions[name])) for name in DECODING_LIBRARIES}
    return {'av': av.__version__} | libraries


def decoder_generation() -> str:
    """What makes the pixels of a video, such as 'av 19, libavformat 63, libavcodec 63, libswscale 10'.

    PyAV's major version decides how frames are converted to RGB (17 mended BT.709 with the FFmpeg that 16 had); FFmpeg's
    majors which packets a file is taken apart into, which frames come of them, and how each is converted. Files decoded
    by two generations may differ in colours and in the frames of a damaged file, so they are never mixed in one dataset.
    Minor versions only mend faults, and the same version on another kind of processor may round a value by 1: neither
    is told apart here.

    Raises:
      ValueError: PyAV is too old to give the right colours.
    """
    if PYAV < OLDEST_PYAV:
        raise ValueError(
            f'PyAV {av.__version__} is installed, which gives the wrong colours for BT.709 video: '
            f"install a newer one (pip install 'av>={OLDEST_PYAV}')"
        )
    return ', '.join(f'{name} {version.split(".")[0]}' for name, version in decoder_versions().items())


def kept_frames(source_frames: int, max_frames: int) -> np.ndarray:
    """int32 [min(source_frames, max_frames)], evenly spaced from first to last frame; max_frames 0 keeps all."""
    if max_frames == 0 or source_frames <= max_frames:
        return np.arange(source_frames, dtype=np.int32)
    if max_frames == 1:
        return np.array([source_frames // 2], np.int32)
    return np.round(np.linspace(0, source_frames - 1, max_frames)).astype(np.int32)


def read_video(
    path: str | os.PathLike,
    max_frames: int = 0,
    min_frames: int = 1,
    convert: Callable[[np.ndarray], Any] | None = None,
) -> Video:
    """Decodes a whole file and keeps at most `max_frames` evenly spaced frames (0: all).

    Args:
      path: any container and codec that FFmpeg reads; the suffix does not matter.
      min_frames: a clip with fewer frames is 'too short'.
      convert: applied to each kept frame, uint8 [H, W, 3], as soon as it is decoded (resize, encode), so that
        no more than one full-size frame is held at a time.

    Raises:
      VideoError: with one of REASONS.
      ValueError: PyAV is too old.
    """
    decoder_generation()
    path = pathlib.Path(path)
    _check_file(path)
    promised, packets, covered = _count(path)
    # How many frames there are is only known after decoding. The packets tell it nearly always; when they do
    # not and the frames kept are not the right ones, the file is decoded again.
    video, kept = _decode(path, kept_frames(packets, max_frames), convert)
    # Packets count too: an edit list hides frames that are there. So does the time: where the frame rate varies, headers
    # promise a frame for every place in time.
    if max(video.source_frames, packets) < COMPLETE_FRACTION * promised and covered < COMPLETE_FRACTION:
        raise VideoError('truncated', f'{video.source_frames} frames, the header promises {promised}')
    if video.source_frames == 0:
        raise VideoError('no frames', f'{packets} packets, none decodable')
    if video.decode_errors > DAMAGED_FRACTION * max(video.source_frames, packets):
        raise VideoError('decode errors', f'{video.decode_errors} in {video.source_frames} frames')
    if video.source_frames < min_frames:
        raise VideoError('too short', f'{video.source_frames} frames, at least {min_frames} are needed')
    frame_index = kept_frames(video.source_frames, max_frames)
    if not set(frame_index.tolist()) <= kept.keys():
        video, kept = _decode(path, frame_index, convert)
    return dataclasses.replace(video, frames=[kept[i] for i in frame_index.tolist()], frame_index=frame_index)


def write_video(path: str | os.PathLike, frames: np.ndarray, fps: int = 12, codec: str | None = None) -> None:
    """Encodes uint8 [N, H, W, 3] RGB to a file, 4:2:0, the same bytes every time.

    codec: an FFmpeg encoder; by default that of the suffix (.mp4 and .mkv H.264, .avi MPEG-4, .webm VP9).
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in CODECS:
        raise ValueError(f"cannot write '{suffix}' files: choose one of {', '.join(CODECS)}")
    if (
        frames.dtype != np.uint8
        or frames.ndim != 4
        or frames.shape[-1] != 3
        or frames.shape[1] % 2
        or frames.shape[2] % 2
    ):
        raise ValueError(
            f'frames to write must be uint8 [N, H, W, 3] with even H and W, got {frames.dtype} {frames.shape}'
        )
    name, options = CODECS[suffix]
    with av.open(os.fspath(path), 'w', options={'fflags': '+bitexact'}) as container:
        stream = container.add_stream(codec or name, rate=fps, options=dict(options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        stream.thread_count = 1  # with threads the bytes depend on the machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        container.mux(stream.encode(None))


def _check_file(path):
    try:
        if not path.stat().st_size:
            raise VideoError('empty file')
        with path.open('rb'):
            pass
    except FileNotFoundError:
        raise VideoError('missing') from None
    except OSError as error:
        raise VideoError('unreadable', error.strerror or str(error)) from None


def _open(path):
    try:
        container = av.open(os.fspath(path), **OPENING)
    except av.error.FFmpegError as error:
        _raise_if_of_the_system(error)
        raise _not_a_video(path, error.strerror or '') from None
    if not container.streams.video:
        kinds = sorted({stream.type for stream in container.streams})
        container.close()
        raise (
            VideoError('no video stream', f'only {" and ".join(kinds)}')
            if kinds
            else _not_a_video(path, 'no streams')
        )
    return container


def _not_a_video(path, detail):
    """The error for what cannot be opened. An .mp4 has its index last by default: a cut one only starts well."""
    with path.open('rb') as file:
        start = file.read(12)
    if start[4:8] == b'ftyp' or start[:4] in (b'RIFF', b'\x1aE\xdf\xa3'):
        return VideoError('truncated', 'the file starts as a video, but its index is missing')
    return VideoError('not a video', detail)


def _raise_if_of_the_system(error):
    """A disk, a network or memory that fails now says nothing about the file."""
    if error.errno in OF_THE_SYSTEM:
        raise VideoError('unreadable', error.strerror or str(error)) from None


def _packets(container, stream) -> Iterator[av.Packet | None]:
    """The stream's packets, the closing empty one included; None where the damage is too much to go on."""
    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            _raise_if_of_the_system(error)
            yield None
            return


def _count(path):
    """(frames that the header promises, packets with a frame that is shown, share of the promised time that they cover).

    Nothing is decoded. The share is 0 where the header says no time.
    """
    with _open(path) as container:
        stream = container.streams.video[0]
        # Sound may outlast the pictures: the file's duration is the last resort.
        seconds = (
            float(stream.duration * stream.time_base)
            if stream.duration
            else _tagged_seconds(stream.metadata) or (container.duration or 0) / av.time_base
        )
        promised = stream.frames or int(seconds * float(stream.average_rate or 0))  # .webm has no count
        packets, last = 0, stream.start_time or 0
        for packet in _packets(container, stream):
            if packet is not None and packet.size:
                packets += 1
                times = [time for time in (packet.dts, packet.pts) if time is not None]
                last = max([last, *(time + (packet.duration or 0) for time in times)])
        covered = float((last - (stream.start_time or 0)) * stream.time_base)
        return promised, packets, covered / seconds if seconds else 0.0


def _tagged_seconds(metadata):
    """Seconds of a Matroska DURATION tag such as 00:00:02.667000000, 0 when absent."""
    try:
        hours, minutes, seconds = metadata['DURATION'].split(':')
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (KeyError, ValueError):
        return 0.0


def _decode(path, frame_index, convert):
    """(Video without frames, {place: frame}) for the places in `frame_index` that exist."""
    wanted = set(frame_index.tolist())
    kept, count, errors, size = {}, 0, 0, None
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = 'NONE'  # files are decoded in parallel, one process each
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        for packet in _packets(container, stream):
            try:
                if packet is None:
                    errors += 1
                    frames = stream.codec_context.decode(None)
                else:
                    frames = packet.decode()
            except av.error.EOFError:
                frames = []
            except av.error.FFmpegError as error:
                _raise_if_of_the_system(error)
                errors += 1
                continue
            for frame in frames:
                errors += frame.is_corrupt
                if count in wanted:
                    rgb = frame.to_ndarray(format='rgb24')
                    if frame.rotation:  # phones store the frame as the sensor saw it, and how to turn it
                        rgb = np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90))
                    if size not in (None, rgb.shape):
                        raise VideoError(
                            'frame size changes', f'{size[1]}x{size[0]}, then {rgb.shape[1]}x{rgb.shape[0]}'
                        )
                    size = rgb.shape
                    kept[count] = convert(rgb) if convert else rgb
                count += 1
    return Video([], frame_index, count, fps, int(errors)), kept
