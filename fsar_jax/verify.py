"""Is a built dataset whole, and complete?  python -m fsar_jax.verify --dataset=ucf101_arn --dir=data

Prints, per split, what is there beside what a complete copy holds: classes, videos, the shortest
clip, and the hash of the list of videos, which for a complete copy of a public benchmark is the
SHA-256 of the published list file. Then reads everything: the checksum of every file, every record
against the index, every frame decoded as training and evaluation decode it. What is damaged comes
last, one line each.

Exit status: 0, whole; a copy of a benchmark that misses videos is whole, the report says what it
misses.  1, something is damaged or lost, or there is no such dataset.  2, wrong flags.  130,
stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import sys
from collections.abc import Iterator

from fsar_jax.stopping import on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('nothing was changed')

from tqdm import tqdm

from fsar_jax.checksums import SUMS, read_sums, sha256_of
from fsar_jax.data.dataset import (
    EmptySplitError,
    NoSplitError,
    VideoDataset,
    command,
    not_built,
    version_directory,
    videos_present,
)
from fsar_jax.data.frames import decode_jpeg
from fsar_jax.files import local_path
from fsar_jax.machine import usable_cores
from fsar_jax.messages import one_line, printable

SPLITS = ('train', 'val', 'test')
DESCRIPTION = ('dataset_info.json', 'features.json', 'label.labels.txt', 'metadata.json')
SHOWN = 10  # damaged things of a kind
LOST = 'record files are not whole, build it again with --overwrite'
LOST_SUMS = 'list of checksums is not there'


def split_report(dataset) -> dict:
    """What is there of an open split, and what should be.

    Returns:
      dict with classes, expected_classes, present, expected, shortest, hash, expected_hash (None
      where it is not known), and
      missing: {class: (videos present, expected)} of the classes that are not complete.
    """
    expected, there = dataset.expected, videos_present(dataset)
    counts = collections.Counter(dataset.class_names[label] for label in dataset.labels)
    classes = expected['classes'] if expected else {}
    return {
        **there,
        'expected_hash': expected['hash'] if expected else None,
        'shortest': int(dataset.num_frames.min()),
        'missing': {
            name: (counts[name], count) for name, count in classes.items() if counts[name] != count
        },
    }


def record_damage(dataset: VideoDataset, position: int) -> list[tuple[str, str]]:
    """[(kind, line)] of what is wrong with one record: it cannot be read, is another video's, or
    has frames that do not decode."""
    try:
        record = dataset.read(position)
    except OSError as error:
        return [('records cannot be read', one_line(error))]
    except ValueError as error:
        return [('records are not those of the index', one_line(error))]
    file, place = dataset.file_of(position)
    where = f"{file}, record {place}, video '{printable(dataset.video_ids[position])}'"
    damage, size = [], (record['height'], record['width'], 3)
    for number, data in enumerate(record['frames']):
        try:
            shape = decode_jpeg(data).shape
        except ValueError as error:
            damage.append(
                ('frames cannot be decoded', f'{where}, frame {number}: {printable(error)}')
            )
            continue
        if shape != size:
            found, said = (f'{width}x{height}' for height, width, _ in (shape, size))
            damage.append(
                (
                    'frames have another size',
                    f'{where}, frame {number}: {found}, the record says {said}',
                )
            )
    return damage


def everything(datasets: list[VideoDataset], sums: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Reads all files of `sums` and all records of the splits, in threads; yields (kind, line) of
    what is damaged, in order.

    Files that are lost are not looked into.
    """
    directory = datasets[0].directory
    lost = [dataset.lost_files() for dataset in datasets]
    of_shard = {}
    for dataset, gone in zip(datasets, lost):
        yield from ((LOST, f'{name} {reason}') for name, reason in gone.items())
        for position in range(len(dataset)):
            name = dataset.file_of(position)[0]
            if name not in gone:
                of_shard.setdefault(name, []).append((dataset, position))
    gone = set().union(*lost)

    def look(task):
        if isinstance(task, tuple):
            return record_damage(*task)
        try:
            same = sha256_of(directory / task) == sums[task]
        except (OSError, ValueError) as error:  # a damaged list may hold any name
            return [('files cannot be read', one_line(error))]
        return [] if same else [(f'files differ from {SUMS}', printable(directory / task, 1000))]

    # A file's records follow its checksum: they come from memory.
    tasks = [name for name in sums if name not in of_shard and name not in gone]
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


def examine(name: str, data_dir: str, fast: bool = False, limit: int = 40) -> tuple[str, bool]:
    """(the text that the command prints, whether nothing is damaged).

    fast: the index, and of each record file how many records it has; nothing else is read.

    Raises:
      FileNotFoundError: the dataset is not built.
    """
    directory = version_directory(name, data_dir)
    if directory is None:
        raise FileNotFoundError(not_built(name, data_dir))
    rows = [
        ('split', 'classes', 'videos present', 'shortest clip', 'hash of the list', 'expected', '')
    ]
    missing, damage, opened, complete, known = [], [], [], True, False
    first_split = {}
    for split in SPLITS:
        try:
            dataset = VideoDataset(directory, name, split)  # also where record files are lost
        except EmptySplitError as error:  # every clip is missing
            rows.append((split, '0', 'none', '-', '-', '-', str(error)))
            complete = False
            continue
        except NoSplitError:
            continue
        except ValueError as error:
            damage.append(('splits cannot be opened', one_line(error)))
            complete = False
            continue
        opened.append(dataset)
        for video_id in dataset.video_ids:
            if first_split.setdefault(video_id, split) != split:
                line = f"video '{printable(video_id)}' is in {first_split[video_id]} and in {split}"
                damage.append(('videos are in two splits', line))
        found = split_report(dataset)
        of = lambda present, expected: (
            f'{present:,}' + ('' if expected is None else f' of {expected:,}')
        )
        same = found['hash'] == found['expected_hash']
        known |= found['expected_hash'] is not None
        complete &= same
        rows.append(
            (
                split,
                of(found['classes'], found['expected_classes']),
                of(found['present'], found['expected']),
                f'{found["shortest"]} frames',
                found['hash'][:12],
                (found['expected_hash'] or 'unknown')[:12],
                '' if found['expected_hash'] is None else 'complete' if same else 'DIFFERS',
            )
        )
        missing += [(split, name, *counts) for name, counts in found['missing'].items()]
    notes = []
    if fast:
        for dataset in opened:
            damage += [(LOST, f'{file} {reason}') for file, reason in dataset.lost_files().items()]
        notes.append('records and frames were not read (--fast)')
    elif opened:
        sums = {}
        try:
            sums = read_sums(directory)
            if sums is None and opened[0].made_with:  # noted by every version that writes checksums
                damage.append((LOST_SUMS, printable(directory / SUMS, 1000)))
            elif sums is None:
                notes.append(
                    f'built before there was a {SUMS}: records and frames were read, the index has '
                    'no checksum'
                )
            else:
                needed = [*DESCRIPTION, *(file for dataset in opened for file in dataset.files)]
                damage += [
                    (f'files are not in {SUMS}, which is cut', file)
                    for file in needed
                    if file not in sums
                ]
        except (OSError, ValueError) as error:
            damage.append(
                (
                    f'files differ from {SUMS}',
                    f'{printable(directory / SUMS, 1000)}: {one_line(error)}',
                )
            )
        damage += everything(opened, sums or {})
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [f'{name}: {printable(directory, 1000)}']
    lines += [
        '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    ]
    if missing:
        lines.append(
            f'\n{len(missing)} classes have another number of videos than published (see '
            'skipped.tsv there):'
        )
        lines += [
            f'  {split}/{printable(class_name)}: {present} of {count}'
            for split, class_name, present, count in missing[:limit]
        ]
        if len(missing) > limit:
            lines.append(f'  ... and {len(missing) - limit} more')
    if known:
        lines.append(
            'every published video is there'
            if complete and not damage
            else 'not the published set: numbers from it are not comparable with published ones'
        )
    lines += notes
    kinds = {}
    for kind, line in damage:
        kinds.setdefault(kind, []).append(line)
    for kind, those in kinds.items():
        lines.append(f'\n{len(those):,} {kind}:')
        lines += [f'  {line}' for line in those[:SHOWN]]
        if len(those) > SHOWN:
            lines.append(f'  ... and {len(those) - SHOWN:,} more')
    if damage:
        lines.append(
            '\nDAMAGED: copy the dataset again, or build it again: '
            f'{command("build", name, data_dir, "--overwrite")}'
        )
    else:
        lines.append('nothing is damaged' if not fast else 'nothing is lost')
    return '\n'.join(lines), not damage


def main():
    parser = argparse.ArgumentParser(
        prog='python -m fsar_jax.verify',
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Reads a built dataset and says what is there, what is missing and what is '
        'damaged.\n\n'
        'Exit status: 0 whole (also where listed videos are missing), 1 damaged, lost or not '
        'there, 130 stopped.',
    )
    parser.add_argument('--dataset', required=True, help='as for python -m fsar_jax.build')
    parser.add_argument(
        '--dir', default='data', help='where datasets are kept; default %(default)s'
    )
    parser.add_argument(
        '--fast',
        action='store_true',
        help='read the index and count the records, nothing else: seconds',
    )
    args = parser.parse_args()
    text, whole = examine(args.dataset, local_path(args.dir, '--dir'), args.fast)
    print(text)
    return 0 if whole else 1


if __name__ == '__main__':
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f'error: {one_line(error)}')
