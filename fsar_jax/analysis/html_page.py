"""The frame of a report: one HTML file that needs no network, no script and no second file.

It follows the reader's light or dark setting and fits on a phone. Whoever writes a report puts its
parts together from the functions here; every text from outside goes through `text`.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from PIL import Image

from fsar_jax.data.frames import encode_jpeg
from fsar_jax.messages import printable

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --paper: #fff;
  --sheet: #f6f8fa; --accent: #0969da; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --paper: #0d1117; --sheet: #161b22; --accent: #58a6ff; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .5rem; }
a { color: var(--accent); }
section { background: var(--sheet); border: 1px solid var(--line); border-radius: .5rem;
  padding: 1rem; margin: 1rem 0; }
.soft { color: var(--soft); }
.bad { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; min-width: 6.5rem;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.number, th.number { text-align: right; min-width: 0; }
.bars { display: grid; grid-template-columns: fit-content(40%) minmax(4rem, 1fr) auto;
  gap: .25rem .75rem; align-items: center; max-width: 44rem; }
.bars .bar { height: .8rem; border-radius: .2rem; background: var(--line); }
.bars .bar i { display: block; height: 100%; min-width: 1px; border-radius: .2rem;
  background: var(--soft); }
.bars .first { font-weight: 600; }
.bars .first + .bar i { background: var(--accent); }
figure { margin: .5rem 0 1rem; }
figcaption { color: var(--soft); font-size: .9rem; }
svg { display: block; width: 100%; height: auto; }
"""


def text(foreign: object, limit: int = 200) -> str:
    """A text from outside, such as a file name, made safe for a page: no markup, no control
    characters, at most `limit` characters."""
    return html.escape(printable(foreign, limit))


def document(title: str, parts: Iterable[str], style: str = '', head: str = '') -> str:
    """A whole page.

    Args:
      title: plain text.
      parts: HTML, in order.
      style: CSS that is added to STYLE.
      head: HTML that is added to the head.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # No icon: a browser would ask the server for one.
        f'<link rel="icon" href="data:,">\n<title>{text(title)}</title>\n'
        f'<style>{STYLE}{style}</style>\n{head}</head>\n<body>\n'
        + '\n'.join(parts)
        + '\n</body>\n</html>\n'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table.

    Args:
      head: HTML of each column's title.
      rows: HTML of the cells; a row with fewer cells than columns stretches its last one.
      numbers: columns whose cells stand on the right.
    """
    kind = ['class="number"' if i in numbers else '' for i in range(len(head))]

    def row(cells):
        stretched = len(head) - len(cells) + 1
        how = [*kind[: len(cells) - 1], kind[-1] if stretched == 1 else f'colspan="{stretched}"']
        return '<tr>' + ''.join(f'<td {h}>{c}</td>' for h, c in zip(how, cells)) + '</tr>'

    titles = ''.join(f'<th {h}>{c}</th>' for h, c in zip(kind, head))
    body = '\n'.join(row(cells) for cells in rows)
    return (
        f'<div class="wide"><table><thead><tr>{titles}</tr></thead>\n'
        f'<tbody>{body}</tbody></table></div>'
    )


def bars(values: Mapping[str, float], numbers: Mapping[str, str]) -> str:
    """One bar for each name, longest first.

    Args:
      values: {name: share from 0 to 1}; what is no number counts as 0.
      numbers: {name: HTML that stands behind its bar}.
    """
    length = {name: float(np.clip(np.nan_to_num(value), 0, 1)) for name, value in values.items()}
    order = sorted(length, key=lambda name: -length[name])
    return (
        '<div class="bars">'
        + '\n'.join(
            f'<span class="{"" if i else "first"}">{text(name, 80)}</span>'
            f'<span class="bar"><i style="width:{100 * length[name]:.1f}%"></i></span>'
            f'<span class="number">{numbers[name]}</span>'
            for i, name in enumerate(order)
        )
        + '</div>'
    )


def jpeg_uri(frame: np.ndarray, side: int, quality: int = 75) -> str:
    """A picture as the address 'data:image/jpeg;base64,…'.

    Args:
      frame: uint8 [H, W, 3] RGB.
      side: it is made smaller if its longer side has more pixels.
    """
    height, width = frame.shape[:2]
    if side < max(height, width):
        scale = side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))
    return data_uri(encode_jpeg(frame, quality))


def data_uri(jpeg: bytes) -> str:
    """The bytes of a JPEG as the address 'data:image/jpeg;base64,…'."""
    return 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode()
