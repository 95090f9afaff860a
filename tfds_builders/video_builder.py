"""From a list of videos to ArrayRecord shards: the base of all builders.

A builder says which videos there are (`list_videos`) and how one of them becomes a record (`record_maker`);
everything else is here. Videos go through one pool of processes, in order, a shard at a time, so that memory holds
one shard and the index. Which video lands in which shard depends on the list and the settings only, never on
timing. A video that gives no record is not an error: it is listed in skipped.tsv, in the metadata, and in the table
at the end.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import writer
from tqdm import tqdm

from fsar_jax.data.records import RecordSettings, record_features
from fsar_jax.data.video_files import VideoError

SHARD_BYTES = 250e6


@dataclasses.dataclass(frozen=True)
class VideoSource:
    """A video to be ingested. `origin`: what the record maker needs to make it (a path, a seed); must pickle.

    name: of the file, for the table of those that failed.
    """

    video_id: str
    label: int
    origin: Any
    name: str


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A file (or folder) that is not in the dataset, and why; `class_name` and `split` may be empty."""

    split: str
    class_name: str
    name: str
    reason: str
    detail: str = ''

    @property
    def path(self) -> str:
        return '/'.join(filter(None, (self.split, self.class_name, self.name)))


@dataclasses.dataclass(frozen=True)
class VideoList:
    """class_names: a label is a place in it.  splits: {split: videos}.  skipped: what is no video at all."""

    class_names: list[str]
    splits: dict[str, list[VideoSource]]
    skipped: list[Skipped] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False, kw_only=True)
class VideoConfig(tfds.core.BuilderConfig):
    """How files become records; see fsar_jax.data.records.RecordSettings."""

    short_side: int = 256
    max_frames: int = 64
    min_frames: int = 8
    jpeg_quality: int = 95

    def record_settings(self) -> RecordSettings:
        return RecordSettings(self.short_side, self.max_frames, self.min_frames, self.jpeg_quality)

    def settings(self) -> dict[str, Any]:
        """The values that decide what the records hold, kept in the metadata; JSON."""
        return dataclasses.asdict(self.record_settings())


class UncompressedWriter(writer.ExampleWriter):
    """ArrayRecord without compression: JPEG does not shrink, and reading and writing are twice as fast."""

    def write(self, path, examples):
        records = array_record_module.ArrayRecordWriter(os.fspath(path), 'group_size:1,uncompressed')
        for _, record in examples:
            records.write(record)
        records.close()


class VideoBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base of the builders; a subclass gives VERSION, `list_videos` and `record_maker`.

    Args:
      config: a VideoConfig, or the name of one of BUILDER_CONFIGS.
      processes: that decode; 0 decodes in this process; None: one per core.
      strict: the first file that cannot be used is a ValueError instead of a line in the table.

    After `download_and_prepare`, `skipped` is the list of what was left out.
    """

    def __init__(self, *, processes: int | None = None, strict: bool = False, file_format=None, **kwargs):
        # tfds forgets the format when it copies a builder, and its default needs TensorFlow.
        super().__init__(file_format=file_format or 'array_record', **kwargs)
        self.processes = (os.cpu_count() or 1) if processes is None else processes
        self.strict = strict
        self.skipped: list[Skipped] = []

    def list_videos(self) -> VideoList:
        """All videos, in the order of the records; the same on every machine."""
        raise NotImplementedError

    def record_maker(self) -> Callable[[VideoSource], dict]:
        """A function that pickles and makes the record of a video, or raises VideoError."""
        raise NotImplementedError

    def truth_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Features that the records have besides the common ones."""
        return {}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description or type(self).__doc__,
            features=record_features(**self.truth_features()),
            metadata=tfds.core.MetadataDict(),
        )

    def _create_builder_config(self, builder_config, version):
        # tfds refuses other values under the name of a listed config; here the metadata tell them apart.
        if isinstance(builder_config, tfds.core.BuilderConfig):
            return builder_config
        return super()._create_builder_config(builder_config, version)

    def _log_download_bytes(self):
        pass  # tfds' announcements of downloads, of which there are none

    _log_download_done = _log_download_bytes

    def _example_writer(self):
        return UncompressedWriter(file_format=self.info.file_format)

    def _download_and_prepare(self, dl_manager, download_config=None):
        with contextlib.ExitStack() as self._resources:
            super()._download_and_prepare(dl_manager, download_config)
        if not any(split.num_examples for split in self.info.splits.values()):
            raise ValueError('no video could be used\n' + skipped_table(self.skipped))
        self.skipped.sort(key=lambda skip: (skip.reason, skip.split, skip.class_name, skip.name))
        write_skipped(os.path.join(self.data_dir, 'skipped.tsv'), self.skipped)

    def _shard_iterators_per_split(self, dl_manager):
        videos = self.list_videos()
        self.info.features['label'].names = videos.class_names
        self.info.metadata.update(
            videos={split: {'video_id': [], 'label': [], 'num_frames': []} for split in videos.splits},
            settings=self.builder_config.settings(),
            failed={},
        )
        self.skipped = []
        for skip in videos.skipped:
            self._skip(skip, skip.path)
        count = sum(map(len, videos.splits.values()))
        run = self._resources.enter_context(_ordered_pool(min(self.processes, count), self.record_maker()))
        progress = self._resources.enter_context(
            tqdm(
                total=count,
                desc=self.info.full_name,
                unit=' videos',
                mininterval=0.5 if sys.stderr.isatty() else 15,
            )
        )
        length = videos_per_shard(self.builder_config.record_settings())
        return {
            split: [
                functools.partial(self._shard, run, progress, split, sources[start : start + length])
                for start in range(0, len(sources), length)
            ]
            for split, sources in videos.splits.items()
            if sources
        }

    def _shard(self, run, progress, split, sources):
        """Yields (video_id, record) of the videos that give one, in order, and keeps the index."""
        index = self.info.metadata['videos'][split]
        for source, (record, error) in zip(sources, run(sources)):
            progress.update()
            if error is not None:
                class_name = self.info.features['label'].names[source.label]
                self._skip(
                    Skipped(split, class_name, source.name, error.reason, error.detail), source.video_id
                )
                continue
            index['video_id'].append(source.video_id)
            index['label'].append(source.label)
            index['num_frames'].append(record['num_frames'])
            yield source.video_id, record

    def _skip(self, skip, video_id):
        if self.strict:
            raise ValueError(
                f'{skip.path} cannot be used: {skip.reason}{skip.detail and f" ({skip.detail})"}; '
                'without --strict the build goes on without it'
            )
        self.skipped.append(skip)
        self.info.metadata['failed'][video_id] = skip.reason


def videos_per_shard(settings: RecordSettings) -> int:
    """How many videos make a shard of about SHARD_BYTES, a function of the settings alone."""
    short_side, frames = settings.short_side or 720, settings.max_frames or 300
    bytes_per_frame = (
        0.33 * short_side * short_side * 4 / 3
    )  # JPEG at quality 95: a third of a byte per pixel
    return max(1, int(SHARD_BYTES / (bytes_per_frame * frames)))


def write_skipped(path: str | os.PathLike, skipped: list[Skipped]) -> None:
    """One line per file: split, class, name, reason, detail; tabs between, a header line first."""
    with open(path, 'w', encoding='utf-8', newline='') as file:
        rows = csv.writer(file, delimiter='\t', lineterminator='\n')
        rows.writerow(('split', 'class', 'name', 'reason', 'detail'))
        rows.writerows(dataclasses.astuple(skip) for skip in skipped)


def skipped_table(skipped: list[Skipped], limit: int = 60) -> str:
    """The table at the end of a build: how many by reason and class, then each file, `limit` at most."""
    if not skipped:
        return 'nothing was skipped'
    places = collections.Counter(
        (skip.reason, '/'.join(filter(None, (skip.split, skip.class_name)))) for skip in skipped
    )
    counts = [('count', 'reason', 'class')] + [
        (str(count), *place) for place, count in sorted(places.items())
    ]
    files = [('reason', 'file', 'detail')]
    files += [(skip.reason, skip.path, skip.detail) for skip in skipped]
    lines = [f'skipped: {len(skipped)}', *_columns(counts), '', *_columns(files[: limit + 1])]
    if len(skipped) > limit:
        lines.append(f'  ... and {len(skipped) - limit} more, all of them in skipped.tsv')
    return '\n'.join(lines)


def _columns(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  ' + '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _attempt(make_record, source):
    """(record, None) or (None, VideoError)."""
    try:
        return make_record(source), None
    except VideoError as error:
        return None, error


@contextlib.contextmanager
def _ordered_pool(processes: int, make_record) -> Iterator[Callable]:
    """A function that maps sources to (record, error): lazily, in order, a few videos ahead."""
    attempt = functools.partial(_attempt, make_record)
    if not processes:
        yield functools.partial(map, attempt)
        return
    # An executor, not multiprocessing.Pool: when a decoder crashes or memory runs out, Pool waits for ever.
    pool = concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context('spawn'), _start_worker
    )

    def run(sources):
        pending = collections.deque()
        for source in sources:
            pending.append((source, pool.submit(attempt, source)))
            if len(pending) >= 4 * processes:
                yield result(*pending.popleft())
        while pending:
            yield result(*pending.popleft())

    def result(source, future):
        try:
            return future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise ChildProcessError(
                f'a worker process died while at or near {source.video_id}: out of memory, or a file that '
                'crashes the decoder; use fewer --processes, or 0 to see which'
            ) from None

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends the workers
    cv2.setNumThreads(1)  # there is a process for each core already
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """Workers outlive a killed parent otherwise."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
