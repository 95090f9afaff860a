"""Where a video file should end by its own account, read from the sizes inside it.

Whether a file was cut cannot be told by the duration in its header: many programs write a wrong
one, or that of the longest of several tracks. The sizes are what every reader takes the file apart
by: a box, chunk or cluster that goes on beyond the last byte was cut. Nothing is decoded, and only
the headers of the parts are read.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, NamedTuple

MP4_BOXES = {
    *(
        b'ftyp',
        b'styp',
        b'moov',
        b'moof',
        b'mdat',
        b'mfra',
        b'sidx',
        b'ssix',
        b'emsg',
        b'prft',
        b'free',
        b'skip',
    ),
    *(b'wide', b'uuid', b'meta', b'udta', b'pnot', b'PICT', b'pdin', b'bloc', b'imda', b'junk'),
}
EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
MATROSKA_PARTS = {
    *(
        0x114D9B74,
        0x1549A966,
        0x1654AE6B,
        0x1C53BB6B,
        0x1941A469,
        0x1043A770,
        0x1254C367,
        CLUSTER,
        0xEC,
        0xBF,
    ),
    *(0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854),  # of a cluster
}
MATROSKA_CLOSING = {0x1C53BB6B, 0x1254C367}  # the index and tags, which are written last
ASF_HEADER = bytes.fromhex('3026b2758e66cf11a6d900aa0062ce6c')
ASF_DATA = bytes.fromhex('3626b2758e66cf11a6d900aa0062ce6c')
# that are looked at: a live recording of an hour has half as many, a file made to hang more
MOST_PARTS = 1_000_000


class End(NamedTuple):
    """What a container says about its end.

    kind: of container, '' for one that is not known here.
    whole: True: closed as it says; False: cut; None: it does not say.
    promises: its header says how much there should be; else what is reported as its duration is
    measured on what is there. why: what is missing, in words.
    missing: share of the bytes, where it is known.
    """

    kind: str
    whole: bool | None
    promises: bool = True
    why: str = ''
    missing: float = 0.0


def end_of(path: str | os.PathLike) -> End:
    """What the container says about its end; OSError where the file cannot be read."""
    with open(path, 'rb') as file:
        try:
            return _end(_Parts(file), os.fstat(file.fileno()).st_size)
        except _TooManyParts:
            return End('', None)


class _TooManyParts(Exception):
    pass


class _Parts:
    """A file that is looked at here and there, MOST_PARTS times at most."""

    def __init__(self, file: BinaryIO):
        self.file, self.left = file, MOST_PARTS

    def at(self, place: int, length: int) -> bytes:
        """At most `length` bytes from `place` on."""
        self.left -= 1
        if self.left < 0:
            raise _TooManyParts
        self.file.seek(place)
        return self.file.read(length)


def _end(file, size):
    start = file.at(0, 1024)
    if start[4:8] in MP4_BOXES:
        return _mp4(file, size)
    if start[:4] == EBML.to_bytes(4):
        return _matroska(file, size)
    if start[:4] == b'RIFF' and start[8:11] in (b'AVI', b'AMV'):
        return _avi(file, size)
    if start[:3] == b'FLV':
        return _flv(file, size, start)
    if start[:16] == ASF_HEADER:
        return _asf(file, size)
    if start[:4] == b'OggS':
        return _ogg(file, size)
    if start[:3] == b'GIF':
        return _gif(file, size, start)
    if start[:4] == b'\0\0\1\xba':
        return _program_stream(file, size)
    if start[:3] == b'\x1f\7\0' and len(start) > 3:
        part = size % (144000 if start[3] & 0x80 else 120000)  # a frame of PAL, of NTSC
        return End('DV', False, False, 'its last frame is cut') if part else End('DV', None, False)
    return _transport_stream(file, size, start) or End('', None)


def _mp4(file, size):
    """MP4, MOV, 3GP: boxes, of which moov is the index and mdat holds the pictures; or a moof
    before each mdat."""
    place, kinds, open_end, strange = 0, set(), False, False
    while place + 8 <= size:
        header = file.at(place, 16)
        length, kind = int.from_bytes(header[:4]), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:])
        if kind not in MP4_BOXES:
            if not kind.isalnum() or not 8 <= length <= size - place:
                break  # padding, or what another program left there
            strange = True  # of another program, or one of the above with a damaged name
        if length == 0:  # to the end of the file
            length, open_end = size - place, True
        if length < 8:
            break
        kinds.add(kind)
        if kind == b'moov' and _holds(file, place + 8, min(place + length, size), b'mvex'):
            kinds.add(b'moof')
        place += length
        if place > size:
            return End(
                'MP4',
                False,
                b'moof' not in kinds and kind != b'moov',
                f"its part '{kind.decode()}' goes on beyond its end",
            )
    if b'moov' not in kinds:
        if strange or any(file.at(place, 4096)):
            return End('MP4', None)  # damaged
        return End('MP4', False, True, 'its index is missing')
    if b'moof' in kinds:
        if 0 < size - place < 8 and any(file.at(place, 8)):
            return End('MP4', False, False, 'its last part is cut')
        return End('MP4', True if b'mfra' in kinds and not open_end else None, False)
    if b'mdat' not in kinds:
        return End('MP4', False, True, 'nothing follows its index')
    return End('MP4', None if open_end else True)


def _holds(file, place, end, wanted):
    """Whether there is a box of a kind among those from `place` to `end`."""
    while place + 8 <= end:
        header = file.at(place, 8)
        if header[4:] == wanted:
            return True
        place += max(8, int.from_bytes(header[:4]))
    return False


def _matroska(file, size):
    """Matroska, WebM: nested elements, each with its size; that of a live recording is not
    known."""
    place, known, clusters, closed, end = 0, False, 0, False, size
    while place < size:
        header = file.at(place, 12)
        number, after_id = _variable(header, 0, True)
        length, body = _variable(header, after_id, False)
        if number is None or length is None:
            if place + 12 > size:
                return End(
                    'Matroska', False, True, 'its last element is cut', 1 - size / max(end, size)
                )
            return End('Matroska', None)  # damaged
        unknown = length == (1 << 7 * (body - after_id)) - 1
        place += body
        if number == SEGMENT:
            known, end = not unknown, size if unknown else place + length
            continue
        closed = clusters > 0 and (closed or number in MATROSKA_CLOSING)
        if number == CLUSTER:
            clusters += 1
            if unknown:
                continue
        elif number != EBML and number not in MATROSKA_PARTS or unknown:
            return End('Matroska', None)  # damaged, or of a kind that is not known here
        place += length
        if place >= min(end, size):
            break
    if not clusters:
        return End('Matroska', False, True, 'nothing follows its header')
    if place > size or end > size and not closed:
        return End(
            'Matroska',
            False,
            True,
            f'{max(place, end) - size} bytes of it are missing',
            1 - size / max(place, end),
        )
    return End('Matroska', True if known and end <= size else None)


def _variable(data, place, keep_marker):
    """(number, place after it) of EBML's numbers of variable length; (None, place) where it is none
    or cut."""
    if place >= len(data) or not data[place]:
        return None, place
    length = 9 - data[place].bit_length()
    if place + length > len(data):
        return None, place
    value = int.from_bytes(data[place : place + length])
    return value if keep_marker else value & ((1 << 7 * length) - 1), place + length


def _avi(file, size):
    """AVI: chunks; the pictures in LIST movi, their index after it. Files beyond 1 GB have several
    RIFF chunks."""
    place, end, kinds = 0, 0, set()
    while place + 8 <= size:
        header = file.at(place, 12)
        kind, length = header[:4], int.from_bytes(header[4:8], 'little')
        if kind == b'RIFF':
            end = place + 8 + length
            place += 12
            continue
        if kind not in (
            b'LIST',
            b'JUNK',
            b'idx1',
            b'ix00',
            b'ix01',
            b'indx',
            b'JUNQ',
            b'_PMX',
            b'ISFT',
        ):
            break
        kinds.add(header[8:12] if kind == b'LIST' else kind)
        # Never filled in: the recording was not ended.
        if kind == b'LIST' and length in (0, 0xFFFFFFFF):
            return End('AVI', None)
        place += 8 + length + length % 2
        if place > size + 1:
            missing = (place - size) / length if header[8:12] == b'movi' else 0.0
            return End('AVI', False, True, 'its last part is cut', missing)
    if b'movi' not in kinds:
        return End('AVI', False if end > size else None, True, 'nothing follows its header')
    if b'idx1' in kinds or end <= place <= end + 1:
        return End('AVI', True)
    return End('AVI', False if end > size + 1 else None, True, 'its index is missing')


def _flv(file, size, start):
    """FLV: tags, each followed by its size; the size of the file may be in its header."""
    there = start.find(b'\0\x08filesize\0')
    if there >= 0:
        promised = _double(start[there + 11 : there + 19])
        if 0 < promised <= size:
            return End('FLV', True, False)
        if promised > size:
            return End('FLV', False, False, f'{promised - size:.0f} bytes of it are missing')
    last = int.from_bytes(file.at(size - 4, 4))
    tag = size - 4 - last
    closed = (
        not last or last >= 11 and tag >= 13 and int.from_bytes(file.at(tag + 1, 3)) == last - 11
    )
    return End('FLV', None, False) if closed else End('FLV', False, False, 'its last part is cut')


def _asf(file, size):
    """ASF, WMV: objects, the second of which holds the pictures."""
    place = 0
    while place + 24 <= size:
        header = file.at(place, 24)
        length = int.from_bytes(header[16:], 'little')
        if header[:16] == ASF_DATA and length in (0, 50):  # a live recording
            return End('ASF', None)
        if length < 24:
            return End('ASF', None)
        place += length
        if place > size:
            return End(
                'ASF', False, True, f'{place - size} bytes of it are missing', 1 - size / place
            )
        if header[:16] == ASF_DATA:
            return End('ASF', True)
    return End('ASF', False, True, 'nothing follows its header')


def _ogg(file, size):
    """Ogg: pages, each with the sizes of what it holds; the last one is marked."""
    start = max(0, size - 65536)  # a page has 65307 bytes at most
    tail = file.at(start, size - start)
    place = tail.rfind(b'OggS')
    if place < 0 or len(tail) < place + 27:
        return End('Ogg', False, False, 'its last page is cut')
    sizes = tail[place + 27 : place + 27 + tail[place + 26]]
    if len(sizes) < tail[place + 26] or place + 27 + len(sizes) + sum(sizes) > len(tail):
        return End('Ogg', False, False, 'its last page is cut')
    return End('Ogg', True if tail[place + 5] & 4 else None, False)


def _gif(file, size, start):
    """GIF: blocks of at most 255 bytes, then a mark."""
    place = 13 + (3 << (start[10] & 7) + 1 if len(start) > 10 and start[10] & 0x80 else 0)
    while header := file.at(place, 10):
        if header[:1] == b';':
            return End('GIF', True, False)
        if header[:1] == b',':
            place += 11 + (3 << (header[9] & 7) + 1 if len(header) > 9 and header[9] & 0x80 else 0)
        elif header[:1] == b'!':
            place += 2
        else:
            return End('GIF', None, False)  # damaged
        while (block := file.at(place, 1)) and block[0]:
            place += 1 + block[0]
        place += 1
    return End('GIF', False, False, 'its end mark is missing')


def _program_stream(file, size):
    """MPEG-1 and MPEG-2 (.mpg, .vob): packets with their sizes; walked from the last packs on."""
    start = max(0, size - (1 << 18))
    tail = file.at(start, size - start)
    place = tail.find(b'\0\0\1\xba')
    if place < 0:
        return End('MPEG', None, False)
    while place + 4 <= len(tail):
        code = tail[place + 3]
        if tail[place : place + 3] != b'\0\0\1' or code < 0xB9:
            return End('MPEG', None, False)  # padding, or a start code that was none
        if code == 0xB9:
            return End('MPEG', True, False)
        if place + 14 > len(tail) and code == 0xBA or place + 6 > len(tail):
            break
        if code == 0xBA:
            place += 14 + (tail[place + 13] & 7) if tail[place + 4] >> 6 == 1 else 12
        else:
            place += 6 + int.from_bytes(tail[place + 4 : place + 6])
    return (
        End('MPEG', None, False)
        if place == len(tail)
        else End('MPEG', False, False, 'its last packet is cut')
    )


def _transport_stream(file, size, start):
    """MPEG-TS (.ts, .mts, .m2ts): packets of one size, each with a mark. None for what is not
    one."""
    for length in (188, 192, 204):
        mark = 4 if length == 192 else 0  # after a time stamp
        for first in range(length):
            marks = start[first + mark :: length]
            if len(marks) > 3 and not marks.strip(b'G'):
                rest = file.at(size - (size - first) % length, length)
                # Else something else was appended.
                cut = rest and rest[mark : mark + 1] in (b'G', b'')
                return (
                    End('MPEG-TS', False, False, 'its last packet is cut')
                    if cut
                    else End('MPEG-TS', None, False)
                )
    return None


def _double(data):
    return struct.unpack('>d', data)[0] if len(data) == 8 else 0.0
