"""What lies in a folder that somebody else filled: names as text, and what each thing is, without
waiting for any of them."""

from __future__ import annotations

import os
import unicodedata

from fsar_jax.ingest.video_files import SUFFIXES

# Left by systems and programs beside what people put there; never mentioned.
SYSTEM_NAMES = frozenset(
    (
        '.ds_store',
        '.localized',
        '.directory',
        '.nomedia',
        '.picasa.ini',
        'thumbs.db',
        'ehthumbs.db',
        'desktop.ini',
        'icon\r',
    )
    + (
        '__macosx',
        '@eadir',
        '#recycle',
        'lost+found',
        '$recycle.bin',
        'system volume information',
        '.trashes',
        '.fseventsd',
    )
    + ('.spotlight-v100', '.ipynb_checkpoints', '.git', '.gitkeep', '.gitignore')
)

# Suffixes of what often lies beside videos and is none: not even opened.
OTHER_SUFFIXES = frozenset(
    (
        '.txt',
        '.md',
        '.pdf',
        '.json',
        '.jsonl',
        '.csv',
        '.tsv',
        '.xml',
        '.html',
        '.yaml',
        '.yml',
        '.log',
        '.py',
        '.sh',
        '.mat',
    )
    + (
        '.jpg',
        '.jpeg',
        '.png',
        '.bmp',
        '.webp',
        '.tif',
        '.tiff',
        '.heic',
        '.npy',
        '.npz',
        '.pkl',
        '.pt',
        '.pth',
        '.h5',
        '.hdf5',
    )
    + (
        '.zip',
        '.rar',
        '.7z',
        '.tar',
        '.gz',
        '.tgz',
        '.bz2',
        '.xz',
        '.srt',
        '.vtt',
        '.ass',
        '.mp3',
        '.wav',
        '.flac',
        '.m4a',
    )
)


def is_system(name: str) -> bool:
    """Whether a file or folder is a system's own: .DS_Store, Thumbs.db, desktop.ini, what macOS
    leaves beside files ('._clip.mp4')."""
    return name.startswith('._') or name.lower() in SYSTEM_NAMES


def text(name: str) -> str:
    """A name as it is stored and compared. macOS has e and an accent for é (NFD), others one letter
    (NFC): NFC."""
    return unicodedata.normalize('NFC', name)


def entries(folder: str | os.PathLike) -> list[os.DirEntry]:
    """What is in a folder but for a system's own, in the order of the names.

    Raises:
      OSError: the folder cannot be looked into.
    """
    with os.scandir(folder) as found:
        return sorted(
            (entry for entry in found if not is_system(entry.name)),
            key=lambda entry: (text(entry.name), entry.name),
        )


def is_folder(entry: os.DirEntry) -> bool:
    """Also through a link; not where links go round."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def why_no_video(entry: os.DirEntry) -> str | None:
    """Why something that is no folder is no video either, None where it may be one: reading it
    tells.

    It is taken for one by its suffix, and where that says nothing ('clip.bin', 'clip') by its first
    bytes. A link to nothing may be one too: that it is missing shows later.
    """
    suffix = os.path.splitext(entry.name)[1].lower()
    try:
        if not entry.is_file() and (os.path.exists(entry.path) or not entry.is_symlink()):
            return 'a pipe, a socket or a device'
        if suffix in SUFFIXES:
            return None
        if suffix in OTHER_SUFFIXES or not starts_as_video(entry.path):
            return f"a '{suffix}' file" if suffix else 'not by its first bytes'
    except OSError:
        return None if suffix in SUFFIXES else 'cannot be read'
    return None


def starts_as_video(path: str | os.PathLike) -> bool:
    """Whether the first bytes of a file are those of a container that holds video, whatever its
    name."""
    with open(path, 'rb') as file:
        start = file.read(4096)
    head, brand = start[:4], start[8:12]
    if start[4:8] == b'ftyp':  # MP4 and QuickTime; pictures and sound come in it as well
        return brand[:3] not in (b'hei', b'hev', b'mif', b'msf', b'avi', b'M4A', b'M4B')
    return (
        start[4:8] in (b'moov', b'mdat', b'wide', b'pnot')  # old QuickTime
        or head == b'\x1aE\xdf\xa3'  # Matroska, WebM
        or (head == b'RIFF' and brand == b'AVI ')
        or head
        in (
            b'\0\0\1\xba',
            b'\0\0\1\xb3',
            b'\0\0\1\xb0',
        )  # MPEG program stream, MPEG-1 and -2, MPEG-4
        or start[:5]
        in (b'\0\0\0\1g', b"\0\0\0\1'", b'\0\0\0\1@')  # H.264 and HEVC without a container
        or any(
            len(start) > 376 + at and start[at] == start[at + step] == start[at + 2 * step] == 0x47
            for at, step in ((0, 188), (4, 192))
        )  # MPEG transport stream
        or head
        in (
            b'FLV\1',
            b'GIF8',
            b'.RMF',
            b'DKIF',
            b'YUV4',
            b'\x30\x26\xb2\x75',
            b'\x06\x0e\x2b\x34',
        )  # ASF, MXF
        or (head == b'OggS' and any(codec in start for codec in (b'theora', b'video', b'BBCD')))
    )
