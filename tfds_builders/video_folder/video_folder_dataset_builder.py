"""video_folder: a user's own clips, in <split>/<class>/<clip> or <class>/<clip>."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
import pathlib

import tensorflow_datasets as tfds

from fsar_jax.ingest.listing import entries, is_folder, is_system, text, why_no_video
from fsar_jax.ingest.records import file_record
from fsar_jax.ingest.skipped import Skipped, is_utf8
from fsar_jax.ingest.video_builder import AnyName, VideoBuilder, VideoConfig, VideoList, VideoSource
from fsar_jax.messages import printable

SPLITS = ('train', 'val', 'test')
# Of the classes; the rest is train. As in the public benchmarks.
VAL_FRACTION, TEST_FRACTION = (0.12, 0.24)


@dataclasses.dataclass(eq=False, kw_only=True)
class VideoFolderConfig(VideoConfig):
    """root: the folder with the clips; '' looks in manual_dir."""

    root: str = ''

    def settings(self):
        # Not the path, because a folder may move. A file that is added, removed or changes its size
        # changes the hash.
        return super().settings() | {'folder_hash': folder_hash(self.root)}


class Builder(VideoBuilder):
    """A folder of video clips, one sub-folder per class."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [VideoFolderConfig(name='default', description='A folder of video clips.')]
    builder_configs = AnyName()
    VIDEOS_FIELD = 'root'
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        'Put the clips into manual_dir as <split>/<class>/<clip> or <class>/<clip>, or give '
        'videos=FOLDER.'
    )

    def _named_config(self, name, version):
        return VideoFolderConfig(name=name or 'default', description='A folder of video clips.')

    def plan(self, downloads=None, videos_per_split=None):
        self.downloads = downloads
        if not self.builder_config.root:  # before anything asks for the settings
            self._builder_config = dataclasses.replace(self.builder_config, root=self._found())
        return super().plan(downloads, videos_per_split)

    def _found(self):
        """The folder of the clips in manual_dir: video_folder/<config>, <config>, or itself."""
        manual, name = self.manual_dir(), self.builder_config.name
        if manual is None:
            raise FileNotFoundError(
                f'no clips for {self.name}/{name}: give videos=FOLDER, or '
                'tfds.download.DownloadConfig(manual_dir=FOLDER)'
            )
        places = (manual / self.name / name, manual / name, manual)
        return str(next(place for place in places if place.is_dir()))

    def list_videos(self):
        check_outside(pathlib.Path(self.data_path), self.builder_config.root)
        return list_folder(self.builder_config.root)

    def record_maker(self):
        return functools.partial(file_record, settings=self.builder_config.record_settings())


def check_outside(folder: pathlib.Path, root: str | os.PathLike) -> None:
    """ValueError where the dataset would be written among the clips, which it would then be."""
    if pathlib.Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root)):
        raise ValueError(
            f'{printable(folder, 1000)} lies in the folder of the clips, {printable(root, 1000)}: '
            'give a --dir (data_dir) outside it'
        )


def list_folder(root: str | os.PathLike) -> VideoList:
    """Lists a folder of clips: every file is either one of the videos or in `skipped`, except what
    systems left there.

    The first layout is used when `root` has a folder train, val or test that holds folders;
    otherwise each folder is a class, and `split_classes` splits them. A video's id is <class>/<file
    name without suffix>, with the suffix where two files of a class differ only in it. Names are
    compared and stored in NFC: folders whose names are then equal are one class.
    """
    root = pathlib.Path(root)
    _check_root(root)
    skipped: list[Skipped] = []
    folders = _folders(entries(root), '', skipped, 'not in a class folder')
    if any(
        _is_split(folder) and any(map(is_folder, _readable(folder, [], ''))) for folder in folders
    ):
        class_folders: dict[str, dict] = {}  # split -> class -> its folders
        for folder in folders:
            if _is_split(folder):
                split = folder.name.lower()
                inside = _folders(
                    _readable(folder, skipped, split), split, skipped, 'not in a class folder'
                )
                class_folders[split] = _by_class(inside, class_folders.get(split, {}))
            else:
                _skip_tree(folder, '', '', skipped, 'not in a split folder (train, val, test)')
    else:
        classes = _by_class(folders, {})
        split_of = split_classes(list(classes))
        class_folders = {
            split: {name: paths for name, paths in classes.items() if split_of[name] == split}
            for split in SPLITS
        }
    _check_different(class_folders, root)

    class_names = sorted(name for classes in class_folders.values() for name in classes)
    if not class_names:
        raise ValueError(
            f'no class folders in {printable(root, 1000)}: clips belong in <split>/<class>/ or '
            '<class>/'
        )
    label = {name: i for i, name in enumerate(class_names)}
    splits = {
        split: [
            video
            for name, paths in class_folders[split].items()
            for video in _class_videos(paths, split, name, label[name], skipped)
        ]
        for split in SPLITS
        if split in class_folders
    }
    return VideoList(class_names, splits, skipped)


def split_classes(class_names: list[str]) -> dict[str, str]:
    """Class name -> split. In the order of the SHA-256 of the names, the first 24% are test, the
    next 12% val, the rest train.

    Depends only on the set of names. val and test get at least two classes each, or one where there
    are fewer than six. ValueError for fewer than three classes.
    """
    count = len(class_names)
    if count < 3:
        raise ValueError(
            f'{count} class folders cannot be split into train, val and test: add classes, or make '
            'the folders train/, val/ and test/ yourself'
        )
    least = 2 if count >= 6 else 1
    test, val = (max(least, round(fraction * count)) for fraction in (TEST_FRACTION, VAL_FRACTION))
    ordered = sorted(
        class_names, key=lambda name: (hashlib.sha256(name.encode()).hexdigest(), name)
    )
    return {
        name: 'test' if i < test else 'val' if i < test + val else 'train'
        for i, name in enumerate(ordered)
    }


def folder_hash(root: str | os.PathLike) -> str:
    """16 hex digits, a hash of the relative path and size of every file below `root`, except what
    systems left there."""
    root = pathlib.Path(root)
    _check_root(root)
    digest = hashlib.sha256()
    for path in _files(root, 2):
        try:
            size = os.stat(path).st_size
        except OSError:  # a link to nowhere
            size = -1
        relative = text(pathlib.PurePath(path).relative_to(root).as_posix())
        digest.update(f'{relative}\0{size}\n'.encode('utf-8', 'surrogateescape'))
    return digest.hexdigest()[:16]


def _files(folder, links):
    """Paths of the files below a folder, in order.

    links: in how many levels of folders links are followed: those in which `list_folder` follows
        them. Other links may lead anywhere.
    """
    folders = []
    for entry in _readable(folder, [], ''):
        if not is_folder(entry):
            yield entry.path
        elif links or not entry.is_symlink():
            folders.append(entry)
    for entry in folders:
        yield from _files(entry, links - 1 if links and _is_split(entry) else 0)


def _check_root(root):
    if not root.is_dir():
        raise FileNotFoundError(f'--videos={printable(root, 1000)} is not a folder')


def _is_split(folder):
    return folder.name.lower() in SPLITS


def _by_class(folders, classes):
    """`classes`, class name -> its folders, with `folders` added, in the order of the names.

    ValueError for a folder whose name cannot be a line of the file of class names.
    """
    classes = {name: list(paths) for name, paths in classes.items()}
    for folder in folders:
        name = text(folder.name)
        if not is_utf8(name) or name.splitlines() != [name] or not name.strip():
            raise ValueError(
                f'class folder {folder.name!a} in {printable(os.path.dirname(folder.path), 1000)} '
                'is not a line of UTF-8: rename it'
            )
        classes.setdefault(name, []).append(folder)
    return dict(sorted(classes.items()))


def _check_different(class_folders, root):
    """ValueError if two splits share a class, or names differ only in case: 'Jump' and 'jump' are
    the same to those who named them."""
    first = {}  # the name without case and spaces around it -> (split, name)
    for split in filter(class_folders.get, SPLITS):
        for name in class_folders[split]:
            other_split, other = first.setdefault(name.strip().casefold(), (split, name))
            if other_split != split:
                also = '' if other == name else f" (there '{printable(other)}')"
                raise ValueError(
                    f"class '{printable(name)}' is in more than one split of "
                    f'{printable(root, 1000)}, {other_split}{also} and {split}: few-shot splits '
                    'share no class, so move its clips into one of them'
                )
            if other != name:
                raise ValueError(
                    f"class folders '{printable(other)}' and '{printable(name)}' of "
                    f'{printable(root, 1000)} differ only in case: put their clips into one, or '
                    'give one of them another name'
                )


def _readable(folder, skipped, split, class_name=''):
    """The entries of a folder; [] for one that cannot be listed, which is added to `skipped`."""
    try:
        return entries(folder)
    except OSError as error:
        name = '' if class_name else text(folder.name)
        skipped.append(Skipped(split, class_name, name, 'unreadable', error.strerror or str(error)))
        return []


def _folders(found, split, skipped, reason):
    """The visible folders among entries. Files are skipped with `reason`, hidden entries as
    hidden."""
    folders = []
    for entry in found:
        if entry.name.startswith('.'):
            _skip_tree(entry, split, '', skipped, 'hidden')
        elif is_folder(entry):
            folders.append(entry)
        else:
            skipped.append(Skipped(split, '', text(entry.name), reason))
    return folders


def _skip_tree(entry, split, class_name, skipped, reason):
    """Skips every file below `entry`; `entry` itself where there is none, or where it is a link,
    which may lead anywhere."""
    above = os.path.dirname(entry.path)
    files = sorted(
        os.path.relpath(os.path.join(folder, name), above)
        for folder, _, names in (() if entry.is_symlink() else os.walk(entry.path))
        for name in names
        if not is_system(name)
    )
    skipped.extend(Skipped(split, class_name, text(name), reason) for name in files or [entry.name])


def _class_videos(folders, split, class_name, label, skipped):
    """VideoSources of a class, sorted by file name."""
    files, before = [], len(skipped)
    found = [entry for folder in folders for entry in _readable(folder, skipped, split, class_name)]
    unreadable = len(skipped) > before
    for entry in found:
        if entry.name.startswith('.'):
            _skip_tree(entry, split, class_name, skipped, 'hidden')
        elif is_folder(entry):
            _skip_tree(entry, split, class_name, skipped, 'in a folder inside the class folder')
        elif why := why_no_video(entry):
            skipped.append(Skipped(split, class_name, text(entry.name), 'not a video', why))
        else:
            files.append((text(entry.name), entry.path))
    if not files and not unreadable:
        skipped.append(Skipped(split, class_name, '', 'empty class folder'))
    files.sort()
    stem = lambda name: os.path.splitext(name)[0]
    stems = collections.Counter(stem(name) for name, _ in files)
    return [
        VideoSource(
            f'{class_name}/{stem(name) if stems[stem(name)] == 1 else name}', label, path, name
        )
        for name, path in files
    ]
