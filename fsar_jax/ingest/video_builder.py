"""The base of all builders: turns a list of videos into shards of records.

A builder says which videos there are (`list_videos`) and how one of them becomes a record
(`record_maker`); the rest is here. Videos go through one pool of processes (workers.py), in order,
and each record is written to its shard at once, so that memory holds a few records and the index.
Which video goes into which shard depends only on the list and the settings, never on timing: shards
may be built in any order, on any machine, and again after a kill (shards.py). A video that gives no
record is not an error: it is listed in skipped.tsv, in the metadata, and in the table at the end.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer
from tqdm import tqdm

from fsar_jax.checksums import renew_sum, write_sums
from fsar_jax.data.data_source import partial_sources
from fsar_jax.data.frames import codec_versions
from fsar_jax.data.frames_feature import stored_features
from fsar_jax.ingest.frame_files import bytes_of, is_decoded
from fsar_jax.ingest.records import RecordSettings, record_features
from fsar_jax.ingest.shards import (
    Shard,
    check_can_write,
    cut_into_shards,
    read_note,
    remove_all_but,
    remove_notes,
    stop_writing,
    write_shard,
)
from fsar_jax.ingest.skipped import Skipped, is_utf8, skipped_table, write_skipped
from fsar_jax.ingest.video_files import decoder_generation, decoder_versions
from fsar_jax.ingest.workers import ordered_pool
from fsar_jax.machine import start_reader_threads, usable_cores
from fsar_jax.messages import printable
from fsar_jax.stopping import finish_first

FILE_FORMAT = 'array_record'  # tfds' default needs TensorFlow
SHARD_BYTES = 250e6
AGAIN = ('unreadable', 'ended the process')  # files with these reasons are tried again


class NoVideoError(ValueError):
    """Every video of every split was skipped."""


@dataclasses.dataclass(frozen=True)
class VideoSource:
    """A video to be ingested.

    label: index into the class names.
    origin: what the record maker needs (a path, a seed); must pickle. None: the video is listed,
        but there is no such file.
    name: of the file, for the table of skipped files.
    """

    video_id: str
    label: int
    origin: Any
    name: str


@dataclasses.dataclass(frozen=True)
class VideoList:
    """The videos of a dataset.

    class_names: a label is an index into it.
    splits: {split: videos}.
    skipped: files that are not videos at all.
    expected: what a complete copy holds, {split: {'videos': count, 'hash': of all video ids or
        None, 'classes': {class: count}}}; None where that is not known.
    notes: lines for the end of the build.
    """

    class_names: list[str]
    splits: dict[str, list[VideoSource]]
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    expected: dict[str, dict] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False, kw_only=True)
class VideoConfig(tfds.core.BuilderConfig):
    """How files become records; see fsar_jax.ingest.records.RecordSettings."""

    short_side: int = 256
    max_frames: int = 64
    min_frames: int = 8
    jpeg_quality: int = 95
    square_pixels: int = 1
    videos_per_shard: int = 0  # 0: about SHARD_BYTES; decides files, not records

    def record_settings(self) -> RecordSettings:
        return RecordSettings(
            **{
                field.name: getattr(self, field.name)
                for field in dataclasses.fields(RecordSettings)
            }
        )

    def settings(self) -> dict[str, Any]:
        """The values that decide what the records hold; JSON. The metadata keep them."""
        return dataclasses.asdict(self.record_settings())


class VideoBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders; a subclass gives VERSION, `list_videos` and `record_maker`.

    `plan`, `write_shards` and `finish` are the steps of a build that may be killed, and spread over
    machines; `download_and_prepare` does all three. Afterwards `skipped` lists what was left out.

    USUAL_FRAMES: how many frames a video usually has: where all are kept, it decides how many
    videos make a shard.
    VIDEOS_FIELD: the field of its config that names the folder of the videos; None where it reads
    none.

    Args:
      config: a VideoConfig, or the name of one of BUILDER_CONFIGS.
      videos: the folder of the videos, in place of the config's.
      processes: how many decode; 0 decodes in this process; None: one per usable core.
      strict: the first file that cannot be used is a ValueError instead of a line in the table.
      file_format: one of shards.FILE_FORMATS; None for that of the build, else array_record.
      flags: {flag: value} of `python -m fsar_jax.build` that the config has its values from. The
        metadata keep them, for whoever must build the same again.
    """

    USUAL_FRAMES = 300
    VIDEOS_FIELD: str | None = None

    def __init__(
        self,
        *,
        videos: str | os.PathLike | None = None,
        processes: int | None = None,
        strict: bool = False,
        file_format: Any = None,
        flags: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        if videos is not None and self.VIDEOS_FIELD is None:
            raise ValueError(f'{self.name} reads no videos: leave out videos=')
        self._videos = None if videos is None else os.fspath(videos)
        super().__init__(file_format=file_format, **kwargs)
        if file_format is None and not (self.data_path / 'dataset_info.json').exists():
            self.info.set_file_format(FILE_FORMAT, override=True)
        # What tfds does not think of when it copies a builder.
        self._original_state |= {
            'videos': self._videos,
            'processes': processes,
            'strict': strict,
            'file_format': self.info.file_format,
        }
        self.processes = usable_cores() if processes is None else processes
        self.strict = strict
        self.flags = dict(flags or {})
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []
        self.downloads: Any = None

    def list_videos(self) -> VideoList:
        """All videos, in the order of the records; the same on every machine. `self.downloads` is
        tfds' download manager."""
        raise NotImplementedError

    def record_maker(self) -> Callable[[VideoSource], dict]:
        """A function that makes the record of a video, or raises VideoError; it must pickle."""
        raise NotImplementedError

    def truth_features(self) -> dict[str, tfds.features.FeatureConnector]:
        """Features that the records have in addition to the common ones."""
        return {}

    def plan(self, downloads: Any = None, videos_per_split: int | None = None) -> list[Shard]:
        """Lists the videos and cuts the list into shards. Skips the second of two videos with the
        same id.

        Args:
          videos_per_split: at most so many of each split, the first; None: all.

        Raises:
          ValueError: with `strict`, a video cannot be used; or the file format cannot be written.
        """
        check_can_write(self.info.file_format.value)
        self.downloads = downloads
        videos, config = self.list_videos(), self.builder_config
        # Not those of a dataset that is replaced, nor of an earlier try with other classes.
        self.info.features = record_features(**self.truth_features())
        self.info.features['label'].names = videos.class_names
        self.notes = list(videos.notes)
        if config.videos_per_shard < 0:
            raise ValueError(
                f'videos_per_shard={config.videos_per_shard} must be at least 1, or 0 to choose it'
            )
        splits, self.skipped = _with_distinct_ids(videos)
        splits = {split: sources[:videos_per_split] for split, sources in splits.items()}
        if self.strict:
            self._refuse_skipped(videos.class_names, splits)
        self.info.metadata.update(
            videos={split: {'video_id': [], 'label': [], 'num_frames': []} for split in splits},
            settings=config.settings(),
            flags=self.flags,
            failed={skip.path: skip.reason for skip in self.skipped},
            expected=videos.expected,
        )
        decides = {
            'settings': config.settings(),
            'classes': videos.class_names,
            'version': str(self.version),
            'config': config.name,
        }
        length = config.videos_per_shard or videos_per_shard(
            config.record_settings(), self.USUAL_FRAMES
        )
        return cut_into_shards(self.name, splits, length, decides, self.info.file_format.value)

    def manual_dir(self) -> pathlib.Path | None:
        """The folder of tfds' download manager for what users put there; None where it does not
        exist or is empty."""
        try:
            return pathlib.Path(self.downloads.manual_dir)
        except AssertionError:  # tfds' error for such a folder
            return None

    def _refuse_skipped(self, class_names, splits):
        """ValueError for the first file that cannot be used."""
        missing = (
            Skipped(split, class_names[source.label], source.name, 'missing')
            for split, sources in splits.items()
            for source in sources
            if source.origin is None
        )
        for skip in itertools.chain(self.skipped, missing):
            raise _strict_error(skip)

    def download_manager(
        self, folder: str | os.PathLike, manual_dir: str | os.PathLike | None = None
    ) -> Any:
        """tfds' download manager, which keeps files in `folder` and checks them by the package's
        checksums.tsv.

        manual_dir: where it looks for files before it downloads them; None: `folder`/manual.
        """
        folder = pathlib.Path(folder)
        return tfds.download.DownloadManager(
            download_dir=folder,
            extract_dir=folder / 'extracted',
            manual_dir=manual_dir or folder / 'manual',
            manual_dir_instructions=self.MANUAL_DOWNLOAD_INSTRUCTIONS,
            url_infos=self.url_infos,
            dataset_name=self.name,
        )

    def write_shards(
        self, shards: list[Shard], folder: str | os.PathLike, overwrite: bool = False
    ) -> int:
        """Writes those of `shards` that are not finished yet to `folder`; returns how many.

        overwrite: also write those again that another decoder has finished.

        Raises:
          DiskFullError: finished shards are kept, of the others nothing is left.
          OSError: too little memory, or too few threads.
          ValueError: another decoder has finished some; with `strict`, a video cannot be used.
        """
        start_reader_threads()  # each finished shard is opened; better now than after the first
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        to_do = [shard for shard in shards if _is_to_do(shard, read_note(folder, shard), overwrite)]
        serialise = example_serializer.ExampleSerializer(self.info.features.get_serialized_info())
        count, left = (sum(len(shard.sources) for shard in part) for part in (shards, to_do))
        with (
            finish_first(_end_line),
            finish_first(lambda: stop_writing(folder)),
            ordered_pool(min(self.processes, left), self.record_maker()) as run,
            tqdm(
                total=count,
                initial=count - left,
                desc=self.info.full_name,
                unit=' videos',
                mininterval=0.5 if sys.stderr.isatty() else 15,
            ) as progress,
        ):
            # One stream over all shards, so that no process waits where one shard ends.
            stream = run(source for shard in to_do for source in shard.sources)
            for shard in to_do:
                videos: dict[str, list] = {'video_id': [], 'label': [], 'num_frames': []}
                note = {
                    'videos': videos,
                    'skipped': [],
                    'source_bytes': _source_bytes(shard),
                    'made_with': _made_with(shard),
                }
                records = self._records(shard, stream, progress, note)
                # Otherwise protobuf orders maps by a hash that differs from process to process.
                examples = map(serialise.get_tf_example, records)
                encoded = (example.SerializeToString(deterministic=True) for example in examples)
                write_shard(folder, shard, encoded, note)
        return len(to_do)

    def _records(self, shard, stream, progress, note):
        """Yields the records of the videos that give one, in order, and notes every video in
        `note`, read or skipped."""
        names, index = self.info.features['label'].names, note['videos']
        # `stream` is last, so that zip takes nothing from it after the shard's last video.
        for source, (record, error) in zip(shard.sources, stream):
            progress.update()
            if error is not None:
                skip = Skipped(
                    shard.split, names[source.label], source.name, error.reason, error.detail
                )
                if self.strict:
                    raise _strict_error(skip)
                note['skipped'].append([source.video_id, *dataclasses.astuple(skip)])
                continue
            index['video_id'].append(source.video_id)
            index['label'].append(source.label)
            index['num_frames'].append(record['num_frames'])
            yield self.info.features.encode_example(record)

    def finish(self, shards: list[Shard], folder: str | os.PathLike) -> None:
        """Writes the metadata, skipped.tsv and SHA256SUMS to `folder`, which must hold all shards,
        and removes other shards.

        Afterwards `folder` holds a dataset, and the notes of the shards (shards.remove_notes).

        Raises:
          ValueError: shards are missing, were made of other files, or by two decoders; with
            `strict`, a video was skipped; not a single video is usable.
        """
        folder, metadata = pathlib.Path(folder), self.info.metadata
        notes = _finished_notes(folder, shards)
        lengths: dict[str, list[int]] = {split: [] for split in metadata['videos']}
        sizes: collections.Counter[str] = collections.Counter()
        for shard, note in zip(shards, notes):
            if self.strict and note['skipped']:
                raise _strict_error(Skipped(*note['skipped'][0][1:]))
            lengths[shard.split].append(len(note['videos']['label']))
            sizes[shard.split] += note['record_bytes']
            for key, values in note['videos'].items():
                metadata['videos'][shard.split][key] += values
            for video_id, *skip in note['skipped']:
                self.skipped.append(Skipped(*skip))
                metadata['failed'][video_id] = self.skipped[-1].reason
        metadata['made_with'] = _one_decoder([note['made_with'] for note in notes])
        if not any(map(sum, lengths.values())):
            raise NoVideoError(
                f'no video could be used: all {len(self.skipped)} were skipped, the table says why'
            )
        self.skipped.sort(key=lambda skip: (skip.reason, skip.split, skip.class_name, skip.name))
        splits = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths[split],
                num_bytes=sizes[split],
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=self.data_path,
                    dataset_name=self.name,
                    split=split,
                    filetype_suffix=self.info.file_format.file_suffix,
                ),
            )
            for split in lengths
            if lengths[split]
        ]
        self.info.set_splits(tfds.core.splits.SplitDict(splits))
        remove_all_but(folder, shards)
        write_skipped(folder / 'skipped.tsv', self.skipped)
        self.info.write_to_directory(folder)
        # Notes of older versions have no checksum.
        sums = {shard.file_name: note.get('sha256') for shard, note in zip(shards, notes)}
        write_sums(folder, sums)

    def collect_skipped(self, shards: list[Shard], folder: str | os.PathLike) -> None:
        """Adds to `skipped` what those of `shards` that are finished left out: for the table of an
        unfinished build."""
        for shard in shards:
            note = read_note(pathlib.Path(folder), shard)
            self.skipped += [Skipped(*skip) for _, *skip in note['skipped']] if note else []

    def _info(self):
        # A build keeps its own features: older versions stored fewer.
        if (self.data_path / 'features.json').exists():
            features = stored_features(self.data_path)
        else:
            features = record_features(**self.truth_features())
        return _Info(
            builder=self,
            description=self.builder_config.description or type(self).__doc__,
            features=features,
            supervised_keys=('frames', 'label'),
            citation=self.get_metadata().citation,
            metadata=tfds.core.MetadataDict(),
        )

    def download_and_prepare(self, *, download_config: Any = None, **kwargs: Any) -> None:
        """As tfds does it. A dataset that `download_config` says to replace, which tfds would
        delete first, is there again if the build fails, or at the next call if it is killed."""
        folder = pathlib.Path(self.data_path)
        old = folder.with_name(f'.{folder.name}.replaced')
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        if download_config and download_config.download_mode.overwrite_dataset and folder.exists():
            folder.rename(old)
        try:
            super().download_and_prepare(download_config=download_config, **kwargs)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
                self.info.features = stored_features(folder)
                self.info.metadata.clear()
                self.info.read_from_directory(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def as_data_source(self, split=None, *, decoders=None, **kwargs):
        if isinstance(decoders, tfds.decode.PartialDecoding):
            # tfds does this only in as_dataset.
            return partial_sources(super().as_data_source, self.info.features, split, decoders)
        return super().as_data_source(split, decoders=decoders, **kwargs)

    def _create_builder_config(self, builder_config, version):
        # tfds refuses other values under the name of a listed config. Here they are allowed: the
        # metadata keep the values.
        if not isinstance(builder_config, tfds.core.BuilderConfig):
            builder_config = self._named_config(builder_config, version)
        if self._videos is None:
            return builder_config
        return dataclasses.replace(builder_config, **{self.VIDEOS_FIELD: self._videos})

    def _named_config(self, name, version):
        """The config of a name; the default one for None."""
        return super()._create_builder_config(name, version)

    def _post_download_and_prepare_hook(self):
        write_sums(self.data_path)  # tfds has just written dataset_info.json again

    def _download_and_prepare(self, dl_manager, download_config=None):
        shards = self.plan(dl_manager, download_config and download_config.max_examples_per_split)
        self.write_shards(shards, self.data_path)
        try:
            self.finish(shards, self.data_path)
        finally:
            if self.skipped:
                print(skipped_table(self.skipped))
        remove_notes(self.data_path)

    def _update_dataset_info(self):
        super()._update_dataset_info()
        renew_sum(pathlib.Path(self.data_path), 'dataset_info.json')

    def _shard_iterators_per_split(self, dl_manager):
        raise NotImplementedError('shards are written by write_shards')


class _Info(tfds.core.DatasetInfo):
    """What tfds knows of a dataset, whose features a new build may change."""

    @property
    def features(self):
        return self._features

    @features.setter
    def features(self, features):
        self._features = features

    def initialize_from_bucket(self):
        """These datasets are not in tfds' bucket; its look-up leaves a temporary folder behind."""


class AnyName(dict):
    """`builder_configs` of a builder whose configs are named by who builds: tfds asks whether a
    name is in it."""

    def __contains__(self, name: object) -> bool:
        return True


def _end_line():
    """Ends the line of the progress bar, so that the message about a signal has its own. On a
    terminal that is done already."""
    if not sys.stderr.isatty():
        os.write(2, b'\n')


def _strict_error(skip):
    return ValueError(
        f'{skip.path} cannot be used: {skip.reason}{skip.detail and f" ({skip.detail})"}; without '
        '--strict the build goes on without it'
    )


def _with_distinct_ids(videos: VideoList):
    """({split: videos}, skipped): without those whose id is not text, or that of another video."""
    splits: dict[str, list[VideoSource]] = {split: [] for split in videos.splits}
    skipped = list(videos.skipped)
    first: dict[str, str] = {}  # id -> name of its video
    why: tuple[str, ...]
    for split, sources in videos.splits.items():
        for source in sources:
            if not is_utf8(source.video_id):
                why = ('name is not UTF-8',)
            elif source.video_id in first:
                why = ('duplicate id', f'as {first[source.video_id]}')
            else:
                first[source.video_id] = source.name
                splits[split].append(source)
                continue
            skipped.append(Skipped(split, videos.class_names[source.label], source.name, *why))
    return splits, skipped


def _finished_notes(folder, shards):
    """The notes of all shards; ValueError where one is missing or does not fit."""
    notes = [read_note(folder, shard) for shard in shards]
    for shard, note in zip(shards, notes):
        if note is not None and note.get('source_bytes') != _source_bytes(shard):
            raise ValueError(
                f'{shard.file_name} was made from other files than those that are there now: give '
                'the command without --finish to build such shards again'
            )
        if note is not None and 'made_with' not in note:
            raise ValueError(
                f'{shard.file_name} does not say which decoder made its pixels (an older version '
                'wrote it): give the command without --finish to build such shards again'
            )
    absent = [shard for shard, note in zip(shards, notes) if note is None]
    if absent:
        raise ValueError(
            f'{len(absent)} of {len(shards)} shards are not in {printable(folder, 1000)}, the '
            f'first is {absent[0].file_name}: give the command without --shards to build what is '
            'missing'
        )
    return notes


def _is_to_do(shard, note, overwrite):
    """Whether to write a shard: it is not finished, it skipped a video that may be readable now
    (with `overwrite` any video), or its files have other sizes since.

    Somebody may have replaced a broken file, or named another copy of the dataset: a build from two
    copies would be like neither. The same is true of two decoders, but only the user knows which of
    them is wanted.

    Raises:
      ValueError: another decoder has finished it, and `overwrite` is not given.
    """
    installed = decoder_generation()
    decoder = note and note.get('made_with', {}).get('decoder')
    if decoder not in (None, installed) and not overwrite:
        raise ValueError(
            f'this build was begun with {printable(decoder)}, and {installed} is installed here, '
            'which makes other pixels: go on with those versions, or give --overwrite to build '
            'again what they made'
        )
    return (
        note is None
        or 'made_with' not in note  # an older version wrote it
        or decoder not in (None, installed)
        or any(overwrite or reason in AGAIN for _, _, _, _, reason, _ in note['skipped'])
        or note.get('source_bytes') != _source_bytes(shard)
    )


def _made_with(shard):
    """What makes the pixels of a shard: {'decoder': None where its videos are JPEG files, package:
    version, …}."""
    if not any(is_decoded(source.origin) for source in shard.sources):
        return {'decoder': None} | codec_versions()
    return {'decoder': decoder_generation()} | decoder_versions() | codec_versions()


def _one_decoder(made_with):
    """What all shards were made with, {'decoder': …, package: version, …}. Where versions differ
    within a generation, all are listed: '19.0.0, 19.0.2'."""
    decoders = collections.Counter(made['decoder'] for made in made_with if made['decoder'])
    if len(decoders) > 1:
        raise ValueError(
            ', '.join(
                f'{count} shards were made with {printable(name)}'
                for name, count in decoders.most_common()
            )
            + ', and their pixels differ: give the command with --overwrite and without --finish '
            'where the versions that you want are installed'
        )
    versions = collections.defaultdict(set)
    for name, version in itertools.chain.from_iterable(made.items() for made in made_with):
        versions[name].add(version)
    return {name: ', '.join(sorted(filter(None, all_))) or None for name, all_ in versions.items()}


def _source_bytes(shard):
    return sum(bytes_of(source.origin) for source in shard.sources)


def videos_per_shard(
    settings: RecordSettings, usual_frames: int = VideoBuilder.USUAL_FRAMES
) -> int:
    """How many videos make a shard of about SHARD_BYTES. Depends only on the settings."""
    short_side, frames = settings.short_side or 720, settings.max_frames or usual_frames
    # JPEG at quality 95: a third of a byte per pixel.
    bytes_per_frame = 0.33 * short_side * short_side * 4 / 3
    return max(1, int(SHARD_BYTES / (bytes_per_frame * frames)))
