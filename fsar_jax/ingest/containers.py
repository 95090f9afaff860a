"""Tells whether a video file was cut, from the sizes inside it.

The duration in the header does not tell it: many programs write a wrong one, or that of the longest
of several tracks. The sizes are what every reader splits the file by: a box, chunk or cluster that
goes on beyond the last byte was cut. Nothing is decoded, and only the headers of the parts are
read.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, NamedTuple

MP4_BOXES = frozenset(
    b"""
    ftyp styp moov moof mdat mfra sidx ssix emsg prft free skip
    wide uuid meta udta pnot PICT pdin bloc imda junk
    """.split()
)
EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
MATROSKA_PARTS = {
    int(number, 16)
    for number in """
    114D9B74 1549A966 1654AE6B 1C53BB6B 1941A469 1043A770 1254C367 1F43B675 EC BF
    E7 A3 A0 AB A7 5854
    """.split()  # the second line is parts of a cluster
}
MATROSKA_CLOSING = {0x1C53BB6B, 0x1254C367}  # the index and tags, which are written last
AVI_CHUNKS = frozenset(b'LIST JUNK idx1 ix00 ix01 indx JUNQ _PMX ISFT'.split())
ASF_HEADER = bytes.fromhex('3026b2758e66cf11a6d900aa0062ce6c')
ASF_DATA = bytes.fromhex('3626b2758e66cf11a6d900aa0062ce6c')
# Reads per file. A live recording of an hour needs half as many, a file made to hang us more.
MOST_PARTS = 1_000_000


class End(NamedTuple):
    """What a container says about its end.

    kind: of container; '' for one that is not known here.
    whole: True: the file ends where it should; False: it was cut; None: the container does not say.
    promises: the header says how much there should be; otherwise the reported duration is only that
        of what the file holds.
    why: what is missing, in words.
    missing: which share of the bytes is missing, where that is known.
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
    """A file that is read at single places, MOST_PARTS times at most."""

    def __init__(self, file: BinaryIO):
        self.file, self.left = file, MOST_PARTS

    def at(self, offset: int, length: int) -> bytes:
        """At most `length` bytes, from `offset` on."""
        self.left -= 1
        if self.left < 0:
            raise _TooManyParts
        self.file.seek(offset)
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
    offset, kinds, open_end, strange = 0, set(), False, False
    while offset + 8 <= size:
        header = file.at(offset, 16)
        length, kind = int.from_bytes(header[:4]), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:])
        if kind not in MP4_BOXES:
            if not kind.isalnum() or not 8 <= length <= size - offset:
                break  # padding, or what another program left there
            strange = True  # of another program, or one of the above with a damaged name
        if length == 0:  # to the end of the file
            length, open_end = size - offset, True
        if length < 8:
            break
        kinds.add(kind)
        if kind == b'moov' and _holds(file, offset + 8, min(offset + length, size), b'mvex'):
            kinds.add(b'moof')
        offset += length
        if offset > size:
            return End(
                'MP4',
                False,
                b'moof' not in kinds and kind != b'moov',
                f"its part '{kind.decode()}' goes on beyond its end",
            )
    if b'moov' not in kinds:
        if strange or any(file.at(offset, 4096)):
            return End('MP4', None)  # damaged
        return End('MP4', False, True, 'its index is missing')
    if b'moof' in kinds:
        if 0 < size - offset < 8 and any(file.at(offset, 8)):
            return End('MP4', False, False, 'its last part is cut')
        return End('MP4', True if b'mfra' in kinds and not open_end else None, False)
    if b'mdat' not in kinds:
        return End('MP4', False, True, 'nothing follows its index')
    return End('MP4', None if open_end else True)


def _holds(file, offset, end, wanted):
    """Whether there is a box of a kind among those from `offset` to `end`."""
    while offset + 8 <= end:
        header = file.at(offset, 8)
        if header[4:] == wanted:
            return True
        offset += max(8, int.from_bytes(header[:4]))
    return False


def _matroska(file, size):
    """Matroska, WebM: nested elements, each with its size, which a live recording does not know."""
    offset, known, clusters, closed, end = 0, False, 0, False, size
    while offset < size:
        header = file.at(offset, 12)
        number, after_id = _variable(header, 0, True)
        length, body = _variable(header, after_id, False)
        if number is None or length is None:
            if offset + 12 > size:
                return End(
                    'Matroska', False, True, 'its last element is cut', 1 - size / max(end, size)
                )
            return End('Matroska', None)  # damaged
        unknown = length == (1 << 7 * (body - after_id)) - 1
        offset += body
        if number == SEGMENT:
            known, end = not unknown, size if unknown else offset + length
            continue
        closed = clusters > 0 and (closed or number in MATROSKA_CLOSING)
        if number == CLUSTER:
            clusters += 1
            if unknown:
                continue
        elif number != EBML and number not in MATROSKA_PARTS or unknown:
            return End('Matroska', None)  # damaged, or of a kind that is not known here
        offset += length
        if offset >= min(end, size):
            break
    if not clusters:
        return End('Matroska', False, True, 'nothing follows its header')
    if offset > size or end > size and not closed:
        return End(
            'Matroska',
            False,
            True,
            f'{max(offset, end) - size} bytes of it are missing',
            1 - size / max(offset, end),
        )
    return End('Matroska', True if known and end <= size else None)


def _variable(data, offset, keep_marker):
    """(number, offset after it) of EBML's numbers of variable length; (None, offset) where there is
    none, or only a part."""
    if offset >= len(data) or not data[offset]:
        return None, offset
    length = 9 - data[offset].bit_length()
    if offset + length > len(data):
        return None, offset
    value = int.from_bytes(data[offset : offset + length])
    return value if keep_marker else value & ((1 << 7 * length) - 1), offset + length


def _avi(file, size):
    """AVI: chunks; the pictures in LIST movi, their index after it. Files beyond 1 GB have several
    RIFF chunks."""
    offset, end, kinds = 0, 0, set()
    while offset + 8 <= size:
        header = file.at(offset, 12)
        kind, length = header[:4], int.from_bytes(header[4:8], 'little')
        if kind == b'RIFF':
            end = offset + 8 + length
            offset += 12
            continue
        if kind not in AVI_CHUNKS:
            break
        kinds.add(header[8:12] if kind == b'LIST' else kind)
        # The size was never filled in: the recording did not end properly.
        if kind == b'LIST' and length in (0, 0xFFFFFFFF):
            return End('AVI', None)
        offset += 8 + length + length % 2
        if offset > size + 1:
            missing = (offset - size) / length if header[8:12] == b'movi' else 0.0
            return End('AVI', False, True, 'its last part is cut', missing)
    if b'movi' not in kinds:
        return End('AVI', False if end > size else None, True, 'nothing follows its header')
    if b'idx1' in kinds or end <= offset <= end + 1:
        return End('AVI', True)
    return End('AVI', False if end > size + 1 else None, True, 'its index is missing')


def _flv(file, size, start):
    """FLV: tags, each followed by its size; the size of the file may be in its header."""
    key = start.find(b'\0\x08filesize\0')
    if key >= 0:
        promised = _double(start[key + 11 : key + 19])
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
    offset = 0
    while offset + 24 <= size:
        header = file.at(offset, 24)
        length = int.from_bytes(header[16:], 'little')
        if header[:16] == ASF_DATA and length in (0, 50):  # a live recording
            return End('ASF', None)
        if length < 24:
            return End('ASF', None)
        offset += length
        if offset > size:
            return End(
                'ASF', False, True, f'{offset - size} bytes of it are missing', 1 - size / offset
            )
        if header[:16] == ASF_DATA:
            return End('ASF', True)
    return End('ASF', False, True, 'nothing follows its header')


def _ogg(file, size):
    """Ogg: pages, each with the sizes of what it holds; the last one is marked."""
    start = max(0, size - 65536)  # a page has 65307 bytes at most
    tail = file.at(start, size - start)
    offset = tail.rfind(b'OggS')
    if offset < 0 or len(tail) < offset + 27:
        return End('Ogg', False, False, 'its last page is cut')
    sizes = tail[offset + 27 : offset + 27 + tail[offset + 26]]
    if len(sizes) < tail[offset + 26] or offset + 27 + len(sizes) + sum(sizes) > len(tail):
        return End('Ogg', False, False, 'its last page is cut')
    return End('Ogg', True if tail[offset + 5] & 4 else None, False)


def _gif(file, size, start):
    """GIF: blocks of at most 255 bytes, then a mark."""
    offset = 13 + (3 << (start[10] & 7) + 1 if len(start) > 10 and start[10] & 0x80 else 0)
    while header := file.at(offset, 10):
        if header[:1] == b';':
            return End('GIF', True, False)
        if header[:1] == b',':
            offset += 11 + (3 << (header[9] & 7) + 1 if len(header) > 9 and header[9] & 0x80 else 0)
        elif header[:1] == b'!':
            offset += 2
        else:
            return End('GIF', None, False)  # damaged
        while (block := file.at(offset, 1)) and block[0]:
            offset += 1 + block[0]
        offset += 1
    return End('GIF', False, False, 'its end mark is missing')


def _program_stream(file, size):
    """MPEG-1 and MPEG-2 (.mpg, .vob): packets with their sizes; only the last ones are read."""
    start = max(0, size - (1 << 18))
    tail = file.at(start, size - start)
    offset = tail.find(b'\0\0\1\xba')
    if offset < 0:
        return End('MPEG', None, False)
    while offset + 4 <= len(tail):
        code = tail[offset + 3]
        if tail[offset : offset + 3] != b'\0\0\1' or code < 0xB9:
            return End('MPEG', None, False)  # padding, or a start code that was none
        if code == 0xB9:
            return End('MPEG', True, False)
        if offset + 14 > len(tail) and code == 0xBA or offset + 6 > len(tail):
            break
        if code == 0xBA:
            offset += 14 + (tail[offset + 13] & 7) if tail[offset + 4] >> 6 == 1 else 12
        else:
            offset += 6 + int.from_bytes(tail[offset + 4 : offset + 6])
    return (
        End('MPEG', None, False)
        if offset == len(tail)
        else End('MPEG', False, False, 'its last packet is cut')
    )


def _transport_stream(file, size, start):
    """MPEG-TS (.ts, .mts, .m2ts): packets of one size, each with a mark. None for other files."""
    for length in (188, 192, 204):
        mark = 4 if length == 192 else 0  # after a time stamp
        for first in range(length):
            marks = start[first + mark :: length]
            if len(marks) > 3 and not marks.strip(b'G'):
                rest = file.at(size - (size - first) % length, length)
                # Without a mark it is not a cut packet: something else was appended.
                cut = rest and rest[mark : mark + 1] in (b'G', b'')
                return (
                    End('MPEG-TS', False, False, 'its last packet is cut')
                    if cut
                    else End('MPEG-TS', None, False)
                )
    return None


def _double(data):
    return struct.unpack('>d', data)[0] if len(data) == 8 else 0.0
