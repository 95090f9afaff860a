"""Reads video files: decodes every frame, converts only those that are kept, and gives a reason for
each file that cannot be used.

Frames are taken in decoder order, never by seeking or by time stamps: the stamps of .avi files are
scrambled, and reading a clip of a few seconds from end to end is faster.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
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

# reason -> what it means. A VideoError has no other reasons.
REASONS = {
    'missing': 'there is no such file',
    'unreadable': 'the file exists, but the system cannot read it; the next call of an unfinished '
    'build tries it again',
    'ended the process': 'the process that read it died twice: out of memory, or the decoder '
    'crashed; tried again as well',
    'empty file': 'the file has 0 bytes',
    'not a video': 'not a container of video: a text file, an archive, a playlist, a folder, a '
    'pipe, or a file with a damaged header',
    'no video stream': 'a container without pictures: audio, subtitles or a cover only',
    'no frames': 'a video stream without a single frame that could be decoded',
    'too large': f'pictures with more pixels than {LARGEST}: the header is wrong, or made to '
    'exhaust the memory',
    'truncated': 'the file ends earlier than the sizes in it say, or its header where it holds no '
    'sizes: it was cut, or the download broke off; 95% of the promised frames or time count as all',
    'decode errors': 'more than 5% of the frames are damaged',
    'frame size changes': 'the kept frames do not all have the same size',
    'too short': 'fewer frames than asked for',
    'decoder failed': 'the codec has no decoder, or the decoder raised an error: the detail says '
    'which',
}
# Of the promised frames, intact files hold 1.00 to 1.01 and cut ones 0.5 to 0.85.
COMPLETE_FRACTION = 0.95
DAMAGED_FRACTION = 0.05
FASTEST_RATE = 240  # pictures per second of a clip
USUAL_RATE = 25.0  # frames per second of a file that does not say
MAX_ASPECT = 10  # of one pixel; a header that says more is wrong
# swscale's SWS_BILINEAR, SWS_FULL_CHR_H_INT and SWS_ACCURATE_RND: without the latter two, 10 bits
# come out up to 3 too dark.
EXACT = 0x2 | 0x2000 | 0x40000
# Errors of the system, which say nothing about the file.
OF_THE_SYSTEM: tuple[int, ...] = (
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOMEM,
    errno.EACCES,
)
OF_THE_SYSTEM += (errno.EMFILE, errno.ENFILE)

PYAV = int(av.__version__.split('.')[0])
# Older ones convert BT.709 with the matrix of BT.601: colours are up to 25 of 255 off.
OLDEST_PYAV = 17

# Titles may have any encoding. PyAV 19 replaces what it cannot decode; older ones must be told to.
OPENING = {'metadata_errors': 'replace'} if PYAV < 19 else {}

# Also for opening a file, because that decodes a picture of some files.
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

    def __reduce__(self):  # else exceptions with two arguments cannot leave a worker process
        return type(self), (self.reason, self.detail)


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
    """What was kept of a file.

    frames: list of uint8 [H, W, 3] RGB as a player shows them, or of what `convert` made of them.
    frame_index: int32 [stored], index of each kept frame among the decoded ones.
    source_frames: number of frames decoded from the file.
    fps: frames per second: the header's value where the time stamps agree with it, else that of the
        time stamps; 0 where the file has neither.
    decode_errors: number of packets that could not be decoded and of frames that the decoder marked
        as damaged.
    source_stream: the stream's index in the file.
    """

    frames: list[Any]
    frame_index: np.ndarray
    source_frames: int
    fps: float
    decode_errors: int
    source_stream: int


def decoder_versions() -> dict[str, str]:
    """Versions of what decodes here: {'av': '19.0.2', 'libavformat': '63.1.102', 'libavcodec': ...,
    'libswscale': ...}."""
    libraries = {name: '.'.join(map(str, av.library_versions[name])) for name in DECODING_LIBRARIES}
    return {'av': av.__version__} | libraries


def decoder_generation() -> str:
    """The major versions that decide the pixels of a video, such as 'av 19, libavformat 63,
    libavcodec 63, libswscale 10'.

    PyAV's major version decides how frames are converted to RGB (17 corrected BT.709, with the same
    FFmpeg as 16). FFmpeg's decide how a file is split into packets, which frames these give, and
    how each is converted. Files decoded by two generations may differ in colours and in the frames
    of a damaged file, so one dataset never mixes them. Minor versions only fix faults, and the same
    version may round a value by 1 on another kind of processor: both count as the same generation.

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
    """Indices of the frames to keep, int32 [min(source_frames, max_frames)]: evenly spaced from the
    first frame to the last. max_frames 0 keeps all."""
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
    keep: Callable[[int], np.ndarray] | None = None,
) -> Video:
    """Decodes a whole file and keeps at most `max_frames` evenly spaced frames (0: all), as a
    player shows them.

    Of several streams with pictures, it takes the one that a player shows (`_shown`). Frames are
    turned and mirrored as the display matrix says. Colours follow the stream's tags: BT.709 or
    BT.601, limited or full range. A stream without tags counts as BT.601 in limited range, whatever
    its size, as in ffmpeg.

    Args:
      path: a file of one of CONTAINERS, with any codec that FFmpeg reads; the suffix does not
        matter.
      min_frames: a clip with fewer frames is 'too short'.
      convert: applied to each kept frame, uint8 [H, W, 3], as soon as it is decoded (resize,
        encode), so that no more than one full-size frame is held at a time.
      square_pixels: stretch the width of frames whose pixels are not square, before they are
        turned: 128x96 with pixels of 4:3 becomes 171x96. False keeps them as coded.
      keep: number of frames of the file → indices of those to keep, int32, ascending; in the place
        of `max_frames`.

    Raises:
      VideoError: with one of REASONS.
      ValueError: PyAV is too old.
    """
    decoder_generation()
    keep = keep or functools.partial(kept_frames, max_frames=max_frames)
    path = pathlib.Path(os.path.abspath(path))  # FFmpeg takes 'data:x.mp4' for an address
    end = _check_file(path)
    file = _count(path, end)
    # Only decoding tells how many frames there are. The number of packets is nearly always the
    # same; where it is not, and other frames should have been kept, the file is decoded again.
    wanted = keep(file.packets)
    video, kept, sizes = _decode(path, file.stream, wanted, convert, square_pixels)
    # Packets count too: an edit list hides frames that the file holds.
    found = max(video.source_frames, file.packets)
    _check_whole(end, file, found, video.source_frames)
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
    frame_index = keep(video.source_frames)
    if not set(frame_index.tolist()) <= kept.keys():
        video, kept, sizes = _decode(path, file.stream, frame_index, convert, square_pixels)
    if len(sizes) > 1:
        raise VideoError('frame size changes', ', then '.join(sizes[:2]))
    return dataclasses.replace(
        video, frames=[kept[i] for i in frame_index.tolist()], frame_index=frame_index
    )


class Recording(NamedTuple):
    """A long video that is read once, from its start to its end, without being held in memory.

    Attributes:
      path: absolute.
      stream: index of the stream that is shown.
      seconds: from the first frame to the end of the last, by the time stamps.
    """

    path: pathlib.Path
    stream: int
    seconds: float


def open_recording(path: str | os.PathLike) -> Recording:
    """Looks through the packets of a video, and decodes nothing. Raises as `read_video`."""
    decoder_generation()
    path = pathlib.Path(os.path.abspath(path))
    end = _check_file(path)
    file = _count(path, end)
    _check_whole(end, file, file.packets, file.packets)
    if not file.packets:
        raise VideoError('no frames', 'not a single packet')
    return Recording(path, file.stream, file.seconds)


def frames_at(
    recording: Recording,
    times: np.ndarray,
    convert: Callable[[np.ndarray], Any],
    square_pixels: bool = True,
) -> Iterator[Any]:
    """What `convert` makes of the frame that a player shows at each time, in order; only these are
    converted. The rate may vary: a frame is shown until the time stamp of the next.

    Args:
      times: ascending, in seconds from the first frame. Beyond the end the last frame counts.
      convert: of uint8 [H, W, 3] RGB, as in `read_video`; called once for a frame that is shown at
        several times.

    Raises:
      VideoError: as of `read_video`, also after some frames.
    """
    tally, done, count = {'errors': 0}, 0, 0
    shown, converted = None, None

    def at(frame):
        return convert(_upright(_as_seen(frame, stream, square_pixels), frame))

    with _open(recording.path) as container:
        stream = next(s for s in container.streams.video if s.index == recording.stream)
        stream.thread_type = 'AUTO'  # a single file has all cores
        tick, clock = float(stream.time_base), _has_clock(container)
        rate, first, now = float(stream.average_rate or 0) or USUAL_RATE, None, 0.0
        for frame in _pictures(container, stream, tally):
            stamp = frame.pts if clock else None
            first = stamp if first is None else first
            # A clock that was set back does not move on.
            now = count / rate if stamp is None else max(now, (stamp - first) * tick)
            while done < len(times) and times[done] < now and shown is not None:
                converted = at(shown) if converted is None else converted
                yield converted
                done += 1
            shown, converted, count = frame, None, count + 1
        if shown is None:
            raise VideoError('no frames', f'none can be decoded: damaged, or larger than {LARGEST}')
        if tally['errors'] > DAMAGED_FRACTION * count:
            raise VideoError('decode errors', f'{tally["errors"]} in {count} frames')
        while done < len(times):
            converted = at(shown) if converted is None else converted
            yield converted
            done += 1


def write_video(
    path: str | os.PathLike, frames: np.ndarray, fps: int = 12, codec: str | None = None
) -> None:
    """Encodes uint8 [N, H, W, 3] RGB to a file, with 4:2:0 chroma, to the same bytes every time.

    codec: an FFmpeg encoder; by default the one for the suffix (.mp4 and .mkv H.264, .avi MPEG-4,
    .webm VP9).
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
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        stream.thread_count = 1  # with threads the bytes depend on the machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        container.mux(stream.encode(None))


def seconds_of(path: str | os.PathLike) -> float:
    """How long the pictures of a file last, for a limit: by their time stamps, or where it has none
    by their usual rate; but at least their number at FASTEST_RATE, which nothing can hide. Decodes
    nothing.

    Raises:
      VideoError: it is no video, or cannot be read.
    """
    path = pathlib.Path(os.path.abspath(path))
    end = _check_file(path)
    counted = _count(path, end)
    return max(counted.seconds, counted.packets / FASTEST_RATE)


def _check_file(path) -> End:
    """What a file says about its end; VideoError unless it exists and can be read. A pipe or a
    device is not even opened."""
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
        # FFmpeg reports damage to these files as an error of the disk.
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
    """The error for a container that opens but has no stream to read, else None."""
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
    """The error for a file that cannot be opened. An .mp4 has its index at the end by default, so a
    cut one may still begin as it should."""
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
    # FFmpeg's message about formats that are not in CONTAINERS does not help.
    return VideoError(
        'not a video', 'not a container of videos' if number == errno.EINVAL else words
    )


def _raise_if_of_the_system(error):
    """A disk, a network or memory that fails now says nothing about the file."""
    if error.errno in OF_THE_SYSTEM:
        raise VideoError('unreadable', error.strerror or str(error)) from None


def _packets(container, streams) -> Iterator[av.Packet | None]:
    """The streams' packets, including the empty ones at the end; None, as the last, where the file
    is too damaged to go on."""
    packets = container.demux(streams)
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        # PyAV before 19, after the last packet of a .ts that has more streams than it began with.
        except IndexError:
            return
        except av.error.FFmpegError as error:
            _raise_if_of_the_system(error)
            yield None
            return


class _Counted(NamedTuple):
    """What is known of a file before it is decoded.

    stream: index of the stream that is shown.
    promised: how many frames the header promises, 0 where it does not say.
    packets: how many packets hold a frame that is shown.
    covered: share of the promised time, None where the header promises none.
    lost: the index lists pictures beyond the end of the file, or the file was too damaged to go on.
    choice: there were several streams.
    seconds: from the first picture that is shown to the end of the last, by the time stamps; by the
        rate where the file has no clock.
    """

    stream: int
    promised: int
    packets: int
    covered: float | None
    lost: bool
    choice: bool
    seconds: float


def _count(path, end) -> _Counted:
    """Splits the file into packets, and decodes nothing."""
    with _open(path) as container:
        streams = [stream for stream in container.streams.video if stream.codec_context]
        counts, broken = dict.fromkeys((s.index for s in streams), 0), False
        last: dict[int, Any] = {}
        spans: dict[int, tuple[int, int]] = {}  # of the packets whose picture is shown
        for packet in _packets(container, streams):
            broken |= packet is None
            if packet is not None and packet.size:
                i = packet.stream_index
                counts[i] += 1
                times = [time for time in (packet.dts, packet.pts) if time is not None]
                last[i] = max([last.get(i, 0), *(time + (packet.duration or 0) for time in times)])
                if packet.pts is not None and not packet.is_discard:
                    start, end_ = spans.get(i, (packet.pts, packet.pts))
                    stop = max(end_, packet.pts + (packet.duration or 0))
                    spans[i] = (min(start, packet.pts), stop)
        stream = _shown(streams, counts)
        # Sound and subtitles may outlast the pictures: the file's duration is the last resort.
        seconds = (
            float(stream.duration * stream.time_base)
            if stream.duration
            else _tagged_seconds(stream.metadata) or (container.duration or 0) / av.time_base
        )
        # A .webm does not say how many frames it has.
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
        packets, rate = counts[stream.index], float(stream.average_rate or 0) or USUAL_RATE
        first, past = spans.get(stream.index, (0, 0))
        span = float((past - first) * stream.time_base) if _has_clock(container) else 0.0
        return _Counted(
            stream.index, promised, packets, covered, lost, len(streams) > 1, span or packets / rate
        )


def _shown(streams, counts):
    """The stream that a player shows: not a cover, thumbnail or preview; of the others, the one
    marked as default, else the largest, else the longest.

    counts: {index: packets}. A stream with less than a quarter of another's pictures is a preview.
    The mark means nothing on the first stream: programs that write files put it there by default.
    """
    still = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    most = max(counts.values())
    moving = [
        s for s in streams if not s.disposition & still and 4 * counts[s.index] >= most
    ] or list(streams)
    marked = [s for s in moving if s.disposition & Disposition.default]
    chosen = marked if marked and streams[0] not in marked else moving
    return max(chosen, key=lambda s: (s.width * s.height, counts[s.index], -s.index))


def _check_whole(end, file, found, decoded):
    """VideoError where a file with `found` frames, of which `decoded` were decoded, is cut."""
    if _is_cut(end, file, found):
        promised = ''
        if end.promises and file.promised > found:
            promised = f', the header promises {file.promised}'
        why = f'; {end.why}' if end.why and end.whole is False else ''
        raise VideoError('truncated', f'{decoded} frames{promised}{why}')


def _is_cut(end, file, found):
    """Whether a file with `found` frames ends too early. The sizes in it are trusted more than the
    times in its header."""
    by_frames, by_time = file.promised > 0, file.covered is not None
    # Where the rate varies, headers promise too many frames: so covering the time is enough.
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
    # Where the end is missing, the stream that is left may not be the one that was shown.
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


def _pictures(container, stream, tally):
    """Decodes a stream: the frames that are shown, in order, without nonsensical ones.

    tally: {'errors': 0}, counts packets that cannot be decoded and frames marked as damaged.
    """
    stream.codec_context.options = DECODER_OPTIONS
    usual = (stream.width, stream.height)
    for packet in _packets(container, stream):
        try:
            if packet is None:
                tally['errors'] += 1
                frames = stream.codec_context.decode(None)
            else:
                frames = packet.decode()
        except av.error.EOFError:
            frames = []
        except av.error.FFmpegError as error:
            _raise_if_of_the_system(error)
            tally['errors'] += 1
            continue
        # PyAV's own: there is a decoder, but the file gave it nothing to start with.
        except ValueError as error:
            raise VideoError('decoder failed', one_line(error)) from None
        for frame in frames:
            tally['errors'] += int(frame.is_corrupt)
            if frame.width * frame.height > MAX_PIXELS:
                raise VideoError('too large', f'{frame.width}x{frame.height}')
            if frame.is_corrupt and (frame.width, frame.height) != usual:
                # From FFmpeg 9 on, a damaged header gives a frame of a nonsensical size.
                continue
            yield frame


def _decode(path, index, frame_index, convert, square_pixels):
    """(Video without frames, {index: frame}, sizes of the kept frames) for those of `frame_index`
    that exist."""
    wanted = set(frame_index.tolist())
    kept, sizes, times, tally, duration = {}, [], [], {'errors': 0}, 0
    with _open(path) as container:
        stream = next(stream for stream in container.streams.video if stream.index == index)
        stream.thread_type = 'NONE'  # files are decoded in parallel, one process each
        for frame in _pictures(container, stream, tally):
            if len(times) in wanted:
                rgb = _upright(_as_seen(frame, stream, square_pixels), frame)
                size = f'{rgb.shape[1]}x{rgb.shape[0]}'
                sizes += [size] if size not in sizes else []
                kept[len(times)] = convert(rgb) if convert else rgb
            times.append((frame.pts, frame.dts))
            duration = frame.duration
        # A .gif says how long its last picture is shown; in other files that is a guess.
        stays = duration if container.format.name == 'gif' else None
        fps = _rate(stream, times if _has_clock(container) else [], stays)
    return Video([], frame_index, len(times), fps, tally['errors'], index), kept, sizes


def _has_clock(container):
    """Whether the time stamps are those of the file. A raw stream has none: FFmpeg makes them
    up."""
    return not container.format.flags & Flags.no_timestamps.value


def _as_seen(frame, stream, square_pixels):
    """uint8 [H, W, 3] RGB with square pixels, not yet turned."""
    how = {'interpolation': EXACT} if frame.format.components[0].bits > 8 else {}
    try:
        rgb = frame.to_ndarray(format='rgb24', threads=1, **how)
    # YCgCo, ICtCp and others that swscale cannot convert, or a damaged tag.
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
    """Turns and mirrors a picture as the frame's display matrix says: phones store what the sensor
    saw, and how to show it."""
    try:
        matrix = frame.side_data.get('DISPLAYMATRIX')
    # PyAV before 19 does not know all kinds of side data, and then tells only the rotation.
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
    """Frames per second of frames at `times`, [(pts, dts)]: the header's rate where they agree with
    it within 1% and a tick of the clock.

    last_duration: how long the last frame is shown, where that is known.
    """
    header = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    usual = header[0] if header else 0.0
    shown, decoded = zip(*times) if times else ((), ())
    times = decoded if None in shown else shown  # .avi has the latter only
    # Time stamps are missing, or the clock was set back.
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
