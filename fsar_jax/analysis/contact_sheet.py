"""A contact sheet of a dataset; `fsar_jax/contact_sheet.py` is the command.

Each row shows a class: its name and the frames of one clip that a model would see, with the box of
the object if the record has one.
"""

import functools
import importlib.util
import io
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from fsar_jax.data.dataset import VideoDataset
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.data.frames import decode_jpeg
from fsar_jax.files import write_whole
from fsar_jax.messages import one_line, printable

LABEL_WIDTH = 330  # pixels for the class name
BOX_COLOUR = (255, 255, 255)


def contact_sheet(
    dataset: VideoDataset, length: int = 8, clip: int = 0, columns: int = 2, height: int = 64
) -> Image.Image:
    """Draws clip number `clip` of each class: the `length` frames that a test uses, `height` pixels
    high.

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
    for index in frame_indices(len(record['frames']), length, 'trx'):
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
        frames.append(frame.resize((max(1, round(frame.width * height / frame.height)), height)))
    row = Image.new('RGB', (LABEL_WIDTH + sum(f.width for f in frames), height))
    truth = (
        f"\naction: frames {record['action_start']} to {record['action_end']}"
        if 'action_start' in record
        else ''
    )
    place = 6, height // 2 - 12
    ImageDraw.Draw(row).text(place, name + truth, fill=BOX_COLOUR, font=_font())
    left = LABEL_WIDTH
    for frame in frames:
        row.paste(frame, (left, 0))
        left += frame.width
    return row


@functools.cache
def _font():
    """The font of matplotlib where that is installed, which has letters with accents; else PIL's
    own, None."""
    found = importlib.util.find_spec('matplotlib')
    if found is None or found.origin is None or not features.check('freetype2'):
        return None
    path = pathlib.Path(found.origin).parent / 'mpl-data/fonts/ttf/DejaVuSans.ttf'
    return ImageFont.truetype(path, 10) if path.exists() else None


def write_sheet(sheet: Image.Image, path: pathlib.Path) -> None:
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
