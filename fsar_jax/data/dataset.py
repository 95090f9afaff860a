"""Built datasets, opened for random access to their videos."""

from __future__ import annotations

import bisect
import errno
import hashlib
import itertools
import json
import os
import pathlib
import re
import shlex
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fsar_jax.checksums import SUMS, read_sums, sha256_of
from fsar_jax.data.frames_feature import Frames
from fsar_jax.files import read_json
from fsar_jax.machine import start_reader_threads
from fsar_jax.messages import listed, one_line, printable

INDEX = ('video_id', 'label', 'num_frames')  # in the metadata and in every record


class EmptySplitError(ValueError):
    """No video of the split could be used when it was built."""


class NoSplitError(ValueError):
    """The dataset has no split of that name."""


class Videos:
    """The videos of one split, by position. Episode draws and the loader work on these.

    VideoDataset reads them from record files. For a dataset of your own (in memory, say), write a
    subclass that sets the attributes below and has a method `read`.

    name: 'synthetic_actions/misaligned'.  split: 'train', 'val' or 'test'.
    class_names: names of all classes of the dataset; a label is an index into it.
    labels: int32 [N].  video_ids: list of N str.  num_frames: int32 [N], stored frames.
    settings: dict, how the records were made.  made_with: which decoder and versions made the
        pixels, {'decoder': 'av 19, …' or None for JPEG files, 'av': '19.0.0', …}; {} if not known.
    expected: what a complete copy of the split holds, {'videos': count, 'hash': of all ids or None,
        'classes': {class: videos}}; None where that is not known.
    dropped: int32, labels of the videos that `loader.usable` left out as too short.
    clips_per_class: at most so many videos of each class were kept (episodes.limited); None: all.
    num_bytes: size of all records together, mostly JPEG bytes; 0 where that is not known.
    extractor: what made the features, if the records hold features of a backbone in the place of
        frames (fsar_jax/data/features.py); {} if they hold frames.
    """

    name: str
    split: str
    class_names: list[str]
    labels: np.ndarray
    video_ids: list[str]
    num_frames: np.ndarray
    settings: dict = {}
    made_with: dict = {}
    expected: dict | None = None
    dropped: np.ndarray = np.empty(0, np.int32)
    clips_per_class: int | None = None
    num_bytes: int = 0
    extractor: dict = {}

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, position: int) -> dict:
        """The record of the video at `position` (0 to N - 1), `frames` a list of JPEG bytes."""
        raise NotImplementedError

    @property
    def advice(self) -> str:
        """What to do about a damaged record, for the end of an error message."""
        return 'build the dataset again'

    @property
    def whole(self) -> Videos:
        """The split as it was opened: the dataset itself, unless it is a `subset`."""
        return self

    def file_checksums(self) -> list[str | None] | None:
        """SHA-256 of each record file, in order; None where there is no list of them."""
        return None

    def subset(self, positions: Sequence[int] | np.ndarray) -> Videos:
        """The same split with only the videos at `positions`, int [n], in that order.

        Raises:
          IndexError: a position is not one of 0 to N - 1.
        """
        return _Subset(self, positions)


class _Subset(Videos):
    """Positions count the videos of the subset; `read` is that of the whole split."""

    def __init__(self, videos: Videos, positions):
        positions = np.asarray(positions, None if len(positions) else np.int64)
        if positions.ndim != 1 or positions.dtype.kind not in 'iu':
            raise IndexError(
                f'a subset of {videos.name} {videos.split} takes a list of positions, not '
                f'{positions.dtype} {list(positions.shape)}'
            )
        if len(positions) and not 0 <= positions.min() <= positions.max() < len(videos):
            raise IndexError(
                f'positions {positions.min()}..{positions.max()} are outside split '
                f'{videos.split!r} of {videos.name}, which has {len(videos)} videos'
            )
        self.name, self.split, self.class_names = videos.name, videos.split, videos.class_names
        self.settings, self.made_with = videos.settings, videos.made_with
        self.expected, self.num_bytes = videos.expected, videos.num_bytes
        self.extractor = videos.extractor
        self.labels = np.asarray(videos.labels, np.int32)[positions]
        self.num_frames = np.asarray(videos.num_frames, np.int32)[positions]
        self.video_ids = [videos.video_ids[position] for position in positions]
        self._videos, self._positions = videos, positions

    @property
    def advice(self):
        return self._videos.advice

    @property
    def whole(self):
        return self._videos.whole

    def read(self, position):
        if not 0 <= position < len(self):
            raise IndexError(
                f'position {position} is outside a subset of {len(self)} videos of split '
                f'{self.split!r} of {self.name}'
            )
        return self._videos.read(int(self._positions[position]))


class VideoDataset(Videos):
    """A split of a built dataset. Its index comes from the metadata: no record is read for it.

    directory: of the build.  files: names of the record files, in order.

    Cheap to pickle (the files are opened again at the first read) and safe to read from many
    threads.

    Raises:
      ValueError: no such split, an empty one (EmptySplitError), or files that are damaged;
        FileNotFoundError: one is lost.
    """

    def __init__(self, directory: pathlib.Path, name: str, split: str) -> None:
        self.name, self.split, self.directory = name, split, directory
        builder, metadata = described(directory, name)
        check_format(builder, directory, name)
        index = metadata['videos']
        if split not in index and split not in builder.info.splits:
            raise NoSplitError(
                f"dataset '{printable(name)}' has no split '{printable(split)}': it has "
                f'{listed(index)}'
            )
        info = builder.info.splits.get(split)
        if not (info and info.num_examples) and not index[split]['label']:
            raise EmptySplitError(
                f"split '{split}' of dataset '{name}' is empty: see "
                f"{printable(directory / 'skipped.tsv', 1000)} for why"
            )
        self.class_names = list(builder.info.features['label'].names)
        videos = index.get(split, {key: [] for key in INDEX})
        self.labels = np.array(videos['label'], np.int32)
        self.video_ids = list(videos['video_id'])
        self.num_frames = np.array(videos['num_frames'], np.int32)
        self.settings = dict(metadata['settings'])
        self.expected = (metadata.get('expected') or {}).get(split)
        self.made_with = dict(metadata.get('made_with') or {})
        self.num_bytes = 0 if info is None else int(info.num_bytes)
        self.files = [] if info is None else [os.path.basename(path) for path in info.filepaths]
        self._ends = [] if info is None else list(itertools.accumulate(info.shard_lengths))
        self._source: Any = None
        self._lock = threading.Lock()
        self._check_index()

    def _check_index(self):
        """ValueError unless the index agrees with the number of records and of classes."""
        count, records = len(self), self._ends[-1] if self._ends else 0
        wrong = None
        if count != records:
            wrong = f'metadata.json lists {count} videos, dataset_info.json {records} records'
        elif self.labels.max() >= len(self.class_names):
            position = int(self.labels.argmax())
            wrong = (
                f"metadata.json gives video '{printable(self.video_ids[position])}' the label "
                f'{self.labels[position]}, there are {len(self.class_names)} classes'
            )
        if wrong:
            raise ValueError(
                f'split {self.split!r} in {printable(self.directory, 1000)} is damaged: {wrong}: '
                f'{repair_advice(self.directory, self.name)}'
            )

    def __repr__(self) -> str:
        return f'VideoDataset({self.name}, {self.split}, {len(self)} videos)'

    def read(self, position: int) -> dict:
        """The record of the video at `position` (0 to N - 1): the fields of ingest/records.py,
        `frames` a list of JPEG bytes.

        Raises:
          OSError: the files cannot be read, or are more than may be open at once.
          ValueError: the record is of another video than the index says.
        """
        if not 0 <= position < len(self):
            raise IndexError(
                f'position {position} is outside split {self.split!r} of {self.name}, which has '
                f'{len(self)} videos'
            )
        position = int(position)
        with self._lock:
            if self._source is None:
                start_reader_threads()
        try:
            with self._lock:
                if self._source is None:
                    self._source = _bytes_of(self.directory, self.split)
            record = self._source[position]
            record['frames'] = list(record['frames'])
            record['frame_index'] = np.array(record['frame_index'], np.int32)
            record['video_id'] = record['video_id'].decode()
        except MemoryError:
            raise
        # The reader of the files is C++ code, then come protobuf and tfds: each has its own errors.
        except Exception as error:
            words = printable(one_line(error))
            too_many = '; raise ulimit -n' if os.strerror(errno.EMFILE) in str(error) else ''
            raise OSError(
                f'{self._where(position)} cannot be read ({words}): {self.advice}{too_many}'
            ) from None
        found = (record['video_id'], int(record['label']), int(record['num_frames']))
        label, num_frames = int(self.labels[position]), int(self.num_frames[position])
        indexed = (self.video_ids[position], label, num_frames)
        if found != indexed:
            of = lambda video: f"'{printable(video[0])}' (label {video[1]}, {video[2]} frames)"
            raise ValueError(
                f'{self._where(position)} is of video {of(found)}, metadata.json says '
                f'{of(indexed)}: record files or metadata.json are those of another build or '
                f'split; {self.advice}'
            )
        if len(record['frames']) != found[2]:
            raise ValueError(
                f"{self._where(position)}, video '{printable(found[0])}', holds "
                f"{len(record['frames'])} frames and says that it has {found[2]}: {self.advice}"
            )
        return record

    def file_of(self, position: int) -> tuple[str, int]:
        """(name of the record file that holds the video at `position`, index of its record in the
        file)."""
        number = bisect.bisect_right(self._ends, position)
        return self.files[number], position - (self._ends[number - 1] if number else 0)

    def _where(self, position):
        file, number = self.file_of(position)
        return f'record {number} of {printable(self.directory / file, 1000)}'

    @property
    def advice(self) -> str:
        data_dir = data_dir_of(self.directory, self.name)
        return f'see what is damaged with {command("verify", self.name, data_dir)}'

    def file_checksums(self) -> list[str | None] | None:
        """From SHA256SUMS, which older builds do not have; ValueError where it is damaged."""
        try:
            sums = read_sums(self.directory)
        except ValueError as error:
            raise ValueError(
                f'{printable(self.directory / SUMS, 1000)} is damaged: {error}; {self.advice}'
            ) from None
        return None if sums is None else [sums.get(name) for name in self.files]

    def lost_files(self) -> dict[str, str]:
        """{name: reason} of the split's record files that do not exist or hold another number of
        records than they should. Opens each file; PermissionError where that is not allowed."""
        from array_record.python import array_record_module  # has no wheel for some platforms

        start_reader_threads()
        lost = {}
        for name, start, end in zip(self.files, [0, *self._ends], self._ends):
            path, count = self.directory / name, end - start
            if not path.is_file():
                lost[name] = 'is not there'
                continue
            path.open('rb').close()  # a file that only others may read is not lost
            try:
                reader = array_record_module.ArrayRecordReader(str(path))
                try:
                    found = reader.num_records()
                finally:
                    reader.close()
            except Exception as error:  # C++ code: RuntimeError, ValueError, …
                lost[name] = f'cannot be read ({printable(one_line(error), 100)})'
                continue
            if found != count:
                lost[name] = f'holds {found} records, not {count}'
        return lost

    def __getstate__(self):
        return {
            key: value for key, value in self.__dict__.items() if key not in ('_source', '_lock')
        }

    def __setstate__(self, state):
        self.__dict__.update(state, _source=None, _lock=threading.Lock())


def _bytes_of(directory, split):
    """A data source of a split, whose frames stay JPEG bytes."""
    builder = tfds.builder_from_directory(os.path.abspath(directory))  # it would expand a '~'
    # In datasets of older versions they are bytes for tfds.
    is_ours = isinstance(builder.info.features['frames'], Frames)
    decoders = {'frames': tfds.decode.SkipDecoding()} if is_ours else None
    return builder.as_data_source(split, decoders=decoders)


def described(directory: pathlib.Path, name: str) -> tuple[tfds.core.DatasetBuilder, dict]:
    """(tfds' builder, metadata) of a built dataset: both describe all of its splits.

    Raises:
      FileNotFoundError, ValueError: the message names the lost or damaged file, the line, and how
        to repair it.
    """
    repair = repair_advice(directory, name)
    # The last file's content is the metadata.
    for file in ('dataset_info.json', 'features.json', 'metadata.json'):
        try:
            content = read_json(directory / file, repair)
        except FileNotFoundError:
            raise FileNotFoundError(
                f'{printable(directory / file, 1000)} is not there: {repair}'
            ) from None
        if not isinstance(content, dict):
            raise ValueError(
                f'{printable(directory / file, 1000)} does not describe a dataset: {repair}'
            )
    _check_metadata(content, f'{printable(directory / "metadata.json", 1000)} is damaged', repair)
    try:
        builder = tfds.builder_from_directory(os.path.abspath(directory))  # it would expand a '~'
        label = builder.info.features['label']
        names = (directory / 'label.labels.txt').read_text(encoding='utf-8')
        # Where that file is lost or of another length, tfds makes up names and numbers.
        features = read_json(directory / 'features.json', repair)['featuresDict']['features']
        count = int(features['label']['classLabel']['numClasses'])
        if not len(names.split('\n')) - names.endswith('\n') == len(label.names) == count:
            raise ValueError(f'{len(label.names)} class names, {count} classes')
    except Exception as error:  # the parsers of tfds, protobuf and Python have no common error
        raise ValueError(
            f'{printable(directory, 1000)} is not a built dataset, or dataset_info.json, '
            f'features.json or label.labels.txt there is damaged ({type(error).__name__}: '
            f'{printable(one_line(error))}): {repair}'
        ) from None
    return builder, content


def check_format(builder, directory, name):
    """ValueError, one line, where the records cannot be read one by one."""
    file_format = builder.info.file_format.value
    if file_format != 'array_record':
        build = command('build', name, 'ANOTHER_FOLDER')
        raise ValueError(
            f'{printable(directory, 1000)} holds {printable(file_format)} files, which tfds.load '
            f'reads and training cannot: build the dataset also as array_record, {build}'
        )


def repair_advice(directory: pathlib.Path, name: str) -> str:
    """What to do about a damaged dataset, with the command that builds the same again."""
    flags = _build_flags(directory)
    build = command('build', name, data_dir_of(directory, name), *flags, '--overwrite')
    return f'copy the dataset again, or build it again: {build}'


def _build_flags(directory):
    """['--size=32', …]: those that the dataset was built with; [] where that is not known."""
    try:
        flags = read_json(directory / 'metadata.json', '')['flags']
        return [f'--{printable(flag)}={int(value)}' for flag, value in flags.items()]
    except (OSError, AttributeError, LookupError, TypeError, ValueError):
        return []  # damaged, or of an older version


def open_dataset(name: str, data_dir: str | os.PathLike, split: str) -> VideoDataset:
    """Opens a split of a built dataset.

    Args:
      name: 'synthetic_actions/misaligned', 'video_folder/<name>', 'ucf101_arn', …: a directory in
        data_dir.
      split: 'train', 'val' or 'test'.

    Raises:
      FileNotFoundError: it is not built; the message says how to build it.
      OSError: record files are lost or cut, or hold another number of records than they should.
      ValueError: the split does not exist or is empty (EmptySplitError), or the dataset is damaged;
        the message says what is damaged and how to repair it.
    """
    directory = version_directory(name, data_dir)
    if directory is None:
        raise FileNotFoundError(not_built(name, data_dir))
    dataset = VideoDataset(directory, name, split)
    lost = dataset.lost_files()
    if lost:
        raise OSError(
            f"split '{split}' in {printable(directory, 1000)} is not whole: "
            f'{listed(f"{file} {reason}" for file, reason in lost.items())}: {dataset.advice}'
        )
    _check_class_names(directory, dataset.advice)
    return dataset


def _check_class_names(directory, advice):
    """ValueError unless the file of class names has its checksum. No record holds the names, and
    episodes draw the classes in their order: nothing else would notice a change."""
    file = 'label.labels.txt'
    try:
        digest = (read_sums(directory) or {}).get(file)
    # A damaged list says nothing about other files; `verify` names it.
    except (OSError, ValueError):
        return
    if digest not in (None, sha256_of(directory / file)):
        raise ValueError(
            f'{printable(directory / file, 1000)} is not the one that was built, by its checksum '
            f'in {SUMS}: {advice}'
        )


def not_built(name: str, data_dir: str | os.PathLike) -> str:
    """The error message for a dataset that `version_directory` does not find. It names those of the
    same builder that are there: the name may be a slip of the pen."""
    builder = name.split('/')[0]
    try:
        folders = sorted(path.name for path in (pathlib.Path(data_dir) / builder).iterdir())
        names = [f'{builder}/{folder}' for folder in folders]
        built = [printable(other) for other in names if version_directory(other, data_dir)]
    except (OSError, ValueError):
        built = []
    return (
        f"dataset '{printable(name)}' is not in {printable(data_dir, 1000)}: build it with "
        f'{command("build", name, data_dir)}'
        + (f', or choose one that is there: {listed(built)}' if built else '')
    )


def videos_present(dataset: Videos) -> dict:
    """How many videos and classes an open split has.

    The hash is over the lines `<video id>\\n` in the order of the records. For a complete copy of a
    public benchmark, that is the SHA-256 of its published list file.

    Returns:
      {'present': videos, 'classes': that have a video, 'expected', 'expected_classes': the same of
      a complete copy, None where that is not known, 'hash': SHA-256 of the list of videos}.
    """
    dataset, expected = dataset.whole, dataset.expected
    digest = hashlib.sha256()
    for video_id in dataset.video_ids:
        digest.update(f'{video_id}\n'.encode())
    return {
        'present': len(dataset.video_ids),
        'classes': len(np.unique(dataset.labels)),
        'expected': expected['videos'] if expected else None,
        'expected_classes': len(expected['classes']) if expected else None,
        'hash': digest.hexdigest(),
    }


def content_hash(dataset: Videos) -> str:
    """SHA-256, hexadecimal, of what an open split holds, whatever directory it is in: ids, classes
    and frame counts of its videos, how and with which decoder their records were made, and the
    checksums of the record files (the size of older builds, which have no checksums).

    Two copies of one build have the same hash; other pixels under the same ids have another one.

    Raises:
      ValueError: the list of checksums is damaged.
    """
    whole = dataset.whole
    held = {
        'video_ids': whole.video_ids,
        'labels': whole.labels.tolist(),
        'class_names': whole.class_names,
        'num_frames': whole.num_frames.tolist(),
        'settings': whole.settings,
        'made_with': whole.made_with,
        'num_bytes': whole.num_bytes,
    }
    sums = whole.file_checksums()
    if sums is not None:
        held['files'] = sums
    return hashlib.sha256(json.dumps(held, sort_keys=True, default=str).encode()).hexdigest()


def version_directory(name: str, data_dir: str | os.PathLike) -> pathlib.Path | None:
    """The directory of the newest finished build, None when there is none.

    Raises:
      OSError: the folder of the dataset cannot be listed.
      ValueError: `name` cannot be the name of a folder in data_dir.
    """
    parts = pathlib.PurePath(name).parts
    plain = parts and pathlib.PurePath(name).as_posix() == name  # no slash at the end
    if not plain or pathlib.PurePath(name).is_absolute() or '..' in parts or '\0' in name:
        raise ValueError(
            f"dataset '{printable(name)}' is not the name of a dataset: give one such as "
            'synthetic_actions/misaligned or video_folder/my_clips'
        )
    versions = []
    try:
        for path in (pathlib.Path(data_dir) / name).iterdir():
            if (
                re.fullmatch(r'\d+\.\d+\.\d+', path.name, re.ASCII)
                and (path / 'dataset_info.json').is_file()
            ):
                versions.append((tuple(map(int, path.name.split('.'))), path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return max(versions)[1] if versions else None


def data_dir_of(directory: pathlib.Path, name: str) -> pathlib.Path:
    """Where datasets are kept: `directory` is <data_dir>/<name>/<version>."""
    return directory.parents[len(pathlib.PurePath(name).parts)]


def command(module: str, name: str, data_dir: str | os.PathLike, *flags: str) -> str:
    """The whole command to type, quoted for a shell. `module` is 'build' or 'verify'."""
    if module == 'build' and name.split('/')[0] != 'synthetic_actions':
        flags = ('--videos=FOLDER', *flags)
    given = [
        f'--dataset={shlex.quote(printable(name))}',
        f'--dir={shlex.quote(printable(data_dir, 1000))}',
        *flags,
    ]
    return f'python -m fsar_jax.{module} {" ".join(given)}'


def _is_utf8(texts):
    try:
        return '\n'.join(texts).encode() is not None
    except UnicodeEncodeError:  # JSON can hold half a surrogate pair
        return False


def _check_metadata(metadata, wrong, repair):
    """ValueError unless metadata.json describes videos; it begins with `wrong` and ends with
    `repair`."""

    def check(ok, what):
        if not ok:
            raise ValueError(f'{wrong} ({what}): {repair}')

    is_count = lambda value, least: type(value) is int and least <= value < 1 << 31
    videos, expected = metadata.get('videos'), metadata.get('expected')
    check(isinstance(videos, dict) and videos, 'it has no videos')
    check(isinstance(metadata.get('settings'), dict), 'it has no settings')
    for key in ('made_with', 'failed'):
        check(isinstance(metadata.get(key) or {}, dict), f'{key} is not a table')
    for split, index in videos.items():
        where = f'videos of split {printable(split)}'
        check(
            isinstance(index, dict) and all(isinstance(index.get(key), list) for key in INDEX),
            f'{where}: not the lists {listed(INDEX)}',
        )
        ids, labels, frames = (index[key] for key in INDEX)
        check(
            len(ids) == len(labels) == len(frames),
            f'{where}: {len(ids)} ids, {len(labels)} labels, {len(frames)} counts of frames',
        )
        check(
            all(isinstance(video_id, str) for video_id in ids) and _is_utf8(ids),
            f'{where}: a video id that is not text',
        )
        check(
            all(is_count(label, 0) for label in labels),
            f'{where}: a label that is not a whole number of at least 0',
        )
        check(
            all(is_count(count, 1) for count in frames),
            f'{where}: a num_frames that is not a whole number of at least 1',
        )
        if len(set(ids)) < len(ids):
            seen = set()
            twice = next(video_id for video_id in ids if video_id in seen or seen.add(video_id))
            check(False, f"{where}: id '{printable(twice)}' occurs twice")
    check(expected is None or isinstance(expected, dict), 'expected is not a table of splits')
    for split, of in (expected or {}).items():
        check(
            isinstance(of, dict)
            and is_count(of.get('videos'), 0)
            and isinstance(of.get('hash'), str | None)
            and isinstance(of.get('classes'), dict)
            and all(is_count(count, 0) for count in of['classes'].values()),
            f'expected, split {printable(split)}: not videos, hash and classes',
        )
