"""The base of the public few-shot benchmarks: published classes and video lists, and the videos as
their authors hand them out.

Each benchmark is a folder in tfds_builders with its class list (classes.json), the SHA-256 of the
authors' list files (checksums.tsv) and a README. A line of a list, `<label>/<video>`, is the id of
a video, and the records are in the order of the list: so the hash of all ids of a complete build is
the SHA-256 of the list file itself.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from fsar_jax.ingest.archives import extracted
from fsar_jax.ingest.benchmark_files import SourceFiles, normal
from fsar_jax.ingest.frame_files import FrameFolder, ZippedFrames, record_from_frames
from fsar_jax.ingest.records import RecordSettings, record_from_file
from fsar_jax.ingest.skipped import Skipped
from fsar_jax.ingest.video_builder import AnyName, VideoBuilder, VideoConfig, VideoList, VideoSource
from fsar_jax.messages import printable

SPLITS = ('train', 'val', 'test')
MANUAL = (
    'Put the videos into manual_dir, or give videos=FOLDER: README.md of the builder says what the '
    'folder may hold.'
)


class ListFile(NamedTuple):
    """A published list: its address, its file name, which it must also have in manual_dir, and its
    hash."""

    url: str
    name: str
    sha256: str


@dataclasses.dataclass(eq=False, kw_only=True)
class BenchmarkConfig(VideoConfig):
    """Where the files of a benchmark are.

    videos: the folder, .zip or .rar with the videos; '' looks in manual_dir.
    manual_dir: folder with the list files, for a machine without network.
    own_lists: accept list files that are not the published ones.
    """

    videos: str = ''
    manual_dir: str = ''
    own_lists: bool = False

    def settings(self) -> dict[str, Any]:
        return super().settings() | {'lists': 'own' if self.own_lists else 'published'}


class BenchmarkBuilder(VideoBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the benchmarks; a subclass says which lists there are and what its files are called.

    LISTS_FROM: what the addresses of its lists in checksums.tsv have in common; where there are
        several, they are mirrors, tried in this order.
    FOLDERS_ARE_THE_LIST: all videos of a class belong to it, so no list file is needed.
    ARCHIVES: names of the archives that the authors hand out.
    """

    _unnamed = False  # a config was given
    VERSION = tfds.core.Version('1.0.0')
    builder_configs = AnyName()  # a build with other settings gets a name of its own
    VIDEOS_FIELD = 'videos'
    MANUAL_DOWNLOAD_INSTRUCTIONS = MANUAL
    LISTS_FROM: tuple[str, ...] = ()
    FOLDERS_ARE_THE_LIST = False
    ARCHIVES: tuple[str, ...] = ()

    @property
    def builder_config_name(self) -> str | None:
        """None for the config that nobody named: its folder is that of the dataset, as for
        `python -m fsar_jax.build`."""
        return None if self._unnamed else self.builder_config.name

    def _named_config(self, name, version):
        self._unnamed = name in (None, 'default')
        return BenchmarkConfig(name=name or 'default', description='As published.')

    def _build_data_dir(self, given_data_dir):
        root, directory = super()._build_data_dir(given_data_dir)
        # Where tfds put it before.
        default = pathlib.Path(root, self.name, 'default', str(self.version))
        if self._unnamed and default.exists() and not pathlib.Path(directory).exists():
            return root, str(default)
        return root, directory

    def other_names(self, name: str) -> tuple[str, ...]:
        """Other names that the file of video `name` may have, without suffix."""
        return ()

    @classmethod
    def published(cls) -> dict[str, dict]:
        """{split: {'num_videos': n, 'classes': {name: videos}[, 'list_labels': [label]]}}, from
        classes.json."""
        return json.loads(
            pathlib.Path(cls.code_path.parent, 'classes.json').read_text(encoding='utf-8')
        )

    @classmethod
    def list_files(cls) -> list[dict[str, ListFile]]:
        """{split: ListFile} of each mirror, from checksums.tsv."""
        rows = pathlib.Path(cls.code_path.parent, 'checksums.tsv').read_text().splitlines()
        files = [
            ListFile(url, name, sha) for url, _, sha, name in (row.split('\t') for row in rows)
        ]
        return [
            {
                split: next(f for f in files if mirror in f.url and f.name.startswith(split))
                for split in SPLITS
            }
            for mirror in cls.LISTS_FROM
        ]

    def list_videos(self) -> VideoList:
        published, lists = self.published(), self.list_files()
        class_names = [name for split in SPLITS for name in published[split]['classes']]
        label = {name: i for i, name in enumerate(class_names)}
        expected = {
            split: {
                'videos': published[split]['num_videos'],
                'hash': lists[0][split].sha256,
                'classes': published[split]['classes'],
            }
            for split in SPLITS
        }
        root = self._root()
        files = SourceFiles(root, class_names)
        list_them = self._from_folders if self.FOLDERS_ARE_THE_LIST else self._from_lists
        splits, skipped, notes = list_them(files, published, label)
        skipped += [
            Skipped('', folder, name, 'unreadable', why) for folder, name, why in files.unreadable
        ]
        skipped += [
            Skipped('', folder, name, 'not a video', why) for folder, name, why in files.no_videos
        ]
        if not any(source.origin is not None for sources in splits.values() for source in sources):
            raise FileNotFoundError(
                f'none of the videos of {self.name} is in {printable(root, 1000)} ({files.unused} '
                'other videos are; a .zip must hold frames as .jpg): give --videos=PATH, see '
                f'{self._readme()} for what it may be'
            )
        if files.unused:
            notes.append(f'{files.unused} videos of {printable(root, 1000)} are not in the lists')
        return VideoList(class_names, splits, skipped, expected, notes)

    def _readme(self):
        return printable(self.code_path.parent / 'README.md', 1000)

    def record_maker(self) -> Callable[..., dict]:
        return functools.partial(source_record, settings=self.builder_config.record_settings())

    def _root(self):
        videos, manual = self.builder_config.videos, self._manual_dir()
        root = (
            pathlib.Path(videos)
            if videos
            else manual and (manual / self.name if (manual / self.name).exists() else manual)
        )
        if root is None or not root.exists():
            raise FileNotFoundError(
                f'no videos of {self.name} in {printable(root or "manual_dir", 1000)}: give '
                f'--videos=PATH, see {self._readme()} for what it may be'
            )
        class_names = [name for split in self.published().values() for name in split['classes']]
        return extracted(
            root, self.ARCHIVES, class_names, pathlib.Path(self.downloads.download_dir, 'extracted')
        )

    def _manual_dir(self) -> pathlib.Path | None:
        """The config's folder, else that of tfds' download manager; None where there is neither."""
        if self.builder_config.manual_dir:
            return pathlib.Path(self.builder_config.manual_dir)
        return self.manual_dir()

    def _from_folders(self, files, published, label):
        """Every file in the folder of a class is one of its videos, in the order of bytes."""
        splits, skipped, notes = {}, [], []
        for split in SPLITS:
            splits[split] = []
            for class_name, count in published[split]['classes'].items():
                found, twice = files.of_class(class_name)
                skipped += [
                    Skipped(split, class_name, name, 'duplicate id', of) for name, of in twice
                ]
                if len(found) < count:
                    skipped.append(
                        Skipped(
                            split,
                            class_name,
                            '',
                            'missing',
                            f'{count - len(found)} of {count} videos',
                        )
                    )
                elif len(found) > count:
                    notes.append(
                        f'{split}/{class_name} has {len(found)} videos, published are {count}'
                    )
                splits[split] += [
                    VideoSource(f'{class_name}/{stem}', label[class_name], origin, name)
                    for stem, origin, name in found
                ]
        skipped += [
            Skipped('', folder, '', 'label not in the split', f'{count} videos')
            for folder, count in files.other_folders().items()
        ]
        return splits, skipped, notes

    def _from_lists(self, files, published, label):
        """A video for every line of the lists, in their order, whether its file exists or not."""
        splits, skipped, notes = {}, [], []
        texts = self._list_texts()
        for split in SPLITS:
            info, splits[split] = published[split], []
            names = list(info['classes'])
            class_of = {normal(name): name for name in names}
            class_of |= {normal(name): c for name, c in zip(info.get('list_labels', ()), names)}
            for line in texts[split].split('\n'):
                line = line.strip()
                if not line:
                    continue
                list_label, _, name = line.rpartition('/')
                class_name = class_of.get(normal(list_label))
                if class_name is None:
                    skipped.append(
                        Skipped(split, list_label, name, 'label not in the split', 'list line')
                    )
                    continue
                origin, file_name, twice = files.find(class_name, (name, *self.other_names(name)))
                splits[split].append(
                    VideoSource(line, label[class_name], origin, file_name or name)
                )
                skipped += [
                    Skipped(split, class_name, other, 'duplicate id', f'as {file_name}')
                    for other in twice
                ]
            listed = collections.Counter(source.label for source in splits[split])
            different = [name for name in names if listed[label[name]] != info['classes'][name]]
            if different:
                notes.append(
                    f'{split}: the list has another number of videos than published in '
                    f'{len(different)} classes, such as {different[0]}: '
                    f'{listed[label[different[0]]]}, not {info["classes"][different[0]]}'
                )
        return splits, skipped, notes + self.check_annotations(splits, label)

    def check_annotations(
        self, splits: dict[str, list[VideoSource]], label: dict[str, int]
    ) -> list[str]:
        """Notes on contradictions between the lists and other files of the authors."""
        return []

    def annotation_folders(self) -> list[pathlib.Path]:
        """Folders that may hold other files of the authors than the videos."""
        roots = [
            pathlib.Path(path) for path in (self._manual_dir(), self.builder_config.videos) if path
        ]
        folders = [
            folder
            for root in roots
            for folder in (
                root / self.name,
                root,
                root / 'labels',
                root.parent,
                root.parent / 'labels',
            )
        ]
        return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]

    def _list_texts(self):
        """{split: text} from manual_dir, from the folder of the videos, or from the network."""
        mirrors, texts, local, others = self.list_files(), {}, {}, _lists_of_others(type(self))
        for split in SPLITS:
            names = dict.fromkeys(mirror[split].name for mirror in mirrors)
            paths = [folder / name for folder in self.annotation_folders() for name in names]
            # The lists of several benchmarks have the same name, and may be in one folder.
            found = {
                path: sha
                for path in paths
                if path.is_file() and (sha := _sha256(path)) not in others
            }
            first = next(iter(found), None)
            published = (path for path, sha in found.items() if sha == mirrors[0][split].sha256)
            local[split] = first if self.builder_config.own_lists else next(published, first)
        if not all(local.values()):
            if any(local.values()):
                absent = next(split for split in SPLITS if not local[split])
                raise FileNotFoundError(
                    f'{mirrors[0][absent].name} is not beside '
                    f'{printable(next(filter(None, local.values())), 1000)}: all three lists must '
                    'be there, or none'
                )
            local = self._downloaded(mirrors)
        for split in SPLITS:
            if (
                _sha256(local[split]) != mirrors[0][split].sha256
                and not self.builder_config.own_lists
            ):
                raise ValueError(
                    f'{printable(local[split], 1000)} is not the published list: get it from '
                    f'{mirrors[0][split].url}, or give --own_lists to build from it all the same'
                )
            try:
                texts[split] = local[split].read_text(encoding='utf-8-sig')
            except UnicodeDecodeError as error:
                raise ValueError(
                    f'{printable(local[split], 1000)} is not text in UTF-8 ({error.reason} at byte '
                    f'{error.start}): save it as such'
                ) from None
        return texts

    def _downloaded(self, mirrors):
        # Without its manual_dir: tfds would take a file of the same name from there, which may be
        # another benchmark's list.
        folder = pathlib.Path(self.downloads.download_dir)
        network = self.download_manager(folder, manual_dir=folder / 'nothing')
        errors = []
        for mirror in mirrors:
            try:
                paths = network.download({split: mirror[split].url for split in SPLITS})
                return {split: pathlib.Path(path) for split, path in paths.items()}
            except Exception as error:  # those of requests and of tfds have no common base
                errors.append(type(error).__name__)
        urls = ', '.join(mirrors[0][split].url for split in SPLITS)
        raise FileNotFoundError(
            f'the list files cannot be downloaded ({", ".join(errors)}): put them into '
            f'{printable(self._manual_dir() or "manual_dir", 1000)} yourself, from {urls}'
        )


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _lists_of_others(builder_class) -> set[str]:
    """SHA-256 of the published lists of the other benchmarks."""
    own = builder_class.code_path.parent.name
    others = [
        path
        for path in builder_class.code_path.parents[1].glob('*/checksums.tsv')
        if path.parent.name != own
    ]
    return {row.split('\t')[2] for path in others for row in path.read_text().splitlines()}


def source_record(source: VideoSource, settings: RecordSettings) -> dict:
    """The record of a video file, of a folder of frames or of frames in a .zip."""
    make = (
        record_from_frames
        if isinstance(source.origin, (FrameFolder, ZippedFrames))
        else record_from_file
    )
    return make(source.origin, source.video_id, source.label, settings)
