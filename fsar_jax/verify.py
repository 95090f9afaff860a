"""Checks that a built dataset is whole, and complete.

    python -m fsar_jax.verify --dataset=ucf101_arn --dir=data

It prints what each split holds and what a complete copy holds: classes, videos, the shortest clip,
and the hash of the list of videos. For a complete copy of a public benchmark, that hash is the
SHA-256 of the published list file. Then it reads everything: the checksum of every file, every
record against the index, and every frame, decoded as training and evaluation decode it. Damage is
listed at the end, one line each.

Exit status: 0 if nothing is damaged, even if videos of a benchmark were never there (the report
lists them); 1 if something is damaged or lost, or the dataset does not exist; 2 for wrong flags;
130 if stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import os
import sys
from collections.abc import Iterator
from typing import Any

from fsar_jax.stopping import errors_in_one_line, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('nothing was changed')

from tqdm import tqdm

from fsar_jax.arguments import Parser
from fsar_jax.checksums import SUMS, read_sums, sha256_of
from fsar_jax.data.dataset import (
    EmptySplitError,
    NoSplitError,
    VideoDataset,
    check_format,
    described,
    not_built,
    repair_advice,
    version_directory,
    videos_present,
)
from fsar_jax.data.frames import decode_jpeg
from fsar_jax.files import local_path
from fsar_jax.machine import usable_cores
from fsar_jax.messages import one_line, printable

SPLITS = ('train', 'val', 'test')
DESCRIPTION = ('dataset_info.json', 'features.json', 'label.labels.txt', 'metadata.json')
SHOWN = 10  # lines of each kind of damage
LOST = 'record files are not whole, build it again with --overwrite'
LOST_SUMS = 'list of checksums is not there'
HEADER = ('split', 'classes', 'videos present', 'shortest clip', 'hash of the list', 'expected', '')


def split_report(dataset: VideoDataset) -> dict:
    """What an open split holds, and what it should hold.

    Returns:
      dict with classes, expected_classes, present, expected, shortest (frames), hash, expected_hash
      (None where it is not known), and missing: {class: (videos present, expected)} of the classes
      that are not complete.
    """
    expected = dataset.expected
    counts = collections.Counter(dataset.class_names[label] for label in dataset.labels)
    classes = expected['classes'] if expected else {}
    return {
        **videos_present(dataset),
        'expected_hash': expected['hash'] if expected else None,
        'shortest': int(dataset.num_frames.min()),
        'missing': {
            name: (counts[name], count) for name, count in classes.items() if counts[name] != count
        },
    }


def record_damage(dataset: VideoDataset, position: int) -> list[tuple[str, str]]:
    """[(kind, line)] of what is wrong with one record: it cannot be read, it is another video's, or
    its frames do not decode."""
    try:
        record = dataset.read(position)
    except OSError as error:
        line = one_line(error).removesuffix(f': {dataset.advice}')  # that is what runs
        return [('records cannot be read', line)]
    except ValueError as error:
        return [('records are not those of the index', one_line(error))]
    file, number = dataset.file_of(position)
    where = f"{file}, record {number}, video '{printable(dataset.video_ids[position])}'"
    damage, size = [], (record['height'], record['width'], 3)
    for number, data in enumerate(record['frames']):
        try:
            shape = decode_jpeg(data).shape
        except ValueError as error:
            line = f'{where}, frame {number}: {printable(error)}'
            damage.append(('frames cannot be decoded', line))
            continue
        if shape != size:
            found, recorded = (f'{width}x{height}' for height, width, _ in (shape, size))
            line = f'{where}, frame {number}: {found}, the record says {recorded}'
            damage.append(('frames have another size', line))
    return damage


def everything(datasets: list[VideoDataset], sums: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Reads all files of `sums` and all records of the splits, in threads; yields (kind, line) for
    all damage, in order.

    sums: {file name: SHA-256}.  Lost files are reported and not read.
    """
    directory = datasets[0].directory
    lost = [dataset.lost_files() for dataset in datasets]
    of_shard: dict[str, list[tuple[VideoDataset, int]]] = {}
    for dataset, gone in zip(datasets, lost):
        yield from ((LOST, f'{name} {reason}') for name, reason in gone.items())
        for position in range(len(dataset)):
            name = dataset.file_of(position)[0]
            if name not in gone:
                of_shard.setdefault(name, []).append((dataset, position))
    absent = {name for files in lost for name in files}

    def look(task):
        if isinstance(task, tuple):
            return record_damage(*task)
        try:
            same = sha256_of(directory / task) == sums[task]
        except (OSError, ValueError) as error:  # a damaged list may hold any name
            return [('files cannot be read', one_line(error))]
        return [] if same else [(f'files differ from {SUMS}', printable(directory / task, 1000))]

    # A file's records follow its checksum: they come from memory.
    tasks: list[Any] = [name for name in sums if name not in of_shard and name not in absent]
    for name, records in of_shard.items():
        tasks += [name] * (name in sums) + records
    pool = concurrent.futures.ThreadPoolExecutor(usable_cores())
    try:
        with tqdm(
            total=sum(map(len, of_shard.values())),
            unit=' videos',
            mininterval=0.5 if sys.stderr.isatty() else 15,
        ) as progress:
            for task, damage in zip(tasks, pool.map(look, tasks)):
                progress.update(isinstance(task, tuple))
                yield from damage
    finally:
        pool.shutdown(cancel_futures=True)


def report(name: str, data_dir: str, fast: bool = False) -> str:
    """The text that the command prints; see `examine`."""
    return examine(name, data_dir, fast)[0]


def examine(
    name: str, data_dir: str | os.PathLike[str], fast: bool = False, limit: int = 40
) -> tuple[str, bool]:
    """(the text that the command prints, whether nothing is damaged).

    fast: check only the index, and how many records each record file has.  limit: how many
    incomplete classes are listed.

    Raises:
      FileNotFoundError: the dataset is not built.
      ValueError: it is built in a format that cannot be read record by record.
    """
    directory = version_directory(name, data_dir)
    if directory is None:
        raise FileNotFoundError(not_built(name, data_dir))
    try:
        builder, _ = described(directory, name)
    except ValueError:
        pass  # damage, listed below
    else:
        check_format(builder, directory, name)
    datasets, empty, damage = _open_splits(directory, name)
    reports = {split: split_report(dataset) for split, dataset in datasets.items()}
    complete = not (damage or empty) and all(
        report['hash'] == report['expected_hash'] for report in reports.values()
    )
    damage += _in_two_splits(datasets)
    opened, notes = list(datasets.values()), []
    if fast:
        for dataset in opened:
            damage += [(LOST, f'{file} {reason}') for file, reason in dataset.lost_files().items()]
        notes.append('records and frames were not read (--fast)')
    elif opened:
        sums, wrong, notes = _checksums(directory, opened)
        damage += [*wrong, *everything(opened, sums)]
    lines = [f'{name}: {printable(directory, 1000)}']
    lines += _table([_row(split, reports, empty) for split in SPLITS if split in reports | empty])
    lines += _missing(reports, limit)
    if any(report['expected_hash'] for report in reports.values()):
        lines.append(
            'every published video is there'
            if complete and not damage
            else 'not the published set: numbers from it are not comparable with published ones'
        )
    lines += notes + _listed(damage)
    if damage:
        lines.append(f'\nDAMAGED: {repair_advice(directory, name)}')
    else:
        lines.append('nothing is lost' if fast else 'nothing is damaged')
    return '\n'.join(lines), not damage


def _open_splits(directory, name):
    """({split: dataset}, {split: why it has no video}, [(kind, line)] of those that do not
    open)."""
    datasets, empty, damage = {}, {}, []
    for split in SPLITS:
        try:
            datasets[split] = VideoDataset(directory, name, split)  # also where files are lost
        except EmptySplitError as error:
            empty[split] = str(error)
        except NoSplitError:
            pass
        except ValueError as error:
            damage.append(('splits cannot be opened', one_line(error)))
    return datasets, empty, damage


def _in_two_splits(datasets):
    """[(kind, line)] of the videos that are in more than one split."""
    first, damage = {}, []
    for split, dataset in datasets.items():
        for video_id in dataset.video_ids:
            if first.setdefault(video_id, split) != split:
                line = f"video '{printable(video_id)}' is in {first[video_id]} and in {split}"
                damage.append(('videos are in two splits', line))
    return damage


def _checksums(directory, datasets):
    """({file: SHA-256}, [(kind, line)] of what is wrong with the list of them, notes)."""
    try:
        sums = read_sums(directory)
    except (OSError, ValueError) as error:
        line = f'{printable(directory / SUMS, 1000)}: {one_line(error)}'
        return {}, [(f'files differ from {SUMS}', line)], []
    if sums is not None:
        needed = [*DESCRIPTION, *(file for dataset in datasets for file in dataset.files)]
        kind = f'files are not in {SUMS}, which is cut'
        return sums, [(kind, file) for file in needed if file not in sums], []
    if datasets[0].made_with:  # noted by every version that writes checksums
        return {}, [(LOST_SUMS, printable(directory / SUMS, 1000))], []
    note = (
        f'built before there was a {SUMS}: records and frames were read, the index has no checksum'
    )
    return {}, [], [note]


def _row(split, reports, empty):
    """The row of a split in the table, under HEADER."""
    if split in empty:
        return (split, '0', 'none', '-', '-', '-', empty[split])
    report = reports[split]
    of = lambda present, expected: (
        f'{present:,}' + ('' if expected is None else f' of {expected:,}')
    )
    verdict = 'complete' if report['hash'] == report['expected_hash'] else 'DIFFERS'
    return (
        split,
        of(report['classes'], report['expected_classes']),
        of(report['present'], report['expected']),
        f'{report["shortest"]} frames',
        report['hash'][:12],
        (report['expected_hash'] or 'unknown')[:12],
        verdict if report['expected_hash'] else '',
    )


def _table(rows):
    rows = [HEADER, *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]


def _missing(reports, limit):
    """Lines about the classes with another number of videos than published."""
    missing = [
        f'  {split}/{printable(name)}: {present} of {count}'
        for split, report in reports.items()
        for name, (present, count) in report['missing'].items()
    ]
    if not missing:
        return []
    title = (
        f'\n{len(missing)} classes have another number of videos than published (see skipped.tsv '
        'there):'
    )
    more = [f'  ... and {len(missing) - limit} more'] if len(missing) > limit else []
    return [title, *missing[:limit], *more]


def _listed(damage):
    """The damage by kind, SHOWN lines of each."""
    kinds = collections.defaultdict(list)
    for kind, line in damage:
        kinds[kind].append(line)
    lines = []
    for kind, found in kinds.items():
        lines += [f'\n{len(found):,} {kind}:', *(f'  {line}' for line in found[:SHOWN])]
        if len(found) > SHOWN:
            lines.append(f'  ... and {len(found) - SHOWN:,} more')
    return lines


def main() -> int:
    parser = Parser(
        prog='python -m fsar_jax.verify',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Reads a built dataset, and prints what it holds, what is missing and what is '
        'damaged.\n\nExit status: 0 if nothing is damaged (listed videos may be missing), 1 if '
        'something is damaged or lost, or the dataset does not exist, 130 if stopped.',
    )
    parser.add_argument('--dataset', required=True, help='name of the dataset, e.g. ucf101_arn')
    parser.add_argument(
        '--dir', default='data', help='folder of the built datasets; default %(default)s'
    )
    parser.add_argument(
        '--fast',
        action='store_true',
        help='only read the index and count the records; takes seconds',
    )
    args = parser.parse()
    text, whole = examine(args.dataset, local_path(args.dir, '--dir'), args.fast)
    print(text)
    return 0 if whole else 1


if __name__ == '__main__':
    with errors_in_one_line():
        sys.exit(main())
