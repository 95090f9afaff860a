"""The official annotations of Something-Something V2: do they give a listed video the class that
the list gives it?"""

from __future__ import annotations

import json
import pathlib

from fsar_jax.ingest.benchmark_files import normal
from fsar_jax.messages import printable

# Both namings that the dataset was handed out with.
NAMES = (
    ('something-something-v2-train.json', 'something-something-v2-validation.json'),
    ('train.json', 'validation.json'),
)


def annotated_classes(folders: list[pathlib.Path]) -> tuple[dict[str, str], list[str]]:
    """({video id: normal(template)} of the first folder with annotation files, [a note per file
    that is something else]).

    The comparison is worth having and nothing depends on it: a file of another project with such a
    name stops no build.
    """
    notes = []
    for folder in folders:
        for names in NAMES:
            found = {}
            for path in (folder / name for name in names if (folder / name).is_file()):
                try:
                    rows = [
                        row
                        for row in json.loads(path.read_text(encoding='utf-8'))
                        if 'template' in row
                    ]
                    # No row at all: KeyError.
                    found |= {str(row['id']): normal(row['template']) for row in rows or [{}]}
                except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
                    notes.append(
                        f'annotations: {printable(path, 1000)} is not read, it is no list of '
                        f'videos with id and template ({type(error).__name__})'
                    )
            if found:
                return found, notes
    return {}, notes


def disagreements(folders: list[pathlib.Path], listed: list[tuple[str, str]]) -> list[str]:
    """Notes about the `listed` (video id, class name) whose annotation in `folders` is another
    class."""
    classes, notes = annotated_classes(folders)
    if not classes:
        return [
            *notes,
            'annotations: none found, so the classes in the lists were not compared with them',
        ]
    known = [(video, name) for video, name in listed if video in classes]
    other = [(video, name) for video, name in known if classes[video] != normal(name)]
    unknown = f', {len(listed) - len(known)} are not in them' if len(known) < len(listed) else ''
    first = f', first {printable(other[0][0])}, listed as {other[0][1]!r}' if other else ''
    return [
        *notes,
        f'annotations: {len(other)} of {len(known)} listed videos have another class '
        f'there{first}{unknown}',
    ]
