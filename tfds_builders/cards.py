"""Writes the parts that repeat themselves into the README of each builder, its dataset card.

    python -m tfds_builders.cards

A part stands between `<!-- card: NAME -->` and `<!-- end -->`; what is outside is written by hand.
The parts come from the code: classes.json, the features of a record, CITATIONS.bib. A test says
when a README is not up to date.
"""

from __future__ import annotations

import pathlib
import re
import textwrap

import numpy as np
import tensorflow_datasets as tfds

import tfds_builders
from fsar_jax.data.frames_feature import Frames
from fsar_jax.ingest.benchmark_builder import SPLITS, BenchmarkBuilder
from fsar_jax.ingest.records import RecordSettings
from fsar_jax.ingest.video_builder import VideoBuilder, videos_per_shard

PART = re.compile(r'(<!-- card: (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)
FRAME_BYTES = 28e3  # of 340x256 as JPEG of quality 95
BUILDERS = {name: getattr(tfds_builders, name).Builder for name in tfds_builders.__all__}

FRAMES_FOLDER = """
`--videos` may also name a folder or an uncompressed `.zip` (`zip -0`) with
`<class>/<video>/<frame>.jpg`, the layout of other code bases. Frames are ordered by the numbers in
their names. Frames that already have the right short side are stored as they are; others are
resized and encoded again. A frame with an EXIF orientation is turned upright, and CMYK becomes RGB.
The quality of such frames depends on how they were made, so results may differ from those of a
paper.
"""
COMPLETE = """
A complete build is the folder `data/{name}/1.0.0/`, with {records:,} records in {files}
`.array_record` files. With the default settings (at most 64 frames per video, short side 256, JPEG
quality 95: `--max_frames`, `--short_side`, `--jpeg_quality`) it takes about {size:.0f} GB{why}, an
estimate from 28 kB per frame of 340x256 that has not been measured on the full dataset.
"""
CHECKED = """
`python -m fsar_jax.verify --dataset={name} --dir=data` prints what each split holds, to compare
with the table above: classes, videos, the shortest clip, and the hash of the list of videos. For a
complete build, that hash is the SHA-256 of the published list file. `skipped.tsv` beside the
records lists each video that was left out and the reason: missing, empty file, unreadable,
truncated, too large, not a video, no frames, decode errors, decoder failed, ended the process, too
short, duplicate id, or label not in the split. Evaluation writes the number of videos present and
the hash to `results.json`. To continue a build that was stopped, repeat its command. `--shards=I/N`
and `--finish` spread a build over several machines (see `python -m fsar_jax.build --help`).
"""
READ = """
```python
import fsar_jax
import tensorflow_datasets as tfds
import tfds_builders  # registers the builders

builder = tfds.builder('{example}', data_dir='data'{given})
builder.download_and_prepare()  # does nothing if it is built
video = builder.as_data_source('test')[0]
video['frames'], video['label']  # uint8 [L, H, W, 3], int

episodes = fsar_jax.episodes('{example}', 'test', data_dir='data')
episodes[0]['support']  # uint8 [way, shot, L, S, S, 3]
```

`decoders={{'frames': TakeFrames(8)}}` (`fsar_jax.data.frames_feature`) decodes eight frames,
`tfds.decode.SkipDecoding()` none. A dataset that another program should read needs `fsar_jax`
installed there, which knows how the frames are stored.

With TensorFlow installed, `tfds build{flag}` in this folder builds too. `tfds.load` and `tf.data`
read TFRecord, which `--file_format=tfrecord` writes; training reads the default, `array_record`.
"""


def parts_of(name: str) -> dict[str, str]:
    """{name of a part: Markdown} of a builder."""
    kind = BUILDERS[name]
    parts = {'python': _python(name, kind), 'record': _record(name, kind)}
    citation = kind.get_metadata().citation
    if citation:
        parts['citation'] = f'\n```bibtex\n{citation.strip()}\n```\n'
    if issubclass(kind, BenchmarkBuilder):
        parts['splits'] = _splits(kind)
        parts['frames_folder'] = FRAMES_FOLDER
        parts['build'] = _build(name, kind)
    return parts


def _splits(kind):
    published = kind.published()
    rows = (
        ('', *SPLITS),
        ('classes', *(f'{len(published[split]["classes"]):,}' for split in SPLITS)),
        ('videos', *(f'{published[split]["num_videos"]:,}' for split in SPLITS)),
    )
    return _table(rows)


def _build(name, kind):
    counts = [kind.published()[split]['num_videos'] for split in SPLITS]
    usual = min(kind.USUAL_FRAMES, RecordSettings().max_frames)
    each = videos_per_shard(RecordSettings(), kind.USUAL_FRAMES)
    complete = COMPLETE.format(
        name=name,
        records=sum(counts),
        files=sum(-(-count // each) for count in counts),
        size=sum(counts) * usual * FRAME_BYTES / 1e9,
        why=f' (clips have about {usual} frames)' if usual < RecordSettings().max_frames else '',
    )
    return _filled(complete) + _filled(CHECKED.format(name=name))


def _python(name, kind: type[VideoBuilder]):
    example, given, flag = name, '', ''
    if name == 'video_folder':
        example += '/mine'
    elif kind.BUILDER_CONFIGS:
        example += '/misaligned'
    if kind.VIDEOS_FIELD:
        given, flag = ", videos='/my/videos'", ' --manual_dir=/my/videos'
    code, *texts = READ.format(example=example, given=given, flag=flag).rsplit('```\n', 1)
    return code + '```\n' + ''.join(map(_filled, '\n'.join(texts).strip('\n').split('\n\n')))


def _record(name, kind):
    builder = kind(data_dir='/nonexistent')
    rows = [('field', 'type', 'what it is')]
    for field, feature in builder.info.features.items():
        rows.append((f'`{field}`', _type(feature), feature.doc.desc))
    return _table(rows)


def _type(feature):
    """'uint8 [L, H, W, 3]'"""
    if isinstance(feature, Frames):
        return 'uint8 [L, H, W, 3]'
    if isinstance(feature, tfds.features.Text):
        return 'text'
    dtype = np.dtype(feature.np_dtype).name
    shape = ', '.join('L' if side is None else str(side) for side in feature.shape)
    return f'{dtype} [{shape}]' if shape else dtype


def _table(rows):
    head, *body = (f'| {" | ".join(row)} |'.replace('|  |', '| |') for row in rows)
    return '\n'.join(['', head, '|' + '---|' * len(rows[0]), *body, ''])


def _filled(text):
    return (
        '\n'
        + textwrap.fill(' '.join(text.split()), 100, break_long_words=False, break_on_hyphens=False)
        + '\n'
    )


def with_parts(readme: str, parts: dict[str, str]) -> str:
    """The README with every part written anew; ValueError unless it has exactly these parts."""
    found = [match[2] for match in PART.finditer(readme)]
    if sorted(found) != sorted(parts):
        raise ValueError(f'the README has the parts {sorted(found)}, not {sorted(parts)}')
    return PART.sub(lambda match: match[1] + parts[match[2]] + '\n' + match[3], readme)


def path_of(name: str) -> pathlib.Path:
    return pathlib.Path(tfds_builders.__file__).with_name(name) / 'README.md'


def main() -> None:
    for name in BUILDERS:
        path = path_of(name)
        path.write_text(with_parts(path.read_text(), parts_of(name)))


if __name__ == '__main__':
    main()
