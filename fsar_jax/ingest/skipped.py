"""What is not in a dataset, and why: one line per file, in a table at the end of a build and in
skipped.tsv."""

from __future__ import annotations

import collections
import csv
import dataclasses
import os

from fsar_jax.messages import printable


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A file (or folder) that is not in the dataset, and why; `class_name` and `split` may be
    empty.

    Names are made printable, so that each stays in its column and line; bytes that are not UTF-8
    are kept as '\\xe9'.
    """

    split: str
    class_name: str
    name: str
    reason: str
    detail: str = ''

    def __post_init__(self):
        for field in ('class_name', 'name', 'detail'):
            object.__setattr__(self, field, printable(_text(getattr(self, field)), 1000))

    @property
    def path(self) -> str:
        return '/'.join(filter(None, (self.split, self.class_name, self.name)))


def is_utf8(name: str) -> bool:
    """Names of files may hold any bytes, which Python keeps as surrogates; records and metadata
    take text only."""
    return _text(name) == name


def _text(name):
    return name.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')


def write_skipped(path: str | os.PathLike, skipped: list[Skipped]) -> None:
    """One line per file: split, class, name, reason, detail; tabs between, a header line first."""
    with open(path, 'w', encoding='utf-8', newline='') as file:
        rows = csv.writer(file, delimiter='\t', lineterminator='\n')
        rows.writerow(('split', 'class', 'name', 'reason', 'detail'))
        rows.writerows(dataclasses.astuple(skip) for skip in skipped)


def skipped_table(skipped: list[Skipped], limit: int = 60) -> str:
    """The table at the end of a build: how many by reason and class, then each file, `limit` at
    most."""
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
    return [
        '  ' + '  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in rows
    ]
