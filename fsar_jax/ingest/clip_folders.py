"""Lists a folder of examples, <class>/<clip>, and the clips that somebody wants recognised."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

from fsar_jax.ingest.frame_files import is_frame
from fsar_jax.ingest.listing import entries, is_folder, text, why_no_video
from fsar_jax.messages import listed, one_line, printable

SPLITS = {'train', 'val', 'test'}


def list_examples(
    folder: str | os.PathLike,
) -> tuple[dict[str, list[str]], list[tuple[str, str, str]]]:
    """The clips of every class in a folder <class>/<clip>, where a clip is a video or a folder of
    JPEG frames.

    Returns:
      ({class: paths}, [(class, name, reason)] of what is no clip). Classes and clips are in the
      order of their names.

    Raises:
      ValueError, OSError: one line: it is not such a folder, or two class folders differ only in
        case.
    """
    shown = printable(folder, 1000)
    if not os.path.isdir(folder):
        what = 'is a file' if os.path.exists(folder) else 'does not exist'
        raise ValueError(f'{shown} {what}: give a folder that holds <class>/<clip>')
    found = [entry for entry in entries(folder) if not entry.name.startswith('.')]
    class_folders = [entry for entry in found if is_folder(entry)]
    if not class_folders:
        here = f'{len(found)} files and no class folder' if found else 'nothing'
        raise ValueError(
            f'{shown} holds {here}: put the examples of each class into a folder of its name, '
            f'{shown}/<class>/<clip>'
        )
    if {entry.name.lower() for entry in class_folders} <= SPLITS:
        raise ValueError(
            f'{shown} holds the splits {listed(entry.name for entry in class_folders)}: give one '
            f'of them, such as {printable(class_folders[0].path, 1000)}'
        )
    classes: dict[str, list[str]] = {}
    left_out: list[tuple[str, str, str]] = []
    first: dict[str, str] = {}
    for entry in class_folders:
        name = text(entry.name)
        other = first.setdefault(name.strip().casefold(), name)
        if other != name:
            raise ValueError(
                f"class folders '{printable(other)}' and '{printable(name)}' in {shown} differ "
                'only in case: put their clips into one, or give one of them another name'
            )
        paths = classes.setdefault(name, [])
        for path, reason in _clips_in(entry.path):
            if reason:
                left_out.append((name, os.path.basename(path), reason))
            else:
                paths.append(path)
    return classes, left_out


def list_clips(given: Iterable[str | os.PathLike]) -> tuple[list[str], list[tuple[str, str]]]:
    """The clips that the paths name: files as they are, frame folders, and the clips in other
    folders and the folders below them.

    Returns:
      (paths, [(path, reason)] of files in folders that are no video).

    Raises:
      ValueError: one line: a path does not exist, a folder holds no clip, or nothing is given.
    """
    clips: list[str] = []
    left_out: list[tuple[str, str]] = []
    for path in [os.fspath(path) for path in given]:
        if not os.path.lexists(path):
            raise ValueError(f'{printable(path, 1000)}: there is no such file or folder')
        if not os.path.isdir(path) or _holds_frames(path):
            clips.append(path)
            continue
        found, others = _clips_below(path)
        if not found:
            why = (
                listed((f'{os.path.basename(name)}: {why}' for name, why in others), 3)
                or 'it is empty'
            )
            raise ValueError(f'{printable(path, 1000)} holds no clip ({why}): give videos')
        clips += found
        left_out += others
    if not clips:
        raise ValueError('no clip given: name files or a folder')
    return clips, left_out


def _clips_below(folder, above=frozenset()):
    """(paths, [(path, reason)]) of a folder and the folders below it, linked ones too.

    above: real paths of the folders that it lies in, to which a link would lead in a circle.
    """
    clips, left_out = [], []
    above = above | {os.path.realpath(folder)}
    for path, reason in _clips_in(folder):
        if reason is None:
            clips.append(path)
        elif path == os.fspath(folder):  # which cannot be listed
            left_out.append((path, reason))
        elif os.path.isdir(path) and os.path.realpath(path) in above:
            left_out.append((path, 'a link to a folder that it lies in'))
        elif os.path.isdir(path):
            found, others = _clips_below(path, above)
            clips += found
            left_out += others
        else:
            left_out.append((path, reason))
    return clips, left_out


def _clips_in(folder):
    """[(path, None, or why it is no clip)] of what lies in a folder, without hidden entries."""
    try:
        found = entries(folder)
    except OSError as error:
        return [(os.fspath(folder), f'cannot be listed ({one_line(error)})')]
    clips = []
    for entry in found:
        if entry.name.startswith('.'):
            continue
        if is_folder(entry):
            reason = None if _holds_frames(entry.path) else 'a folder without .jpg frames'
        elif is_frame(entry.name):
            reason = 'a picture: the frames of a clip belong in a folder of their own'
        else:
            reason = why_no_video(entry)
        clips.append((entry.path, reason))
    return clips


def _holds_frames(folder: str | os.PathLike) -> bool:
    """Whether a folder is a clip of JPEG frames: it holds some, and no video."""
    try:
        found = entries(folder)
    except OSError:
        return False
    return any(is_frame(entry.name) for entry in found) and not any(
        is_folder(entry) or why_no_video(entry) is None for entry in found
    )


def clip_name(path: str | os.PathLike) -> str:
    """The last part of a path, for a table."""
    return printable(pathlib.PurePath(path).name)
