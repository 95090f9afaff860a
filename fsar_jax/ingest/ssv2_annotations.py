"""Compares the lists of Something-Something V2 with its official annotations: is each listed video
annotated with the class that the list gives it?"""

from __future__ import annotations

import json
import pathlib

from fsar_jax.ingest.benchmark_files import normal
from fsar_jax.messages import printable

# The dataset was handed out with both of these names.
NAMES = (
    ('something-something-v2-train.json', 'something-something-v2-validation.json'),
    ('train.json', 'validation.json'),
)


def annotated_classes(folders: list[pathlib.Path]) -> tuple[dict[str, str], list[str]]:
    """({video id: normal(template)} from the first folder with annotation files, [a note for each
    file that cannot be read as such]).

    Nothing depends on the comparison, so a file of another project with such a name does not stop a
    build.
    """
    notes = []
    for folder in folders:
        for names in NAMES:
            found: dict[str, str] = {}
            for path in (folder / name for name in names if (folder / name).is_file()):
                try:
                    rows = [
                        row
                        for row in json.loads(path.read_text(encoding='utf-8'))
                        if 'template' in row
                    ]
                    # Without a single row, it is another file: KeyError.
                    found |= {str(row['id']): normal(row['template']) for row in rows or [{}]}
                except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
                    notes.append(
                        f'annotations: {printable(path, 1000)} is ignored, it is not a list of '
                        f'videos with id and template ({type(error).__name__})'
                    )
            if found:
                return found, notes
    return {}, notes


def disagreements(folders: list[pathlib.Path], listed: list[tuple[str, str]]) -> list[str]:
    """Notes about those of `listed`, [(video id, class name)], that the annotations in `folders`
    give another class."""
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
