"""Draws the clips of episode i, a pure function of (seed, split, i), and reads and writes lists of
episodes.

Before the draw, classes are ordered by name and clips by video id. So the draw does not depend on
the order of records or on label numbers: two builds of the same clips give the same episodes. Lists
of episodes name and hash clips by video id.

Random numbers come from numpy's Philox, a counter-based generator: its key is (seed, split) and its
counter starts at (stream, episode). Stream CLIPS chooses classes and clips. Stream VIEWS, which the
loader reads, gives frame jitter, crops and flips. As the two streams are independent, no
augmentation setting changes which clips an episode has. Streams TEST_FRAMES and LIMIT belong to
clips and classes: the index that follows them is a hash of the video id or of the class name.
"""

from __future__ import annotations

import codecs
import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from fsar_jax.data.dataset import Videos
from fsar_jax.files import write_whole
from fsar_jax.messages import listed, one_line, printable

CLIPS, VIEWS = 0, 1  # streams of an episode
TEST_FRAMES, LIMIT = 2, 3  # streams of a clip and of a class


@dataclasses.dataclass(frozen=True)
class Episodes:
    """E episodes; positions index the dataset they were drawn from.

    Attributes:
      support: positions, int32 [E, way, shot].
      query: positions, int32 [E, Q]; class-major when drawn here.
      labels: the row of `support` that each query belongs to, int32 [E, Q], 0..way-1.
      classes: the dataset's label of each row of `support`, int32 [E, way].
    """

    support: np.ndarray
    query: np.ndarray
    labels: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.support)


def episode_generator(seed: int, split: str, index: int, stream: int) -> np.random.Generator:
    """The random numbers of one stream (CLIPS or VIEWS) of episode `index`; seed and index are at
    least 0."""
    key = [seed, int.from_bytes(hashlib.sha256(split.encode()).digest()[:8], 'little')]
    # The low half of the 256-bit counter is left at 0: 2**128 draws before one episode would run
    # into the next.
    counter = [0, 0, stream, index]
    return np.random.Generator(
        np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    )


def named_generator(seed: int, split: str, name: str, stream: int) -> np.random.Generator:
    """The random numbers of one stream (TEST_FRAMES or LIMIT) of the clip or class of that name.
    They depend on no other clip and no other class."""
    digest = hashlib.sha256(name.encode(errors='surrogatepass')).digest()
    return episode_generator(seed, split, int.from_bytes(digest[:8], 'little'), stream)


def jitter_seed(config: ConfigDict) -> int | None:
    """The seed of the frames of evaluated clips; None where they are the fixed ones."""
    data = config.data
    return config.eval.seed if 'test_jitter' in data and data.test_jitter else None


def jitter_generator(
    seed: int | None, dataset: Videos, position: int
) -> np.random.Generator | None:
    """What draws the frames of a clip in evaluation; None for the fixed ones. It is the same in
    every episode, so that the embedding of a clip can be kept (row M8 of
    docs/paper_vs_code.md).

    seed: of `jitter_seed`.
    """
    if seed is None:
        return None
    return named_generator(seed, dataset.split, dataset.video_ids[position], TEST_FRAMES)


def clips_by_class(dataset: Videos) -> list[tuple[int, np.ndarray]]:
    """(label, positions int32 [clips]) of each class that has clips; classes are ordered by name,
    clips by video id."""
    order = np.array(
        sorted(range(len(dataset)), key=lambda position: dataset.video_ids[position]), np.int32
    )
    labels = np.asarray(dataset.labels)
    order = order[np.argsort(labels[order], kind='stable')]  # by class, by id in each
    found, starts = np.unique(labels[order], return_index=True)
    of_each = dict(zip(found.tolist(), np.split(order, starts[1:])))
    return [
        (label, of_each[label])
        for label in sorted(of_each, key=lambda label: dataset.class_names[label])
    ]


def limited(dataset: Videos, clips: int | None, seed: int) -> Videos:
    """The split with `clips` videos of each class, or all of a class that has fewer; None for all
    (VIM, Sec. 4.4.8).

    Which ones depends on seed, split, and the ids in the class, not on other classes. Of one seed,
    a smaller number takes a part of what a larger one takes. `dataset` itself for None.
    """
    if clips is None:
        return dataset
    kept = []
    for label, positions in clips_by_class(dataset):
        rng = named_generator(seed, dataset.split, dataset.class_names[label], LIMIT)
        kept.append(positions[_draw(rng, len(positions), clips)])
    subset = dataset.subset(np.sort(np.concatenate(kept)))
    subset.dropped, subset.clips_per_class = dataset.dropped, clips
    return subset


def check_dataset(dataset: Videos, way: int, shot: int, query: int) -> None:
    """Raises ValueError when `dataset` is too small for episodes of `way` classes with `shot` +
    `query` clips each.

    `dataset.dropped` holds the labels of clips that were left out as too short: a class with none
    left is still one that episodes should have.
    """
    where = f'{dataset.name} {dataset.split}'
    if way < 2 or shot < 1 or query < 1:
        raise ValueError(
            'an episode needs at least 2 classes with 1 support and 1 query clip each, got '
            f'way={way}, shot={shot}, query={query}'
        )
    have, lost = (
        np.bincount(labels, minlength=len(dataset.class_names))
        for labels in (dataset.labels, dataset.dropped)
    )
    present = np.flatnonzero(have + lost)
    if len(present) < way:
        raise ValueError(
            f'{where} has {len(present)} classes, {way}-way episodes need {way}: lower '
            'config.episode.way'
        )
    short = [label for label in present if have[label] < shot + query]
    if short:
        first = short[0]
        why = (
            f' ({lost[first]} dropped: fewer than config.episode.frames frames)'
            if lost[first]
            else ''
        )
        more = f', and so for {len(short) - 1} more classes' if len(short) > 1 else ''
        raise ValueError(
            f"class '{printable(dataset.class_names[first])}' of {where} has {have[first]} "
            f'clips{why}, {shot} support + {query} query per class need {shot + query}{more}: '
            'lower config.episode.shot or the queries, or add clips'
        )


def draw_episode(
    dataset: Videos,
    way: int,
    shot: int,
    query: int,
    seed: int,
    index: int,
    clips: list[tuple[int, np.ndarray]] | None = None,
    query_classes: int | None = None,
) -> Episodes:
    """Episode `index` of (seed, dataset.split), E = 1; `query` is per class.

    Draws `way` classes without replacement, then for each of them `shot + query` clips without
    replacement, support first: another number of queries leaves the classes and the support of an
    episode as they are. With `query_classes`, so many of the classes are then drawn, and only they
    keep their queries. Pass `clips`, from `clips_by_class(dataset)`, to save its cost over many
    calls.
    """
    clips = clips_by_class(dataset) if clips is None else clips
    rng = episode_generator(seed, dataset.split, index, CLIPS)
    chosen = [clips[i] for i in _draw(rng, len(clips), way)]
    drawn = np.stack(
        [positions[_draw(rng, len(positions), shot + query)] for _, positions in chosen]
    )
    asked = np.arange(way, dtype=np.int32)
    if query_classes:
        asked = np.sort(_draw(rng, way, query_classes)).astype(np.int32)
    return Episodes(
        support=drawn[None, :, :shot],
        query=drawn[asked, shot:].reshape(1, len(asked) * query),
        labels=np.repeat(asked, query)[None],
        classes=np.array([[label for label, _ in chosen]], np.int32),
    )


def draw_episodes(
    dataset: Videos,
    way: int,
    shot: int,
    query: int,
    seed: int,
    count: int,
    start: int = 0,
    query_classes: int | None = None,
) -> Episodes:
    """Episodes start .. start + count - 1 of (seed, dataset.split), see `draw_episode`. ValueError
    when the dataset is too small for them."""
    check_dataset(dataset, way, shot, query)
    if count < 1:
        raise ValueError(f'asked for {count} episodes, at least 1 is needed')
    clips = clips_by_class(dataset)
    drawn = [
        draw_episode(dataset, way, shot, query, seed, index, clips, query_classes)
        for index in range(start, start + count)
    ]
    fields = [field.name for field in dataclasses.fields(Episodes)]
    return Episodes(
        **{name: np.concatenate([getattr(episode, name) for episode in drawn]) for name in fields}
    )


def episodes_hash(dataset: Videos, episodes: Episodes) -> str:
    """SHA-256, hexadecimal, of video ids and labels: what `sha256sum` prints for the file that
    `write_episodes` writes."""
    digest = hashlib.sha256()
    for line in _lines(dataset, episodes):
        digest.update(line)
    return digest.hexdigest()


def write_episodes(path: str | os.PathLike, dataset: Videos, episodes: Episodes) -> None:
    """Writes one JSON object per line and episode: {"support": [way][shot] ids, "query": [Q] ids,
    "labels": [Q] rows of support}."""
    write_whole(path, b''.join(_lines(dataset, episodes)))


def read_episodes(path: str | os.PathLike, dataset: Videos) -> Episodes:
    """Reads a list that `write_episodes` wrote, for this or another build of the same clips.

    A byte order mark and blank lines at the end are ignored.

    Raises:
      OSError: no such file, or it cannot be read.
      ValueError: a line that is not an episode, lines of different shapes, a clip twice in an
        episode, clips of two classes in one row, or ids that `dataset` does not have (the message
        has their number and the first ten).
    """
    shown = printable(path, 1000)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for someone to write
            raise ValueError(
                f'{shown} is not a file: config.eval.episodes_file names a file with one episode '
                'per line'
            )
        with open(path, 'rb') as file:
            rows = _parse_all(file, shown)
    except FileNotFoundError:
        raise FileNotFoundError(
            f'no episode list at {shown}: check config.eval.episodes_file'
        ) from None
    if not rows:
        raise ValueError(f'{shown} holds no episodes')
    position_of = _positions(dataset)
    named = {video_id for support, query, _ in rows for video_id in [*support.flat, *query]}
    unknown = sorted(named - position_of.keys())
    if unknown:
        raise ValueError(
            f'{shown} names {len(unknown)} clips that {dataset.name} {dataset.split} does not have '
            f'(or dropped as shorter than config.episode.frames): {listed(unknown)}'
        )
    for number, (support, query, _) in enumerate(rows, 1):
        _check_row(f'{shown} line {number}', support, query, rows[0])
    look_up = np.vectorize(position_of.__getitem__, otypes=[np.int32])
    support, query = (
        look_up(np.stack(ids)) for ids in ([row[0] for row in rows], [row[1] for row in rows])
    )
    labels = np.stack([row[2] for row in rows])
    truth = np.asarray(dataset.labels, np.int32)
    classes = truth[support[:, :, 0]]
    ordered = np.sort(classes, 1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if repeated.any():
        raise ValueError(
            f'{shown} line {np.argmax(repeated) + 1}: two rows of its support are of one class in '
            f'{dataset.name} {dataset.split}'
        )
    mixed = (truth[support] != classes[..., None]).any((1, 2))
    mixed |= (truth[query] != np.take_along_axis(classes, labels, 1)).any(1)
    if mixed.any():
        raise ValueError(
            f'{shown} line {np.argmax(mixed) + 1}: clips of one class in the list are of different '
            f'classes in {dataset.name} {dataset.split}'
        )
    return Episodes(support, query, labels, classes)


def _draw(rng, population, count):
    """`count` different numbers below `population`. Only `rng.random` is used: its bits are the
    same in every numpy."""
    return np.argsort(rng.random(population), kind='stable')[:count]


def _positions(dataset) -> dict[str, int]:
    position_of = {video_id: position for position, video_id in enumerate(dataset.video_ids)}
    if len(position_of) < len(dataset.video_ids):
        twice = next(v for i, v in enumerate(dataset.video_ids) if position_of[v] != i)
        raise ValueError(
            f"video id '{printable(twice)}' occurs twice in {dataset.name} {dataset.split}: an "
            'episode list cannot tell the two apart, rename one'
        )
    return position_of


def _lines(dataset, episodes) -> Iterator[bytes]:
    _positions(dataset)
    ids = np.array(dataset.video_ids, object)
    rows = zip(
        ids[episodes.support].tolist(), ids[episodes.query].tolist(), episodes.labels.tolist()
    )
    for support, query, labels in rows:
        row = {'support': support, 'query': query, 'labels': labels}
        yield json.dumps(row, separators=(',', ':')).encode() + b'\n'


def _parse_all(file, shown):
    """Rows (support, query, labels) of an open file of bytes."""
    rows, blank = [], None
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            raise ValueError(
                f'{shown} line {blank} is empty: it is damaged, or two lists were put together'
            )
        rows.append(_parse(line, f'{shown} line {number}'))
    return rows


def _parse(line, where):
    """(support object [way, shot], query object [Q], labels int32 [Q]) of a line, whose ids and
    labels are valid."""
    try:
        row = json.loads(line.decode(), object_pairs_hook=_without_repeated_keys)
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), list) for key in ('support', 'query', 'labels')
        ):
            raise ValueError('it is not an object with the lists support, query and labels')
        support, query = np.array(row['support'], object), np.array(row['query'], object)
        labels = row['labels']
        whole = support.ndim == 2 and query.ndim == 1 and support.size and query.size
        if not whole or len(labels) != len(query):
            raise ValueError('support is not [way][shot], or query and labels are not [Q]')
        if not all(isinstance(video_id, str) for video_id in [*support.flat, *query]):
            raise ValueError('video ids must be strings')
        if not all(type(label) is int for label in labels):  # True is an int for isinstance
            raise ValueError('labels must be whole numbers')
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{where} is not an episode ({printable(one_line(error))})') from None
    if min(labels) < 0 or max(labels) >= len(support):  # before int32, in which 2**32 + 1 is 1
        raise ValueError(f'{where} has a label outside 0..{len(support) - 1}')
    return support, query, np.array(labels, np.int32)


def _without_repeated_keys(pairs):
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError('a key occurs twice')
    return row


def _check_row(where, support, query, first):
    if support.shape != first[0].shape or query.shape != first[1].shape:
        raise ValueError(
            f'{where} is {support.shape[0]}-way {support.shape[1]}-shot with {len(query)} queries, '
            f'line 1 is {first[0].shape[0]}-way {first[0].shape[1]}-shot with {len(first[1])}'
        )
    ids = [*support.flat, *query]
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"{where} uses clip '{printable(next(v for v in ids if ids.count(v) > 1))}' twice"
        )
