"""What lies in a folder that somebody else filled: names as text, and what each thing is, without
waiting for any of them."""

from __future__ import annotations

import os
import unicodedata

from fsar_jax.ingest.video_formats import OTHER_SUFFIXES, SUFFIXES, starts_as_video

# What systems and programs leave beside people's files; never mentioned.
SYSTEM_NAMES = frozenset(
    """
    .ds_store .localized .directory .nomedia .picasa.ini thumbs.db ehthumbs.db desktop.ini
    __macosx @eadir #recycle lost+found $recycle.bin .trashes .fseventsd .spotlight-v100
    .ipynb_checkpoints .git .gitkeep .gitignore
    """.split()
) | {'icon\r', 'system volume information'}


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
