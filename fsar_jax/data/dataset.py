"""Built datasets, opened for random access to their videos."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import threading

import numpy as np
import tensorflow_datasets as tfds

from fsar_jax.machine import check_reader_threads


class VideoDataset:
    """The videos of one split, by position. Its attributes come from the metadata: no record is read for them.

    name: 'synthetic_actions/misaligned'.  split: 'train', 'val' or 'test'.
    class_names: names of all classes of the dataset; a label is a place in it.
    labels: int32 [N].  video_ids: list of N str.  num_frames: int32 [N], stored frames.
    settings: dict, how the records were made.  made_with: what made them, {'decoder': 'av 19, …' or None
        where they were JPEG files, 'av': '19.0.0', …}; {} in older builds.
    num_bytes: of all records together, their JPEG bytes above all.
    expected: {'videos': count, 'hash': of all ids or None, 'classes': {class: videos}} of a complete copy of the split,
        None where that is not known.

    Cheap to pickle (the files are opened again at the first read) and safe to read from many threads.
    """

    def __init__(self, directory: pathlib.Path, name: str, split: str):
        builder = tfds.builder_from_directory(directory)
        index = builder.info.metadata['videos']
        if split not in index:
            raise ValueError(f"dataset '{name}' has no split '{split}': it has {', '.join(index)}")
        if not index[split]['label']:
            raise ValueError(
                f"split '{split}' of dataset '{name}' is empty: see {directory / 'skipped.tsv'} for why"
            )
        self.name, self.split = name, split
        self.class_names = list(builder.info.features['label'].names)
        self.labels = np.array(index[split]['label'], np.int32)
        self.video_ids = list(index[split]['video_id'])
        self.num_frames = np.array(index[split]['num_frames'], np.int32)
        metadata = builder.info.metadata
        self.settings, self.expected = dict(metadata['settings']), (metadata.get('expected') or {}).get(split)
        self.made_with = dict(metadata.get('made_with') or {})
        self.num_bytes = int(builder.info.splits[split].num_bytes)
        self._directory, self._source, self._lock = directory, None, threading.Lock()

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f'VideoDataset({self.name}, {self.split}, {len(self)} videos)'

    def read(self, position: int) -> dict:
        """The record at `position` (0 to N - 1): the fields of data/records.py, `frames` a list of JPEG bytes.

        Raises:
          OSError: the files cannot be read, or are more than may be open at once.
        """
        if not 0 <= position < len(self):
            raise IndexError(
                f'position {position} is outside split {self.split!r} of {self.name}, '
                f'which has {len(self)} videos'
            )
        try:
            with self._lock:
                if self._source is None:
                    check_reader_threads()
                    self._source = tfds.builder_from_directory(self._directory).as_data_source(self.split)
            record = self._source[int(position)]
        except RuntimeError as error:  # how the reader of the files, which is C++ code, says everything
            raise OSError(
                f'{self._directory} cannot be read ({" ".join(str(error).split())[:200]}): see what is lost with '
                f'python -m fsar_jax.data.verify --dataset={self.name}; where too many files are open, raise ulimit -n'
            ) from None
        record['frames'] = list(record['frames'])
        record['frame_index'] = np.array(record['frame_index'], np.int32)
        record['video_id'] = record['video_id'].decode()
        return record

    def lost_files(self) -> list[str]:
        """The split's record files that are not there or do not hold the records that they should, with the reason; opens each."""
        from array_record.python import array_record_module  # has no wheel for some platforms

        check_reader_threads()

        split, lost = tfds.builder_from_directory(self._directory).info.splits[self.split], []
        for path, count in zip(split.filepaths, split.shard_lengths):
            path = pathlib.Path(path)
            if not path.is_file():
                lost.append(f'{path.name} is not there')
                continue
            try:
                reader = array_record_module.ArrayRecordReader(str(path))
                found = reader.num_records()
                reader.close()
            except (RuntimeError, ValueError) as error:
                lost.append(f'{path.name} cannot be read ({" ".join(str(error).split())[:100]})')
                continue
            if found != count:
                lost.append(f'{path.name} holds {found} records, not {count}')
        return lost

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key not in ('_source', '_lock')}

    def __setstate__(self, state):
        self.__dict__.update(state, _source=None, _lock=threading.Lock())


def open_dataset(name: str, data_dir: str | pathlib.Path, split: str) -> VideoDataset:
    """Opens a split of a built dataset.

    Args:
      name: 'synthetic_actions/misaligned', 'video_folder/<name>' or 'ucf101_arn': a directory in data_dir.
      split: 'train', 'val' or 'test'.

    Raises:
      FileNotFoundError: not built; says how to build it.
      ValueError: the split does not exist or is empty.
    """
    directory = version_directory(name, data_dir)
    if directory is None:
        videos = '' if name.split('/')[0] == 'synthetic_actions' else ' --videos=FOLDER'
        raise FileNotFoundError(
            f"dataset '{name}' is not in {data_dir}: build it with "
            f'python -m fsar_jax.data.build --dataset={name} --dir={data_dir}{videos}'
        )
    return VideoDataset(directory, name, split)


def videos_present(dataset) -> dict:
    """{'present': videos, 'classes': that have one, 'expected', 'expected_classes': of a complete copy or None, 'hash': SHA-256 of
    the list of videos} of an open split.

    The hash is over the lines `<video id>\\n` in the order of the records. For a complete copy of a public benchmark, that
    is the SHA-256 of its published list file.
    """
    dataset = _all_videos(dataset)
    expected = getattr(dataset, 'expected', None)
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


def content_hash(dataset) -> str:
    """SHA-256, hexadecimal, of what an open split holds, wherever it lies: ids, classes and frame counts of its videos, how
    and with which decoder their records were made, and how many bytes these take.

    Two copies of one build have the same; other pixels under the same ids have another.
    """
    dataset = _all_videos(dataset)
    dataset, held = _all_videos(dataset), {}
    for key in ('video_ids', 'labels', 'class_names', 'num_frames', 'settings', 'made_with', 'num_bytes'):
        value = getattr(dataset, key, None)  # of a dataset in memory, what it has
        held[key] = value.tolist() if isinstance(value, np.ndarray) else value
    return hashlib.sha256(json.dumps(held, sort_keys=True, default=str).encode()).hexdigest()


def _all_videos(dataset):
    """The opened split behind a view of those videos that are long enough."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset


def version_directory(name: str, data_dir: str | pathlib.Path) -> pathlib.Path | None:
    """The directory of the newest finished build, None when there is none."""
    versions = []
    for path in (pathlib.Path(data_dir) / name).glob('*.*.*/dataset_info.json'):
        if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name):
            versions.append((tuple(map(int, path.parent.name.split('.'))), path.parent))
    return max(versions)[1] if versions else None
