"""Features of a frozen backbone that `python -m fsar_jax.extract` has stored in place of frames.

A folder of features holds features.json, which describes them and lists the clips, and for each
split some files such as train-00000-of-00004.npy: an array [rows, C] of pooled features, or [rows,
h, w, C] of maps. A clip has a row for every view and stored frame: its view 0 in the order of
the frames, then its view 1, and so on; the clips follow in the order of the list. The files are
mapped into memory, so an episode reads only the rows that it uses, and what was read once stays in
the memory that is free. Any other program reads them with `numpy.load`; a file of bfloat16 holds
its bits as uint16.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import re
import threading
from typing import NamedTuple

import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from fsar_jax.data.dataset import EmptySplitError, NoSplitError, Videos
from fsar_jax.data.episodes import jitter_generator, jitter_seed
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.files import read_json
from fsar_jax.messages import listed, printable

HEADER = 'features.json'
DTYPES: dict[
    str, tuple[np.dtype, np.dtype]
] = {  # of the features: (as numpy computes with it, as it is in the file)
    'float16': (np.dtype(np.float16), np.dtype(np.float16)),
    'bfloat16': (np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16)),
    'float32': (np.dtype(np.float32), np.dtype(np.float32)),
}


class Shard(NamedTuple):
    """One file of a split: `videos` clips from position `first` on, which have `rows` rows."""

    file: str
    first: int
    videos: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Header:
    """The content of features.json.

    Attributes:
      extractor: what made the features: {'backbone': its name and settings, 'params_hash': SHA-256
        of its parameters and batch statistics, 'compute_dtype', 'frames': {'resize', 'image_size',
        'crop', 'flip', 'views'}, 'features': {'kind': 'pooled' or 'maps', 'shape': [h, w, C],
        'dtype'}}.
      dataset: name of the dataset, with its version.
      class_names, settings, made_with: of the dataset, see `Videos`.
      splits: {split: {'video_id', 'label', 'num_frames': lists, 'expected', 'content': content_hash
        of the dataset, 'shards': number of clips in each file}}.
      done: {file: SHA-256} of the files that are finished.
      made_by: {'fsar_jax': version, 'weights': as given, …}, which decides nothing.
    """

    extractor: dict
    dataset: str
    version: str
    class_names: list[str]
    settings: dict
    made_with: dict
    splits: dict[str, dict]
    done: dict[str, str]
    made_by: dict

    @property
    def views(self) -> int:
        return self.extractor['frames']['views']

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, C) of the maps that a model sees; pooled features are maps of one cell."""
        return tuple(self.extractor['features']['shape'])

    @property
    def row_shape(self) -> tuple[int, ...]:
        """As in the files: (C,) for pooled features, (h, w, C) for maps."""
        return self.shape[-1:] if self.extractor['features']['kind'] == 'pooled' else self.shape

    @property
    def dtypes(self) -> tuple[np.dtype, np.dtype]:
        return DTYPES[self.extractor['features']['dtype']]

    def shards(self, split: str) -> list[Shard]:
        """The files of a split, in order."""
        of = self.splits[split]
        return files_of(split, of['shards'], of['num_frames'], self.views)

    def all_shards(self) -> list[tuple[str, Shard]]:
        """(split, file) of all splits."""
        return [(split, shard) for split in self.splits for shard in self.shards(split)]

    def num_bytes(self, shards: list[Shard]) -> int:
        """Size of the features in these files."""
        row = int(np.prod(self.row_shape)) * self.dtypes[1].itemsize
        return row * sum(shard.rows for shard in shards)


def files_of(split: str, videos: list[int], num_frames: list[int], views: int) -> list[Shard]:
    """The files of a split, in order.

    Args:
      videos: number of clips in each file.
      num_frames: of each clip.
    """
    found, first = [], 0
    for number, count in enumerate(videos):
        file = f'{split}-{number:05d}-of-{len(videos):05d}.npy'
        found.append(Shard(file, first, count, sum(num_frames[first : first + count]) * views))
        first += count
    return found


def refuse_dataset(folder: pathlib.Path) -> None:
    """ValueError where the folder is a built dataset, which has a features.json of its own."""
    if (folder / 'dataset_info.json').exists():
        raise ValueError(
            f'{printable(folder, 1000)} is a built dataset: name a folder of features, which '
            'fsar_jax.extract makes'
        )


def read_header(folder: pathlib.Path) -> Header | None:
    """What features.json says; None where there is none.

    Raises:
      OSError, ValueError: it cannot be read, or is damaged; one line.
    """
    path = folder / HEADER
    if not path.exists():
        return None
    refuse_dataset(folder)
    advice = 'put back a copy of it, or extract the features again with --overwrite'
    content = read_json(path, advice)
    try:
        header = Header(**content)
        _check(header)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{printable(path, 1000)} does not describe features '
            f'({type(error).__name__}: {printable(error)}): {advice}'
        ) from None
    return header


def _check(header):
    """ValueError, KeyError, … unless the header is as the code above uses it."""
    _assert(re.fullmatch('[0-9a-f]{64}', header.extractor['params_hash']), 'params_hash')
    _assert(isinstance(header.extractor['backbone']['name'], str), 'backbone')
    _assert(header.extractor['features']['kind'] in ('pooled', 'maps'), 'kind')
    _assert(header.extractor['features']['dtype'] in DTYPES, 'dtype')
    is_count = lambda x, least=1: type(x) is int and x >= least
    _assert(len(header.shape) == 3 and all(map(is_count, header.shape)), 'shape')
    frames = header.extractor['frames']
    _assert(all(is_count(frames[key]) for key in ('resize', 'image_size', 'views')), 'frames')
    _assert(frames['crop'] in ('random', 'centre') and type(frames['flip']) is bool, 'crop, flip')
    _assert(isinstance(header.dataset, str) and isinstance(header.settings, dict), 'dataset')
    _assert(all(isinstance(name, str) for name in header.class_names), 'class_names')
    _assert(all(isinstance(x, str) for x in header.done.values()), 'done')
    for split, of in header.splits.items():
        count = len(of['video_id'])
        _assert(count == len(of['label']) == len(of['num_frames']) == sum(of['shards']), split)
        _assert(all(isinstance(x, str) for x in of['video_id']), f'{split} video_id')
        _assert(all(map(is_count, of['num_frames'])), f'{split} num_frames')
        _assert(all(map(is_count, of['shards'])), f'{split} shards')
        _assert(
            all(is_count(x, 0) and x < len(header.class_names) for x in of['label']),
            f'{split} label',
        )


def _assert(true, what):
    if not true:
        raise ValueError(f'{what} is not as it was written')


def npy_header(header: Header, shard: Shard) -> bytes:
    """What the .npy file begins with; its rows follow."""
    start = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(header.dtypes[1])
    shape = (shard.rows, *header.row_shape)
    np.lib.format.write_array_header_1_0(
        start, {'descr': descr, 'fortran_order': False, 'shape': shape}
    )
    return start.getvalue()


def is_whole(folder: pathlib.Path, header: Header, shard: Shard) -> bool:
    """Whether a file was finished and still has its size."""
    path, size = folder / shard.file, len(npy_header(header, shard)) + header.num_bytes([shard])
    return shard.file in header.done and path.is_file() and path.stat().st_size == size


def open_header(folder: str | os.PathLike) -> Header:
    """The header of a finished extraction, for config.data.features.

    Raises:
      FileNotFoundError, ValueError, OSError: there is none, it is not finished or damaged.
    """
    folder = pathlib.Path(folder)
    shown = f'config.data.features={printable(folder, 1000)}'
    header = read_header(folder)
    if header is None:
        raise FileNotFoundError(
            f'{shown} holds no {HEADER}: make it with python -m fsar_jax.extract --config=CONFIG '
            f'--dataset=NAME --dir={printable(folder, 1000)}'
        )
    lost = [shard.file for _, shard in header.all_shards() if not is_whole(folder, header, shard)]
    if lost:
        raise OSError(
            f'{shown} is not whole ({listed(lost, 3)}): give the command of its extraction again, '
            'which goes on with the files that are not finished'
        )
    return header


def open_features(name: str, folder: str | os.PathLike, split: str) -> FeatureVideos:
    """Opens a split of extracted features.

    Args:
      name: of the dataset that they should be of.
      folder: config.data.features.

    Raises:
      FileNotFoundError, OSError, ValueError: one line. There are no features, they are of another
        dataset, or the dataset had no such split (NoSplitError) or no clip in it (EmptySplitError).
    """
    folder = pathlib.Path(folder)
    header, shown = open_header(folder), printable(folder, 1000)
    if header.dataset != name:
        raise ValueError(
            f'config.data.features={shown} holds features of {printable(header.dataset)}, '
            f'config.data.dataset is {printable(name)}: make them agree'
        )
    if split not in header.splits:
        raise NoSplitError(
            f"the features in {shown} have no split '{printable(split)}': they have "
            f'{listed(header.splits)}'
        )
    if not header.splits[split]['label']:
        raise EmptySplitError(f"split '{split}' of the features in {shown} is empty")
    return FeatureVideos(folder, header, split)


class FeatureVideos(Videos):
    """A split of extracted features. `read` gives features in the place of JPEG frames.

    Cheap to pickle (the files are opened again at the first read) and safe to read from many
    threads.
    """

    def __init__(self, folder: pathlib.Path, header: Header, split: str) -> None:
        of = header.splits[split]
        self.name, self.split, self.folder = header.dataset, split, folder
        self.class_names = list(header.class_names)
        self.labels = np.array(of['label'], np.int32)
        self.video_ids = list(of['video_id'])
        self.num_frames = np.array(of['num_frames'], np.int32)
        self.settings, self.made_with = dict(header.settings), dict(header.made_with)
        self.expected = of['expected']
        self.extractor = header.extractor
        self._shape, self._views, self._dtypes = header.row_shape, header.views, header.dtypes
        self._sums = [header.done[shard.file] for shard in header.shards(split)]
        self._shards = header.shards(split)
        self._paths = [os.fspath(folder / shard.file) for shard in self._shards]
        self.num_bytes = header.num_bytes(self._shards)
        self._starts = np.concatenate(  # row of each clip in its file
            [
                np.cumsum([0, *self.num_frames[s.first : s.first + s.videos - 1]]) * self._views
                for s in self._shards
            ]
        )
        self._file = np.repeat(np.arange(len(self._shards)), [s.videos for s in self._shards])
        self._arrays: list[np.ndarray | None] = [None] * len(self._shards)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f'FeatureVideos({self.name}, {self.split}, {len(self)} videos)'

    def read(self, position: int) -> dict:
        """{'features': [views, num_frames, C] or [views, num_frames, h, w, C], a view of the file,
        'label', 'video_id', 'num_frames', 'path' of that file} of the video at `position` (0 to
        N - 1).

        Raises:
          OSError: the file cannot be opened. ValueError: it has another shape or dtype.
        """
        if not 0 <= position < len(self):
            raise IndexError(
                f'position {position} is outside split {self.split!r} of {self.name}, which has '
                f'{len(self)} videos'
            )
        number, start = self._file[position], self._starts[position]
        count = int(self.num_frames[position])
        array = self._arrays[number]
        array = self._open(number) if array is None else array
        rows = array[start : start + count * self._views]
        return {
            'features': rows.reshape(self._views, count, *self._shape),
            'label': int(self.labels[position]),
            'video_id': self.video_ids[position],
            'num_frames': count,
            'path': self._paths[number],
        }

    def _open(self, number):
        """The array of a file. It stays in the page cache, which all processes share."""
        shard, (dtype, stored) = self._shards[number], self._dtypes
        path = self._paths[number]
        with self._lock:
            if self._arrays[number] is None:
                try:
                    # not a np.memmap, whose slices cost ten times as much
                    array = np.asarray(np.lib.format.open_memmap(path, mode='r'))
                    if (array.shape, array.dtype) != ((shard.rows, *self._shape), stored):
                        raise ValueError(f'it is {array.dtype} {list(array.shape)}')
                except ValueError as error:
                    raise ValueError(
                        f'{printable(path, 1000)} is damaged ({printable(error)}): {self.advice}'
                    ) from None
                self._arrays[number] = array.view(dtype)
        return self._arrays[number]

    @property
    def advice(self) -> str:
        return (
            'find what is damaged with `sha256sum -c SHA256SUMS` there, remove it, and give the '
            'command of the extraction again'
        )

    def file_checksums(self) -> list[str | None] | None:
        return list(self._sums)

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != '_lock'} | {
            '_arrays': [None] * len(self._shards)
        }

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())


class FeatureClips:
    """Reads the features of single clips, as `Clips` reads their frames, and in evaluation of the
    same ones, in view 0. In training a clip shows one of its views, drawn after the frames; crops
    and flips are not drawn, so the numbers of the generator give other frames than `Clips`.

    [h, w, C] is the shape of the features, 1 × 1 where they are pooled.

    Args:
      frames: L; None for config.episode.frames.
    """

    def __init__(self, dataset: Videos, config: ConfigDict, frames: int | None = None) -> None:
        frame_indices(1, 1, config.data.sampling)  # a wrong rule is an error now
        self.dataset, self.length = dataset, frames or config.episode.frames
        self.jitter_seed = jitter_seed(config)
        self.rule = config.data.sampling
        features = dataset.extractor['features']
        self.shape, self.dtype = tuple(features['shape']), DTYPES[features['dtype']][0]

    def empty(self, *leading: int) -> np.ndarray:
        """Room for clips: [*leading, L, h, w, C]."""
        return np.empty((*leading, self.length, *self.shape), self.dtype)

    def read_all(
        self, positions: np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(features [..., L, h, w, C], False [...]: none is to be flipped) of the videos at
        `positions`, int [...]."""
        clips = self.empty(*positions.shape)
        for index in np.ndindex(positions.shape):
            self.read(int(positions[index]), clips[index], rng)
        return clips, np.zeros(positions.shape, bool)

    def read(self, position: int, out: np.ndarray, rng: np.random.Generator | None = None) -> bool:
        """Writes the features of a clip into `out`, [L, h, w, C]; returns False. Without `rng`,
        they are those of the test view.

        Raises:
          OSError, ValueError: as `FeatureVideos.read`; or a feature is not finite.
        """
        record = self.dataset.read(position)
        stored = record['features']
        jitter = rng or jitter_generator(self.jitter_seed, self.dataset, position)
        indices = frame_indices(stored.shape[1], self.length, self.rule, jitter)
        view = 0 if rng is None or len(stored) == 1 else int(rng.integers(len(stored)))
        out[...] = stored[view, indices].reshape(out.shape)
        if not all_finite(out):
            raise ValueError(
                f"video '{printable(record['video_id'])}' of {self.dataset.name} "
                f'{self.dataset.split}: its features in {printable(record["path"], 1000)} are not '
                f'finite: {self.dataset.advice}'
            )
        return False


def all_finite(x: np.ndarray) -> bool:
    """Whether no value of a float array is infinite or NaN, by its bits: numpy takes ten times as
    long to look at numbers of 16 bits."""
    bits = np.dtype(f'u{x.dtype.itemsize}')
    infinity = np.array(np.inf, x.dtype).view(bits)
    return bool((x.view(bits) & (np.iinfo(bits).max >> 1)).max() < infinity)
