"""video_folder: a user's own clips, in <split>/<class>/<clip> or <class>/<clip>."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib

import tensorflow_datasets as tfds

from fsar_jax.data.records import RecordSettings, record_from_file
from fsar_jax.data.video_files import SUFFIXES
from tfds_builders.skipped import is_utf8
from tfds_builders.video_builder import Skipped, VideoBuilder, VideoConfig, VideoList, VideoSource

SPLITS = ('train', 'val', 'test')
VAL_FRACTION, TEST_FRACTION = 0.12, 0.24  # of the classes; the rest is train. Those of the public benchmarks.


@dataclasses.dataclass(eq=False, kw_only=True)
class VideoFolderConfig(VideoConfig):
    """root: the folder with the clips."""

    root: str = ''

    def settings(self):
        # Not the path: a folder may move. A file that comes, goes or changes its size shows.
        return super().settings() | {'folder_hash': folder_hash(self.root)}


class Builder(VideoBuilder):
    """A folder of video clips, one sub-folder per class."""

    VERSION = tfds.core.Version('1.0.0')

    def list_videos(self):
        return list_folder(self.builder_config.root)

    def record_maker(self):
        return functools.partial(file_record, settings=self.builder_config.record_settings())


def file_record(source: VideoSource, settings: RecordSettings) -> dict:
    return record_from_file(source.origin, source.video_id, source.label, settings)


def list_folder(root: str | os.PathLike) -> VideoList:
    """What is in a folder of clips: every file is either a video of the list or in its `skipped`.

    The first layout is taken when `root` has a folder train, val or test that holds folders; otherwise each folder
    is a class, and classes are split by `split_classes`. A video's id is <class>/<file name without suffix>, with
    the suffix where two files of a class differ in nothing else.
    """
    root = pathlib.Path(root)
    _check_root(root)
    skipped = []
    folders = _entries(root, '', '', skipped, 'not in a class folder')
    if any(folder.name in SPLITS and any(child.is_dir() for child in folder.iterdir()) for folder in folders):
        class_folders = {}
        for folder in folders:
            if folder.name in SPLITS:
                class_folders[folder.name] = _entries(
                    folder, folder.name, '', skipped, 'not in a class folder'
                )
                _check_names(class_folders[folder.name])
            else:
                _skip_tree(folder, '', '', skipped, 'not in a split folder (train, val, test)')
    else:
        _check_names(folders)
        split_of = split_classes([folder.name for folder in folders])
        class_folders = {split: [f for f in folders if split_of[f.name] == split] for split in SPLITS}

    class_names = [folder.name for folders in class_folders.values() for folder in folders]
    twice = [name for name, count in collections.Counter(class_names).items() if count > 1]
    if twice:
        raise ValueError(
            f"class '{twice[0]}' is in more than one split of {root}: few-shot splits share no class, "
            'so move its clips into one of them'
        )
    if not class_names:
        raise ValueError(f'no class folders in {root}: clips belong in <split>/<class>/ or <class>/')

    class_names.sort()
    label = {name: i for i, name in enumerate(class_names)}
    splits = {}
    for split in SPLITS:
        if split in class_folders:
            splits[split] = [
                video
                for folder in class_folders[split]
                for video in _class_videos(folder, split, label[folder.name], skipped)
            ]
    return VideoList(class_names, splits, skipped)


def split_classes(class_names: list[str]) -> dict[str, str]:
    """Class name -> split: in the order of the SHA-256 of the names, the first 24% test, the next 12% val.

    Depends on nothing but the set of names. val and test get two classes at least, one where there are fewer than
    six. ValueError for fewer than three classes.
    """
    count = len(class_names)
    if count < 3:
        raise ValueError(
            f'{count} class folders cannot be split into train, val and test: add classes, '
            'or make the folders train/, val/ and test/ yourself'
        )
    least = 2 if count >= 6 else 1
    test, val = (max(least, round(fraction * count)) for fraction in (TEST_FRACTION, VAL_FRACTION))
    ordered = sorted(class_names, key=lambda name: (hashlib.sha256(name.encode()).hexdigest(), name))
    return {
        name: 'test' if i < test else 'val' if i < test + val else 'train' for i, name in enumerate(ordered)
    }


def folder_hash(root: str | os.PathLike) -> str:
    """16 hex digits over the relative path and size of every file below `root`."""
    root = pathlib.Path(root)
    _check_root(root)
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            path = pathlib.Path(folder, name)
            size = path.stat().st_size if path.exists() else -1  # a link to nowhere
            digest.update(f'{path.relative_to(root).as_posix()}\0{size}\n'.encode('utf-8', 'surrogateescape'))
    return digest.hexdigest()[:16]


def _check_root(root):
    if not root.is_dir():
        raise FileNotFoundError(f'--videos={root} is not a folder')


def _check_names(class_folders):
    """A class has its folder's name, in text and in a file with a class per line."""
    for folder in class_folders:
        if not is_utf8(folder.name) or len(folder.name.splitlines()) > 1:
            raise ValueError(f'class folder {folder.name!a} in {folder.parent} is not a line of UTF-8: rename it')


def _entries(folder, split, class_name, skipped, reason):
    """The visible folders in `folder`, sorted; files are skipped for `reason`, hidden things as hidden."""
    folders = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith('.'):
            _skip_tree(path, split, class_name, skipped, 'hidden')
        elif path.is_dir():
            folders.append(path)
        else:
            skipped.append(Skipped(split, class_name, path.name, reason))
    return folders


def _skip_tree(path, split, class_name, skipped, reason):
    """Every file below `path` is skipped, or `path` itself where there is none."""
    files = sorted(file for file in path.rglob('*') if not file.is_dir()) if path.is_dir() else []
    skipped.extend(
        Skipped(split, class_name, file.relative_to(path.parent).as_posix(), reason)
        for file in files or [path]
    )


def _class_videos(folder, split, label, skipped):
    """VideoSources of a class, sorted by file name."""
    files = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith('.'):
            _skip_tree(path, split, folder.name, skipped, 'hidden')
        elif path.is_dir():
            _skip_tree(path, split, folder.name, skipped, 'in a folder inside the class folder')
        elif path.suffix.lower() not in SUFFIXES:
            skipped.append(
                Skipped(split, folder.name, path.name, 'unknown extension', 'not that of a video')
            )
        else:
            files.append(path)
    if not files:
        skipped.append(Skipped(split, folder.name, '', 'empty class folder'))
    stems = collections.Counter(path.stem for path in files)
    return [
        VideoSource(
            f'{folder.name}/{path.stem if stems[path.stem] == 1 else path.name}', label, str(path), path.name
        )
        for path in files
    ]
