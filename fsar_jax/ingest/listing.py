"""Lists folders that somebody else filled: names as text, and what each entry is. Never waits for a
pipe or a device."""

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
    """Whether a system left the file or folder: .DS_Store, Thumbs.db, desktop.ini, or what macOS
    puts beside files ('._clip.mp4')."""
    return name.startswith('._') or name.lower() in SYSTEM_NAMES


def text(name: str) -> str:
    """A name as we store and compare it, in NFC: macOS writes é as e and an accent (NFD), other
    systems as one letter."""
    return unicodedata.normalize('NFC', name)


def entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """The entries of a folder in the order of their names, without what systems left there.

    Raises:
      OSError: the folder cannot be listed.
    """
    with os.scandir(folder) as found:
        return sorted(
            (entry for entry in found if not is_system(entry.name)),
            key=lambda entry: (text(entry.name), entry.name),
        )


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link to one. Links in a ring are not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def why_no_video(entry: os.DirEntry) -> str | None:
    """Why an entry that is not a folder is not a video; None where it may be one, which reading it
    tells.

    The suffix decides, and where that says nothing ('clip.bin', 'clip') the first bytes. A link to
    nothing may be a video too: reading it finds that it is missing.
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
