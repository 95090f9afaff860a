"""Finds the videos of a benchmark, in the layout that its authors hand out and in those that people
have made of it."""

from __future__ import annotations

import collections
import functools
import os
import pathlib
from typing import Any

from fsar_jax.ingest.frame_files import FrameFolder, is_frame, zipped_videos
from fsar_jax.ingest.listing import entries, is_folder, text, why_no_video
from fsar_jax.ingest.video_formats import SUFFIXES
from fsar_jax.messages import printable


def normal(name: str) -> str:
    """A class name with nothing but its letters and digits: the same for 'air_drumming', 'Air
    drumming' and 'AirDrumming'."""
    return ''.join(filter(str.isalnum, text(name).casefold()))


class SourceFiles:
    """The videos below a folder, or in a .zip of frames.

    A video is a file with the suffix or the first bytes of a video, a folder with nothing but JPEG
    files, or such a folder in a .zip. The folder that it is in may be its class; the folders above
    do not matter. Names are compared in NFC.

    unreadable: [(folder, name, the system's message)] of what could not be read; the rest counts.
    no_videos: [(class folder, name, why)] of the other files in the folders of classes.
    """

    def __init__(self, root: pathlib.Path, class_names: list[str]):
        self._classes = {normal(name) for name in class_names}
        # stem -> [(folder, name, origin)], sorted
        self._by_stem: dict[str, list[tuple[str, str, Any]]] = collections.defaultdict(list)
        self._used: set = set()
        self._walked: set = set()
        self.unreadable: list[tuple[str, str, str]] = []
        self.no_videos: list[tuple[str, str, str]] = []
        found = _zip(root) if root.is_file() else self._walk(root, 0)
        for folder, stem, name, origin in found:
            self._by_stem[text(stem)].append((text(folder), text(name), origin))

    @property
    def unused(self) -> int:
        """How many videos were never asked for."""
        return len(self._by_stem.keys() - self._used)

    def find(self, class_name: str, stems: tuple[str, ...]) -> tuple[object, str, list[str]]:
        """(origin or None, file name, further files of the same name) of the first of `stems` that
        exists."""
        for stem in map(text, stems):
            files = self._by_stem.get(stem)
            if files:
                self._used.add(stem)
                wanted = normal(class_name)
                in_class = [file for file in files if normal(file[0]) == wanted]
                # A file in the folder of another class belongs to that class. In flat layouts, no
                # file is in the folder of a class.
                neutral = [file for file in files if normal(file[0]) not in self._classes]
                # Kinetics comes with a folder of intact files that replace broken ones.
                chosen = sorted(
                    in_class + neutral or files,
                    key=lambda file: not normal(file[0]).startswith('replacement'),
                )
                return chosen[0][2], chosen[0][1], [name for _, name, _ in chosen[1:]]
        return None, '', []

    def of_class(
        self, class_name: str
    ) -> tuple[list[tuple[str, object, str]], list[tuple[str, str]]]:
        """([(stem, origin, file name)] in the order of bytes, [(file name, 'as ' and the file whose
        id it shares)])."""
        videos = self._by_class.get(normal(class_name), {})
        self._used.update(videos)
        order = sorted(videos, key=lambda stem: stem.encode('utf-8', 'surrogateescape'))
        twice = [
            (name, f'as {videos[stem][0][0]}') for stem in order for name, _ in videos[stem][1:]
        ]
        return [(stem, videos[stem][0][1], videos[stem][0][0]) for stem in order], twice

    @functools.cached_property
    def _by_class(self) -> dict[str, dict]:
        """{normal class name: {stem: [(file name, origin)]}}."""
        by_class: dict[str, dict] = collections.defaultdict(dict)
        for stem, files in self._by_stem.items():
            for folder, name, origin in files:
                by_class[normal(folder)].setdefault(stem, []).append((name, origin))
        return by_class

    def other_folders(self) -> dict[str, int]:
        """{folder that is not a class: number of videos in it}."""
        folders = (folder for files in self._by_stem.values() for folder, _, _ in files)
        counts = collections.Counter(f for f in folders if normal(f) not in self._classes)
        return dict(sorted(counts.items()))

    def _walk(self, folder, depth):
        """(folder's name, stem, name, path or FrameFolder), sorted."""
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in self._walked:
            return  # it was reached through a link as well
        self._walked.add((status.st_dev, status.st_ino))
        found = [entry for entry in entries(folder) if not entry.name.startswith('.')]
        is_class = normal(os.path.basename(folder)) in self._classes
        # A thumbnail beside videos does not make their folder a video.
        others = any(
            is_folder(entry) or os.path.splitext(entry.name)[1].lower() in SUFFIXES
            for entry in found
        )
        has_frames = any(is_frame(entry.name) for entry in found)
        if depth > 0 and has_frames and not is_class and not others:
            above, name = os.path.split(os.fspath(folder))
            yield os.path.basename(above), name, name, FrameFolder(os.fspath(folder))
            return
        for entry in found:
            try:
                if is_folder(entry):
                    yield from self._walk(entry.path, depth + 1)
                elif entry.name.lower().endswith('.zip'):
                    zipped = list(_zip(pathlib.Path(entry.path)))
                    yield from zipped
                    if is_class and not zipped:
                        self.no_videos.append(
                            (os.path.basename(folder), entry.name, 'a .zip without frames')
                        )
                elif (why := why_no_video(entry)) is None:
                    yield (
                        os.path.basename(folder) if depth else '',
                        os.path.splitext(entry.name)[0],
                        entry.name,
                        entry.path,
                    )
                elif is_class:
                    self.no_videos.append((os.path.basename(folder), entry.name, why))
            except OSError as error:
                why = error.strerror or str(error)
                self.unreadable.append((os.path.basename(folder), entry.name, why))
            except ValueError as error:  # of a .zip; the table has its name already
                path = printable(entry.path, 1000)
                why = str(error).removeprefix(f'{path}: ').removeprefix(f'{path} is ')
                self.unreadable.append((os.path.basename(folder), entry.name, why))


def _zip(path):
    if path.suffix.lower() != '.zip':
        raise ValueError(f'{printable(path, 1000)} is neither a folder nor a .zip of JPEG frames')
    for folder, video, frames in zipped_videos(path):
        yield folder, video, video, frames
