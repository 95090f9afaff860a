"""Lists what is not in a dataset, and why: one line per file, in skipped.tsv and at the end of a
build."""

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

    Names are made printable, so that each stays in its column and line. Bytes that are not UTF-8
    become '\\xe9' and the like.
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
    """Whether a file name is text, as records and metadata need it. Other bytes are surrogates in
    Python."""
    return _text(name) == name


def _text(name):
    return name.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')


def write_skipped(path: str | os.PathLike, skipped: list[Skipped]) -> None:
    """Writes a header, then one line per file: split, class, name, reason, detail, with tabs
    between."""
    with open(path, 'w', encoding='utf-8', newline='') as file:
        rows = csv.writer(file, delimiter='\t', lineterminator='\n')
        rows.writerow(('split', 'class', 'name', 'reason', 'detail'))
        rows.writerows(dataclasses.astuple(skip) for skip in skipped)


def skipped_table(skipped: list[Skipped], limit: int = 60) -> str:
    """The table at the end of a build: counts by reason and class, then each file, at most
    `limit`."""
    if not skipped:
        return 'nothing was skipped'
    groups = collections.Counter(
        (skip.reason, '/'.join(filter(None, (skip.split, skip.class_name)))) for skip in skipped
    )
    counts = [('count', 'reason', 'class')]
    counts += [(str(count), *group) for group, count in sorted(groups.items())]
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
