"""Is a built dataset complete?  python -m fsar_jax.data.verify --dataset=ucf101_arn --dir=data

Prints, per split, what is there beside what a complete copy holds: classes, videos, the shortest clip, and the hash of
the list of videos; then record files that were lost, and the classes with missing videos. Reads the dataset's metadata, and
of each record file how many records it has. The hash is over the video
ids in the order of the records; for a complete copy of a public benchmark it is the SHA-256 of the published list file.
"""

from __future__ import annotations

import argparse
import collections
import sys

from fsar_jax.data.dataset import open_dataset, version_directory, videos_present

SPLITS = ('train', 'val', 'test')


def split_report(dataset) -> dict:
    """What is there of an open split, and what should be.

    Returns:
      dict with classes, expected_classes, present, expected, shortest, hash, expected_hash (None where it is not known), and
      missing: {class: (videos present, expected)} of the classes that are not complete.
    """
    expected, there = dataset.expected, videos_present(dataset)
    counts = collections.Counter(dataset.class_names[label] for label in dataset.labels)
    classes = expected['classes'] if expected else {}
    return {
        **there,
        'expected_hash': expected['hash'] if expected else None,
        'shortest': int(dataset.num_frames.min()),
        'missing': {name: (counts[name], count) for name, count in classes.items() if counts[name] != count},
    }


def report(name: str, data_dir: str, limit: int = 40) -> str:
    """The text that the command prints. FileNotFoundError where the dataset is not built."""
    rows = [('split', 'classes', 'videos present', 'shortest clip', 'hash of the list', 'expected', '')]
    missing, lost, complete, known = [], [], True, False
    for split in SPLITS:
        try:
            dataset = open_dataset(name, data_dir, split)
            found = split_report(dataset)
            lost += dataset.lost_files()
        except ValueError as error:
            if 'has no split' not in str(error):  # empty: every clip is missing
                rows.append((split, '0', 'none', '-', '-', '-', str(error)))
                complete = False
            continue
        of = lambda present, expected: f'{present:,}' + ('' if expected is None else f' of {expected:,}')
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
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [f'{name}: {version_directory(name, data_dir)}']
    lines += ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    if lost:
        lines.append(f'\n{len(lost)} record files are not whole, build it again with --overwrite:')
        lines += [f'  {file}' for file in lost[:limit]]
    if missing:
        lines.append(f'\n{len(missing)} classes have another number of videos than published (see skipped.tsv there):')
        lines += [
            f'  {split}/{class_name}: {present} of {count}' for split, class_name, present, count in missing[:limit]
        ]
        if len(missing) > limit:
            lines.append(f'  ... and {len(missing) - limit} more')
    if known:
        lines.append(
            'every published video is there'
            if complete and not lost
            else 'not the published set: numbers from it are not comparable with published ones'
        )
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(
        prog='python -m fsar_jax.data.verify', description='Says what is there of a built dataset.', allow_abbrev=False
    )
    parser.add_argument('--dataset', required=True, help='as for python -m fsar_jax.data.build')
    parser.add_argument('--dir', default='data', help='where datasets are kept; default %(default)s')
    args = parser.parse_args()
    try:
        print(report(args.dataset, args.dir))
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
