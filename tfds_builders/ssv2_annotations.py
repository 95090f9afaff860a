"""The official annotations of Something-Something V2: do they give a listed video the class that the list gives it?"""

from __future__ import annotations

import json
import pathlib

from tfds_builders.benchmark_files import normal

# Both namings that the dataset was handed out with.
NAMES = (
    ('something-something-v2-train.json', 'something-something-v2-validation.json'),
    ('train.json', 'validation.json'),
)


def annotated_classes(folders: list[pathlib.Path]) -> dict[str, str]:
    """{video id: normal(template)} of the annotation files in `folders`, {} where there are none."""
    for folder in folders:
        for names in NAMES:
            paths = [folder / name for name in names if (folder / name).is_file()]
            if paths:
                return {
                    str(row['id']): normal(row['template'])
                    for path in paths
                    for row in json.loads(path.read_text(encoding='utf-8'))
                    if 'template' in row
                }
    return {}


def disagreements(classes: dict[str, str], listed: list[tuple[str, str]]) -> list[str]:
    """One note about the `listed` (video id, class name) whose annotation is another class, none if there are none."""
    if not classes:
        return []
    known = [(video, name) for video, name in listed if video in classes]
    other = [(video, name) for video, name in known if classes[video] != normal(name)]
    unknown = f', {len(listed) - len(known)} are not in them' if len(known) < len(listed) else ''
    first = f', first {other[0][0]}, listed as {other[0][1]!r}' if other else ''
    return [f'annotations: {len(other)} of {len(known)} listed videos have another class there{first}{unknown}']
