"""A contact sheet of a dataset: python -m fsar_jax.analysis.contact_sheet --dataset=synthetic_actions/misaligned --out=sheet.png

One row per class: its name and the frames that a model sees of one clip, with the object's box
where the record has it. Look at your clips before you train on them.
"""

import argparse
import io
import sys

from fsar_jax.stopping import on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('no picture was written')

import numpy as np
from PIL import Image, ImageDraw

from fsar_jax.data.dataset import VideoDataset, open_dataset
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.data.frames import decode_jpeg
from fsar_jax.files import local_path, write_whole
from fsar_jax.messages import one_line, printable

LABEL_WIDTH = 330  # pixels for the class name
BOX_COLOUR = (255, 255, 255)


def contact_sheet(
    dataset: VideoDataset, length: int = 8, clip: int = 0, columns: int = 2, height: int = 64
) -> Image.Image:
    """Draws clip number `clip` of each class, `length` frames at the test-time places, `height`
    pixels high.

    Args:
      dataset: an open split.
      length: L, frames of a clip.
      clip: which clip of each class, counted in record order; classes with fewer clips show their
        last.
      columns: of the sheet.
      height: of a frame on the sheet.

    Returns:
      An RGB image; the action's first and last stored frame stand under the name where the record
      has them.

    Raises:
      ValueError: `length` below 1, `clip` below 0, or a stored frame that cannot be decoded.
    """
    if clip < 0:
        raise ValueError(f'--clip={clip} must be at least 0')
    rows = []
    for label in np.unique(dataset.labels):
        clips = np.flatnonzero(dataset.labels == label)
        record = dataset.read(int(clips[min(clip, len(clips) - 1)]))
        rows.append(_draw_row(dataset, label, record, length, height))
    width = max(row.width for row in rows)
    per_column = -(-len(rows) // columns)
    sheet = Image.new('RGB', (width * columns, per_column * height))
    for i, row in enumerate(rows):
        sheet.paste(row, (i // per_column * width, i % per_column * height))
    return sheet


def _draw_row(dataset, label, record, length, height):
    name, frames = printable(dataset.class_names[label], 52), []
    for index in frame_indices(len(record['frames']), length):
        try:
            frame = Image.fromarray(decode_jpeg(record['frames'][index]))
        except ValueError as error:
            raise ValueError(
                f"video '{printable(record['video_id'])}', frame {index}: {error}: {dataset.advice}"
            ) from None
        if 'boxes' in record and np.any(record['boxes'][index]):
            ImageDraw.Draw(frame).rectangle(
                [float(v) for v in record['boxes'][index]], outline=BOX_COLOUR
            )
        frames.append(frame.resize((round(frame.width * height / frame.height), height)))
    row = Image.new('RGB', (LABEL_WIDTH + sum(f.width for f in frames), height))
    truth = (
        f"\naction: frames {record['action_start']} to {record['action_end']}"
        if 'action_start' in record
        else ''
    )
    ImageDraw.Draw(row).text((6, height // 2 - 12), name + truth, fill=BOX_COLOUR)
    left = LABEL_WIDTH
    for frame in frames:
        row.paste(frame, (left, 0))
        left += frame.width
    return row


def write_sheet(sheet: Image.Image, path) -> None:
    """Writes the picture as its suffix says, whole or not at all. ValueError where PIL knows no
    such format, or cannot hold it in one."""
    content, suffix = io.BytesIO(), path.suffix.lower()
    try:
        sheet.save(content, Image.registered_extensions()[suffix])
    except KeyError:
        raise ValueError(f'--out={printable(path)} does not end in .png or .jpg') from None
    except (OSError, ValueError) as error:
        raise ValueError(
            f'--out={printable(path)}: {suffix} does not take this picture ({one_line(error)}): '
            'try .png'
        ) from None
    write_whole(path, content.getvalue())


def main():
    parser = argparse.ArgumentParser(
        prog='python -m fsar_jax.analysis.contact_sheet',
        description='Draws one clip of each class.',
        allow_abbrev=False,
    )
    parser.add_argument(
        '--dataset', required=True, help='as config.data.dataset, e.g. synthetic_actions/misaligned'
    )
    parser.add_argument('--dir', default='data', help='as config.data.dir')
    parser.add_argument('--split', default='test')
    parser.add_argument('--clip', type=int, default=0, help='which clip of each class')
    parser.add_argument('--frames', type=int, default=8)
    parser.add_argument('--out', required=True, help='the picture to write, .png or .jpg')
    args = parser.parse_args()
    data_dir, out = local_path(args.dir, '--dir'), local_path(args.out, '--out')
    write_sheet(
        contact_sheet(open_dataset(args.dataset, data_dir, args.split), args.frames, args.clip), out
    )


if __name__ == '__main__':
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f'error: {one_line(error)}')
