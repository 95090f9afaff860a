"""Finds the videos in what the authors of a benchmark hand out, and in what became of it on
people's disks."""

from __future__ import annotations

import collections
import os
import pathlib

from fsar_jax.ingest.frame_files import FrameFolder, is_frame, zipped_videos
from fsar_jax.ingest.listing import entries, is_folder, text, why_no_video
from fsar_jax.ingest.video_formats import SUFFIXES
from fsar_jax.messages import printable


def normal(name: str) -> str:
    """A class name as letters and digits alone: 'air_drumming', 'Air drumming' and 'AirDrumming'
    are the same."""
    return ''.join(filter(str.isalnum, text(name).casefold()))


class SourceFiles:
    """The videos below a folder, or in a .zip of frames.

    A video is a file with a video's suffix (or the first bytes of one), a folder of nothing but
    JPEG files, or such a folder in a .zip; the folder it lies in may be its class. Whatever is
    above does not matter. Names are compared in NFC.

    unreadable: [(folder, name, the system's words)] of what could not be looked into; the rest
    counts. no_videos: [(class folder, name, why)] of the other files in the folders of classes.
    """

    def __init__(self, root: pathlib.Path, class_names: list[str]):
        self._classes = {normal(name) for name in class_names}
        self._by_stem = collections.defaultdict(list)  # stem -> [(folder, name, origin)], sorted
        self._used, self._walked, self.unreadable, self.no_videos = set(), set(), [], []
        found = _zip(root) if root.is_file() else self._walk(root, 0)
        for folder, stem, name, origin in found:
            self._by_stem[text(stem)].append((text(folder), text(name), origin))

    @property
    def unused(self) -> int:
        """Videos that nobody asked for."""
        return len(self._by_stem.keys() - self._used)

    def find(self, class_name: str, stems: tuple[str, ...]) -> tuple[object, str, list[str]]:
        """(origin or None, file name, further files of the same name) of the first of `stems` that
        there is."""
        for stem in map(text, stems):
            there = self._by_stem.get(stem)
            if there:
                self._used.add(stem)
                wanted = normal(class_name)
                in_class = [file for file in there if normal(file[0]) == wanted]
                # A file in the folder of another class of the benchmark is that class's; flat
                # layouts have neither.
                neutral = [file for file in there if normal(file[0]) not in self._classes]
                # Kinetics comes with a folder of whole files for those that were broken.
                chosen = sorted(
                    in_class + neutral or there,
                    key=lambda file: not normal(file[0]).startswith('replacement'),
                )
                return chosen[0][2], chosen[0][1], [name for _, name, _ in chosen[1:]]
        return None, '', []

    def of_class(
        self, class_name: str
    ) -> tuple[list[tuple[str, object, str]], list[tuple[str, str]]]:
        """([(stem, origin, file name)] in the order of bytes, [(file name, the file whose id it
        shares)])."""
        if not hasattr(self, '_by_class'):
            self._by_class = collections.defaultdict(dict)
            for stem, there in self._by_stem.items():
                for folder, name, origin in there:
                    self._by_class[normal(folder)].setdefault(stem, []).append((name, origin))
        videos = self._by_class.get(normal(class_name), {})
        self._used.update(videos)
        order = sorted(videos, key=lambda stem: stem.encode('utf-8', 'surrogateescape'))
        twice = [
            (name, f'as {videos[stem][0][0]}') for stem in order for name, _ in videos[stem][1:]
        ]
        return [(stem, videos[stem][0][1], videos[stem][0][0]) for stem in order], twice

    def other_folders(self) -> dict[str, int]:
        """{folder that is no class: videos in it}."""
        folders = (folder for there in self._by_stem.values() for folder, _, _ in there)
        return dict(
            sorted(
                collections.Counter(f for f in folders if normal(f) not in self._classes).items()
            )
        )

    def _walk(self, folder, depth):
        """(folder's name, stem, name, path or FrameFolder), sorted."""
        status = os.stat(folder)
        # A link to a folder that was seen, or that this one is in.
        if (status.st_dev, status.st_ino) in self._walked:
            return
        self._walked.add((status.st_dev, status.st_ino))
        found = [entry for entry in entries(folder) if not entry.name.startswith('.')]
        is_class = normal(os.path.basename(folder)) in self._classes
        # A thumbnail beside videos does not make their folder a video.
        others = any(
            is_folder(entry) or os.path.splitext(entry.name)[1].lower() in SUFFIXES
            for entry in found
        )
        if (
            depth > 0
            and not is_class
            and not others
            and any(is_frame(entry.name) for entry in found)
        ):
            name = os.path.basename(folder)
            yield (
                os.path.basename(os.path.dirname(folder)),
                name,
                name,
                FrameFolder(os.fspath(folder)),
            )
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
            except (OSError, ValueError) as error:
                path = printable(entry.path, 1000)
                why = getattr(error, 'strerror', None) or str(error).removeprefix(
                    f'{path}: '
                ).removeprefix(f'{path} is ')
                self.unreadable.append((os.path.basename(folder), entry.name, why))


def _zip(path):
    if path.suffix.lower() != '.zip':
        raise ValueError(f'{printable(path, 1000)} is neither a folder nor a .zip of JPEG frames')
    for folder, video, frames in zipped_videos(path):
        yield folder, video, video, frames
