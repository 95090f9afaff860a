"""Video files: every frame decoded, only the kept ones converted, and a reason for each file that
is no good.

Frames are taken in decoder order, never by seeking or by time stamps: the stamps of .avi files are
scrambled, and a clip of a few seconds is read faster from end to end.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from PIL import Image

from fsar_jax.ingest.containers import End, end_of
from fsar_jax.ingest.video_formats import CODECS, CONTAINERS
from fsar_jax.messages import one_line

MAX_PIXELS = 8192 * 8192  # of one picture
LARGEST = '8192x8192'

# reason -> what it means; the only reasons a VideoError has.
REASONS = {
    'missing': 'there is no such file',
    'unreadable': 'the file is there, but the system does not let it be read; a call that goes on '
    'with the build tries again',
    'ended the process': 'twice the process that read it died: out of memory, or the decoder '
    'crashes; tried again as well',
    'empty file': 'the file has 0 bytes',
    'not a video': 'no container of videos: a text file, an archive, a playlist, a folder, a pipe, '
    'or a header that is damaged',
    'no video stream': 'a container without pictures: audio, subtitles or a cover only',
    'no frames': 'a video stream of which not one frame could be decoded',
    'too large': f'pictures of more pixels than {LARGEST}: a header that lies, or is made to '
    'exhaust the memory',
    'truncated': 'the file ends before it should by the sizes in it, or by its header where it '
    'holds none: cut, or the download broke off; 95% of the promised frames or time count as all',
    'decode errors': 'more than 5% of the frames are damaged',
    'frame size changes': 'the kept frames do not all have the same size',
    'too short': 'fewer frames than asked for',
    'decoder failed': 'there is none for the codec, or it raised an error of its own: the detail '
    'says which',
}
# Sound files measure 1.00 to 1.01 of the promised frames, cut ones 0.5 to 0.85.
COMPLETE_FRACTION = 0.95
DAMAGED_FRACTION = 0.05
MAX_ASPECT = 10  # of one pixel; beyond it a header is wrong
# swscale's SWS_BILINEAR, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND: without the latter two, 10 bits
# come out up to 3 too dark.
EXACT = 0x2 | 0x2000 | 0x40000
OF_THE_SYSTEM = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOMEM,
    errno.EACCES,
    errno.EMFILE,
    errno.ENFILE,
)

PYAV = int(av.__version__.split('.')[0])
# Below it, BT.709 is converted with the matrix of BT.601: colours up to 25 of 255 off.
OLDEST_PYAV = 17

# Titles are in any encoding: PyAV decodes them as it is told until 18, with replacements from 19
# on.
OPENING = {'metadata_errors': 'replace'} if PYAV < 19 else {}

# Also while a file is opened, which decodes a picture of some.
DECODER_OPTIONS = {'max_pixels': str(MAX_PIXELS)}
OPTIONS = {'format_whitelist': ','.join(CONTAINERS)} | DECODER_OPTIONS

DECODING_LIBRARIES = ('libavformat', 'libavcodec', 'libswscale')  # of FFmpeg


class VideoError(ValueError):
    """A file that gives no usable clip.

    reason: a key of REASONS.  detail: numbers or the decoder's words, without paths.
    """

    def __init__(self, reason: str, detail: str = ''):
        self.reason, self.detail = reason, detail
        super().__init__(f'{reason}: {detail}' if detail else reason)

    # Exceptions with two arguments do not survive a process boundary otherwise.
    def __reduce__(self):
        return type(self), (self.reason, self.detail)


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """What was kept of a file.

    frames: list of uint8 [H, W, 3] RGB as a player shows them, or of what `convert` made of them.
    frame_index: int32 [stored], place of each kept frame among the decoded ones.
    source_frames: frames decoded from the file.
    fps: frames per second: the header's value where the time stamps agree with it, else theirs; 0
    when neither is there. decode_errors: packets that could not be decoded and frames that the
    decoder marked as damaged. source_stream: the stream's index in the file.
    """

    frames: list[Any]
    frame_index: np.ndarray
    source_frames: int
    fps: float
    decode_errors: int
    source_stream: int


def decoder_versions() -> dict[str, str]:
    """What decodes here: {'av': '19.0.2', 'libavformat': '63.1.102', 'libavcodec': ...,
    'libswscale': ...}."""
    libraries = {name: '.'.join(map(str, av.library_versions[name])) for name in DECODING_LIBRARIES}
    return {'av': av.__version__} | libraries


def decoder_generation() -> str:
    """What makes the pixels of a video, such as 'av 19, libavformat 63, libavcodec 63, libswscale
    10'.

    PyAV's major version decides how frames are converted to RGB (17 mended BT.709 with the FFmpeg
    that 16 had); FFmpeg's majors which packets a file is taken apart into, which frames come of
    them, and how each is converted. Files decoded by two generations may differ in colours and in
    the frames of a damaged file, so they are never mixed in one dataset. Minor versions only mend
    faults, and the same version on another kind of processor may round a value by 1: neither is
    told apart here.

    Raises:
      ValueError: PyAV is too old to give the right colours.
    """
    if PYAV < OLDEST_PYAV:
        raise ValueError(
            f'PyAV {av.__version__} is installed, which gives the wrong colours for BT.709 video: '
            f"install a newer one (pip install 'av>={OLDEST_PYAV}')"
        )
    return ', '.join(
        f'{name} {version.split(".")[0]}' for name, version in decoder_versions().items()
    )


def kept_frames(source_frames: int, max_frames: int) -> np.ndarray:
    """int32 [min(source_frames, max_frames)], evenly spaced from first to last frame; max_frames 0
    keeps all."""
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
    square_pixels: bool = True,
) -> Video:
    """Decodes a whole file and keeps at most `max_frames` evenly spaced frames (0: all), as a
    player shows them.

    Of several streams with pictures, the one that a player shows (`_shown`). Frames are turned and
    mirrored as the display matrix says. Colours follow the stream's tags, BT.709 or BT.601, limited
    or full range; what has no tag is taken for BT.601 in limited range, whatever its size, as
    ffmpeg does.

    Args:
      path: a file of one of CONTAINERS, with any codec that FFmpeg reads; the suffix does not
        matter.
      min_frames: a clip with fewer frames is 'too short'.
      convert: applied to each kept frame, uint8 [H, W, 3], as soon as it is decoded (resize,
        encode), so that no more than one full-size frame is held at a time.
      square_pixels: stretch the width of frames whose pixels are not square, before they are
        turned: 128x96 with pixels of 4:3 becomes 171x96. False keeps them as coded.

    Raises:
      VideoError: with one of REASONS.
      ValueError: PyAV is too old.
    """
    decoder_generation()
    path = pathlib.Path(os.path.abspath(path))  # FFmpeg takes 'data:x.mp4' for an address
    end = _check_file(path)
    file = _count(path, end)
    # How many frames there are is only known after decoding. The packets tell it nearly always;
    # when they do not and the frames kept are not the right ones, the file is decoded again.
    wanted = kept_frames(file.packets, max_frames)
    video, kept, sizes = _decode(path, file.stream, wanted, convert, square_pixels)
    # Packets count too: an edit list hides frames that are there.
    found = max(video.source_frames, file.packets)
    if _is_cut(end, file, found):
        promised = (
            f', the header promises {file.promised}'
            if end.promises and file.promised > found
            else ''
        )
        why = f'; {end.why}' if end.why and end.whole is False else ''
        raise VideoError('truncated', f'{video.source_frames} frames{promised}{why}')
    if video.source_frames == 0:
        raise VideoError(
            'no frames',
            f'{file.packets} packets, none decodable: damaged, or larger than {LARGEST}',
        )
    if video.decode_errors > DAMAGED_FRACTION * found:
        raise VideoError('decode errors', f'{video.decode_errors} in {video.source_frames} frames')
    if video.source_frames < min_frames:
        raise VideoError(
            'too short', f'{video.source_frames} frames, at least {min_frames} are needed'
        )
    frame_index = kept_frames(video.source_frames, max_frames)
    if not set(frame_index.tolist()) <= kept.keys():
        video, kept, sizes = _decode(path, file.stream, frame_index, convert, square_pixels)
    if len(sizes) > 1:
        raise VideoError('frame size changes', ', then '.join(sizes[:2]))
    return dataclasses.replace(
        video, frames=[kept[i] for i in frame_index.tolist()], frame_index=frame_index
    )


def write_video(
    path: str | os.PathLike, frames: np.ndarray, fps: int = 12, codec: str | None = None
) -> None:
    """Encodes uint8 [N, H, W, 3] RGB to a file, 4:2:0, the same bytes every time.

    codec: an FFmpeg encoder; by default that of the suffix (.mp4 and .mkv H.264, .avi MPEG-4, .webm
    VP9).
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
            f'frames to write must be uint8 [N, H, W, 3] with even H and W, got {frames.dtype} '
            f'{frames.shape}'
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


def _check_file(path) -> End:
    """That there is a file that can be read; what it says about its end. A pipe or a device is not
    even opened."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = 'a folder' if stat.S_ISDIR(status.st_mode) else 'a pipe, a socket or a device'
            raise VideoError('not a video', f'{kind}, not a file')
        if not status.st_size:
            raise VideoError('empty file')
        return end_of(path)
    except FileNotFoundError:
        raise VideoError('missing') from None
    except OSError as error:
        raise VideoError('unreadable', error.strerror or str(error)) from None


def _end(path) -> End:
    try:
        return end_of(path)
    except OSError as error:
        raise VideoError('unreadable', error.strerror or str(error)) from None


def _open(path):
    try:
        container = av.open(os.fspath(path), options=OPTIONS, **OPENING)
    except av.error.FFmpegError as error:
        end = _end(path)
        # What FFmpeg says of damage.
        of_the_file = end.kind == 'Matroska' and error.errno == errno.EIO and _can_be_read(path)
        if end.whole is not False and not of_the_file:
            _raise_if_of_the_system(error)
        raise _not_a_video(path, error.errno, error.strerror or '') from None
    if not len(container.streams):
        container.close()
        raise _not_a_video(path, None, 'no streams')
    reason = _no_pictures(path, container)
    if reason:
        container.close()
        raise reason
    return container


def _can_be_read(path):
    """Whether the system gives every byte of a file."""
    try:
        with path.open('rb') as file:
            while file.read(1 << 20):
                pass
    except OSError:
        return False
    return True


def _no_pictures(path, container):
    """The error for a container that opens but has no stream to read, None for the others."""
    moving = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    known = [stream for stream in moving if stream.codec_context]
    if known and any(stream.width * stream.height <= MAX_PIXELS for stream in known):
        return None
    if known:
        return VideoError('too large', f'{known[0].width}x{known[0].height}')
    end = _end(path)
    if end.whole is False:  # cut within its index
        return VideoError('truncated', f'the file starts as {end.kind}, but {end.why}')
    if moving:
        return VideoError('decoder failed', 'there is no decoder for its pictures')
    kinds = sorted(
        {'a cover' if stream.type == 'video' else stream.type for stream in container.streams}
    )
    return VideoError('no video stream', f'only {" and ".join(kinds)}')


def _not_a_video(path, number, words):
    """The error for what cannot be opened. An .mp4 has its index last by default: a cut one only
    starts well."""
    end = _end(path)
    if end.kind and end.whole is False:
        return VideoError('truncated', f'the file starts as {end.kind}, but {end.why}')
    if end.kind:
        return VideoError(
            'not a video', f'the file is {end.kind}, but its header or index is damaged'
        )
    with path.open('rb') as file:
        start = file.read(64).lstrip(b'\xef\xbb\xbf \t\r\n')
    if start.startswith((b'#EXTM3U', b'ffconcat', b'[playlist]', b'v=0', b'<?xml', b'<MPD')):
        return VideoError('not a video', 'a playlist or description, which points to other files')
    # What FFmpeg says of formats that are not in CONTAINERS is no help.
    return VideoError(
        'not a video', 'not a container of videos' if number == errno.EINVAL else words
    )


def _raise_if_of_the_system(error):
    """A disk, a network or memory that fails now says nothing about the file."""
    if error.errno in OF_THE_SYSTEM:
        raise VideoError('unreadable', error.strerror or str(error)) from None


def _packets(container, streams) -> Iterator[av.Packet | None]:
    """The streams' packets, the closing empty ones included; None where the damage is too much to
    go on."""
    packets = container.demux(streams)
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        # PyAV before 19, after the last packet of a .ts that has more streams than it began with
        except IndexError:
            return
        except av.error.FFmpegError as error:
            _raise_if_of_the_system(error)
            yield None
            return


class _Counted(NamedTuple):
    """What is known of a file before it is decoded.

    stream: index of the one that is shown.  promised: frames by the header, 0 where it does not
    say. packets: with a frame that is shown.  covered: share of the promised time, None where the
    header says no time. lost: the index lists pictures beyond the end of the file, or the damage
    was too much to go on. choice: there were several streams.
    """

    stream: int
    promised: int
    packets: int
    covered: float | None
    lost: bool
    choice: bool


def _count(path, end) -> _Counted:
    """Takes the file apart; nothing is decoded."""
    with _open(path) as container:
        streams = [stream for stream in container.streams.video if stream.codec_context]
        counts, last, broken = dict.fromkeys((s.index for s in streams), 0), {}, False
        for packet in _packets(container, streams):
            broken |= packet is None
            if packet is not None and packet.size:
                i = packet.stream_index
                counts[i] += 1
                times = [time for time in (packet.dts, packet.pts) if time is not None]
                last[i] = max([last.get(i, 0), *(time + (packet.duration or 0) for time in times)])
        stream = _shown(streams, counts)
        # Sound and subtitles may outlast the pictures: the file's duration is the last resort.
        seconds = (
            float(stream.duration * stream.time_base)
            if stream.duration
            else _tagged_seconds(stream.metadata) or (container.duration or 0) / av.time_base
        )
        # .webm has no count.
        promised = stream.frames or int(seconds * float(stream.average_rate or 0))
        # In fragments the duration is that of the last picture's end, counted from 0.
        start = (stream.start_time or 0) if end.promises else 0
        covered = (
            float((last.get(stream.index, start) - start) * stream.time_base) / seconds
            if seconds
            else None
        )
        size = path.stat().st_size
        lost = broken or any(entry.pos + entry.size > size for entry in stream.index_entries)
        return _Counted(
            stream.index, promised, counts[stream.index], covered, lost, len(streams) > 1
        )


def _shown(streams, counts):
    """The stream that a player shows: no cover, thumbnail or preview, the one marked as default,
    the largest, the longest.

    counts: {index: packets}. A stream with less than a quarter of another's pictures is a preview.
    The mark of the first stream says nothing: programs that write files give it to whichever comes
    first.
    """
    still = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    most = max(counts.values())
    moving = [
        s for s in streams if not s.disposition & still and 4 * counts[s.index] >= most
    ] or list(streams)
    marked = [s for s in moving if s.disposition & Disposition.default]
    chosen = marked if marked and streams[0] not in marked else moving
    return max(chosen, key=lambda s: (s.width * s.height, counts[s.index], -s.index))


def _is_cut(end, file, found):
    """Whether a file with `found` frames ends too early. The sizes in it count more than its
    header's times."""
    by_frames, by_time = file.promised > 0, file.covered is not None
    # Where the rate varies, headers promise a frame for every place in time: so time counts as
    # well.
    short = (by_frames or by_time) and not (
        by_frames
        and found >= COMPLETE_FRACTION * file.promised
        or by_time
        and file.covered >= COMPLETE_FRACTION
    )
    if end.whole is None:
        return short
    if end.whole:
        return short and file.lost
    # Where the end is missing, the stream that is there may not be the one that was shown.
    return (
        short
        or end.missing > 1 - COMPLETE_FRACTION
        or file.choice
        or not end.promises
        or not (by_frames or by_time)
    )


def _tagged_seconds(metadata):
    """Seconds of a Matroska tag such as DURATION or DURATION-eng: 00:00:02.667000000; 0 when
    absent."""
    for key, value in metadata.items():
        if key.upper().partition('-')[0] == 'DURATION':
            try:
                hours, minutes, seconds = value.split(':')
                return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
            except ValueError:
                pass
    return 0.0


def _decode(path, index, frame_index, convert, square_pixels):
    """(Video without frames, {place: frame}, sizes of the kept frames) for the places in
    `frame_index` that exist."""
    wanted = set(frame_index.tolist())
    kept, sizes, times, errors, duration = {}, [], [], 0, 0
    with _open(path) as container:
        stream = next(stream for stream in container.streams.video if stream.index == index)
        stream.thread_type = 'NONE'  # files are decoded in parallel, one process each
        stream.codec_context.options = DECODER_OPTIONS
        usual = (stream.width, stream.height)
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
            # of PyAV itself: there is a decoder, but it was given nothing to start with
            except ValueError as error:
                raise VideoError('decoder failed', one_line(error)) from None
            for frame in frames:
                errors += frame.is_corrupt
                if frame.width * frame.height > MAX_PIXELS:
                    raise VideoError('too large', f'{frame.width}x{frame.height}')
                if frame.is_corrupt and (frame.width, frame.height) != usual:
                    # FFmpeg from 9 on gives a frame where a damaged header was, of a size that is
                    # nonsense
                    continue
                if len(times) in wanted:
                    rgb = _upright(_as_seen(frame, stream, square_pixels), frame)
                    size = f'{rgb.shape[1]}x{rgb.shape[0]}'
                    sizes += [size] if size not in sizes else []
                    kept[len(times)] = convert(rgb) if convert else rgb
                times.append((frame.pts, frame.dts))
                duration = frame.duration
        # A .gif says how long its last picture stays; elsewhere that is a guess.
        stays = duration if container.format.name == 'gif' else None
        # A raw stream has no clock: FFmpeg makes one up.
        fps = _rate(
            stream, [] if container.format.flags & Flags.no_timestamps.value else times, stays
        )
    return Video([], frame_index, len(times), fps, int(errors), index), kept, sizes


def _as_seen(frame, stream, square_pixels):
    """uint8 [H, W, 3] RGB with square pixels, not yet turned."""
    how = {'interpolation': EXACT} if frame.format.components[0].bits > 8 else {}
    try:
        rgb = frame.to_ndarray(format='rgb24', threads=1, **how)
    # YCgCo, ICtCp and others that swscale does not know, or a damaged tag.
    except av.error.FFmpegError as error:
        _raise_if_of_the_system(error)
        tags = f'{frame.format.name}, matrix {int(frame.colorspace)} of ITU-T H.273'
        raise VideoError(
            'decoder failed', f'its colours cannot be converted to RGB: {tags}'
        ) from None
    aspect = float(stream.sample_aspect_ratio or 1)
    width = int(frame.width * aspect + 0.5)
    if not square_pixels or width == frame.width or not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        return rgb
    return np.asarray(Image.fromarray(rgb).resize((width, frame.height), Image.Resampling.BILINEAR))


def _upright(rgb, frame):
    """Turns and mirrors as the frame's display matrix says: phones store what the sensor saw, and
    how to show it."""
    try:
        matrix = frame.side_data.get('DISPLAYMATRIX')
    # PyAV before 19 does not know all kinds of side data; rotation is then all it tells.
    except ValueError:
        return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))
    if matrix is None:
        return rgb
    # A pixel at (x, y) is shown at (a x + c y, b x + d y), up to a shift.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        right, down = a, d
    else:
        rgb, right, down = rgb.swapaxes(0, 1), c, b
    return np.ascontiguousarray(rgb[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


def _rate(stream, times, last_duration) -> float:
    """Frames per second of frames at `times`, [(pts, dts)]; the header's where they agree with it
    within 1% and a tick of the clock.

    last_duration: of the last frame, where it is known.
    """
    header = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    usual = header[0] if header else 0.0
    shown, decoded = zip(*times) if times else ((), ())
    times = decoded if None in shown else shown  # .avi has the latter only
    # No stamps, or a clock that was set back.
    if None in times or any(b <= a for a, b in zip(times, times[1:])):
        return usual
    tick, count = float(stream.time_base), len(times) - 1 + bool(last_duration)
    span = (times[-1] - times[0] + (last_duration or 0)) * tick if times else 0.0
    if count < 1 or span <= 0:
        return usual
    return next(
        (rate for rate in header if abs(span - count / rate) <= 0.01 * span + 2 * tick),
        count / span,
    )
