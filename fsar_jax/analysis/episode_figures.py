"""The pictures of an episode: which frames a method compares, where it looks, and how it aligns.
Plain arrays in, a matplotlib Figure out.

Frames are uint8 [L, H, W, 3]. A strip of them lies in one Axes: frame i is the square from (i, row)
to (i + 1 - GAP, row + 1 - GAP), y downwards, so that boxes and lines can be placed by hand.
"""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from fsar_jax.analysis.figures import BLACK, BLUE, COLOURS, GREEN, GREY, SKY, VERMILLION, styled
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.messages import printable

GAP = 0.06
INCH = 0.85  # of a frame's side on paper
NAMES = 0.95  # room for the names of rows, in frames
OBJECT = SKY
TUPLE_COLOURS = (VERMILLION, GREEN, BLUE)  # the papers' red, green and blue
RANKS = ('1st', '2nd', '3rd')


class TupleMatch(NamedTuple):
    """A tuple of a query's frames, and what it attends to.

    Attributes:
      query: its frames.
      best: (clip, frames, weight) of the support tuples with most weight, best first.
    """

    query: tuple[int, ...]
    best: list[tuple[int, tuple[int, ...], float]]


def best_matches(
    attention: np.ndarray, tuples: np.ndarray, chosen: Sequence[int] | None = None, count: int = 3
) -> list[TupleMatch]:
    """The tuples that a cross-transformer matches.

    Args:
      attention: [T, shot, T], of a query's tuples to those of a class.
      tuples: int [T, ω], the frames of each.
      chosen: which of the query's tuples; None for the `count` with the strongest best match.
      count: how many, and how many matches of each.
    """
    flat = attention.reshape(len(attention), -1)
    if chosen is None:
        chosen = np.argsort(-flat.max(1), kind='stable')[:count].tolist()
    found = []
    for row in chosen:
        order = np.argsort(-flat[row], kind='stable')[:count]
        clips, places = np.unravel_index(order, attention.shape[1:])
        best = [
            (int(clip), tuple(tuples[place].tolist()), float(flat[row, at]))
            for clip, place, at in zip(clips, places, order)
        ]
        found.append(TupleMatch(tuple(tuples[row].tolist()), best))
    return found


@styled
def tuple_matches(
    query: np.ndarray, support: np.ndarray, columns: Mapping[str, Sequence[TupleMatch]]
) -> Figure:
    """A query on top, the support clips of its class below; lines join each tuple of the query to
    the frames of its best match, frame by frame (STRM, Fig. 10 to 14).

    Args:
      query: [L, H, W, 3]; support: [shot, L, H, W, 3].
      columns: {method: matches}, side by side; each match has a colour. The second and third best
        stand in the text below.
    """
    length, shots = len(query), len(support)
    tops = [0.0, *(1.75 + 1.25 * shot for shot in range(shots))]
    bottom = tops[-1] + 1.15
    words = 0.32 * max(len(matches) for matches in columns.values())
    names = ['support'] if shots == 1 else [f'support {i + 1}' for i in range(shots)]
    figure, axes = _strips(len(columns), length, bottom + words, NAMES, list(columns))
    for axis, matches in zip(axes, columns.values()):
        strip(axis, query, 0, tops[0])
        _row_name(axis, tops[0], 'query')
        _frame_numbers(axis, length)
        for shot, frames in enumerate(support):
            strip(axis, frames, 0, tops[shot + 1])
            _row_name(axis, tops[shot + 1], names[shot])
        for place, (match, colour) in enumerate(zip(matches, TUPLE_COLOURS)):
            inset = 0.05 * place
            clip, frames, _ = match.best[0]
            # Lines of different tuples leave a frame side by side.
            aside = 0.5 - GAP / 2 + 0.16 * (place - 1)
            for of_query, of_support in zip(match.query, frames):
                _box(axis, of_query, tops[0], colour, inset)
                _box(axis, of_support, tops[clip + 1], colour, inset)
                axis.plot(
                    [of_query + aside, of_support + aside],
                    [tops[0] + 1 - GAP - inset, tops[clip + 1] + inset],
                    color=colour,
                    linewidth=1.8,
                    gid=f'match {place}',
                )
            shown = ', '.join(
                f'{rank} {f"clip {clip + 1} " if shots > 1 else ""}{_numbers(frames)} {weight:.1%}'
                for rank, (clip, frames, weight) in zip(RANKS, match.best)
            )
            axis.text(
                0,
                bottom + 0.32 * place,
                f'{_numbers(match.query)} → {shown}',
                color=colour,
                va='center',
                fontsize=8,
                gid='words',
            )
    return figure


@styled
def activation_maps(
    frames: np.ndarray, rows: Mapping[str, np.ndarray], objects: np.ndarray | None = None
) -> Figure:
    """The frames, and below them one row per stage with its activations laid over the frames
    (STRM, Fig. 1, 5 and 15).

    Args:
      frames: [L, H, W, 3].
      rows: {stage: activations [l, h, w]}, one map for every L / l frames. The colours of a row go
        from its least to its greatest value.
      objects: [L, 4], x0, y0, x1, y1 of the object from 0 to 1, NaN where it is not visible; or
        None where nobody knows.
    """
    length = len(frames)
    figure, [axis] = _strips(1, length, len(rows) + 1.4, 1.55)
    strip(axis, frames, 0, 0)
    _row_name(axis, 0, 'frames')
    _frame_numbers(axis, length)
    for row, (name, maps) in enumerate(rows.items(), 1):
        low, high = float(maps.min()), float(maps.max())
        places = frame_indices(length, len(maps), 'segment')
        width = length / len(maps)
        for place, (frame, activation) in enumerate(zip(frames[places], maps)):
            extent = _extent(place * width, row)
            grey = np.repeat(frame.mean(-1, keepdims=True).astype(np.uint8), 3, -1)
            axis.imshow(grey, extent=extent)
            axis.imshow(
                activation,
                extent=extent,
                cmap='inferno',
                vmin=low,
                vmax=max(high, low + 1e-9),
                alpha=0.6,
                interpolation='bilinear',
                gid=f'overlay {row} {place}',
            )
            if objects is not None:
                _object(axis, place * width, row, objects[places[place]], f'{row} {place}')
        _row_name(axis, row, name)
    end = len(rows) + 1.12
    shades = np.linspace(0, 1, 64)[None]
    axis.imshow(shades, extent=(0.75, 2.25, end + 0.2, end), cmap='inferno', aspect='auto')
    words = {'va': 'center', 'fontsize': 8}
    axis.text(0.68, end + 0.1, 'least', ha='right', **words)
    axis.text(2.32, end + 0.1, 'most of its row', **words)
    if objects is not None:
        _key(axis, {OBJECT: 'the object, from the records'}, 4.2, end + 0.1)
    axis.set_aspect('equal')
    return figure


@styled
def alignment_matrices(panels: Mapping[str, Mapping]) -> Figure:
    """A matrix of frame pairs with the query's frames along the left and the support's along the
    top, and the cells that count joined by lines (OTAM; TA2N, Fig. 5).

    Args:
      panels: {title: {'values': [Lq, Ls]; 'query', 'support': frames; 'paths': {name: int [n, 2],
        (row, column) of its cells}; 'label': what the values are}}.
    """
    first = next(iter(panels.values()))['values']
    rows, columns = first.shape
    scale = INCH * 0.62
    figure = Figure(
        figsize=(scale * (columns + 3.6) * len(panels), scale * (rows + 3.2)), layout='constrained'
    )
    for axis, (title, panel) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items()
    ):
        image = axis.imshow(
            panel['values'], extent=(0, columns, rows, 0), cmap='Greys', interpolation='nearest'
        )
        shown = panel['query'][frame_indices(len(panel['query']), rows, 'segment')]
        for row, frame in enumerate(shown):
            axis.imshow(frame, extent=(-1.1, -1.1 + 1 - GAP, row + 1 - GAP, row))
        shown = panel['support'][frame_indices(len(panel['support']), columns, 'segment')]
        for column, frame in enumerate(shown):
            axis.imshow(frame, extent=(column, column + 1 - GAP, -0.1, -1.1 + GAP))
        for number, (name, cells) in enumerate(panel['paths'].items()):
            cells = np.asarray(cells)
            axis.plot(
                cells[:, 1] + 0.5,
                cells[:, 0] + 0.5,
                color=(VERMILLION, BLUE)[number % 2],
                marker='os'[number % 2],
                markersize=4 + 3 * number,
                markerfacecolor='none' if number else None,
                linewidth=1.5,
                label=name,
            )
        _limits(axis, columns, rows, left=1.5, top=1.15)
        axis.set_title('\n'.join(textwrap.wrap(printable(title, 90), 46)), fontsize=8)
        axis.text(-1.2, rows / 2, 'query', rotation=90, ha='right', va='center', fontsize=8)
        axis.legend(loc='upper center', bbox_to_anchor=(0.5, 0), frameon=False, fontsize=8)
        bar = figure.colorbar(image, ax=axis, shrink=0.5, aspect=25)
        bar.set_label(panel['label'], fontsize=8)
    return figure


@styled
def coordination(clips: Mapping[str, Mapping]) -> Figure:
    """Each clip with the window of a temporal transform, and the frames that the window reads with
    the box of spatial coordination (TA2N, Fig. 7 and 10; VIM, Fig. 24 and 25).

    Args:
      clips: {name: {'frames': [L, H, W, 3]; 'window': (a, b) or None; 'boxes': [L, 4] or None, x0,
        y0, x1, y1 from −1 to 1; 'action': its first and last frame if they are known, NaN if no
        frame shows it}}. Frame i of the second row is read at a·t_i + b and shows the nearest
        frame; black lies beyond the clip.
    """
    length = len(next(iter(clips.values()))['frames'])
    rows = sum(1 + (clip['window'] is not None) for clip in clips.values())
    figure, [axis] = _strips(1, length, rows + 0.35, 1.55)
    _frame_numbers(axis, length)
    row, key = 0, {}
    for name, clip in clips.items():
        strip(axis, clip['frames'], 0, row)
        _row_name(axis, row, name)
        window = clip['window']
        if clip.get('action') is not None and np.isfinite(clip['action']).all():
            start, end = clip['action']
            line = axis.plot(
                [start, end + 1 - GAP],
                [row + 0.88] * 2,
                color=GREEN,
                linewidth=4,
                solid_capstyle='butt',
            )
            line[0].set_gid(f'action {name}')
            key[GREEN] = 'the action, from the records'
        if window is not None:
            start, end = window_span(window, length)
            corner = start - GAP / 2, row - GAP / 2
            _outline(axis, corner, end - start, 1, BLUE, 2.5, f'window {name}', zorder=3)
            key[BLUE] = 'what the temporal transform reads'
            row += 1
            strip(axis, warped_frames(clip['frames'], window), 0, row)
            _row_name(axis, row, 'in the window')
        if clip['boxes'] is not None:
            key[VERMILLION] = 'what spatial coordination compares'
            for place, box in enumerate(np.asarray(clip['boxes'])):
                x0, y0, x1, y1 = (box + 1) / 2 * (1 - GAP)
                corner, gid = (place + x0, row + y0), f'box {name} {place}'
                _outline(axis, corner, x1 - x0, y1 - y0, VERMILLION, 2, gid, zorder=4)
        row += 1
    _key(axis, key, -1.5, rows + 0.15)
    return figure


def _outline(axis, corner, width, height, colour, linewidth, gid, zorder):
    axis.add_patch(
        Rectangle(
            corner,
            width,
            height,
            fill=False,
            edgecolor=colour,
            linewidth=linewidth,
            gid=gid,
            zorder=zorder,
        )
    )


@styled
def sampler_choice(
    frames: np.ndarray,
    indices: np.ndarray,
    scores: np.ndarray | None = None,
    saliency: np.ndarray | None = None,
    clip: np.ndarray | None = None,
    action: tuple[float, float] | None = None,
    objects: np.ndarray | None = None,
) -> Figure:
    """What a sampler takes of M frames: a bar for each with its score, green where it is chosen;
    then the chosen frames, their saliency and the frames that the model sees (VIM, Fig. 14 and 23).

    Args:
      frames: [M, H, W, 3].
      indices: int [T].
      scores: [M]; None draws bars of one height.
      saliency: [T, h, w] or None; clip: [T, H', W', 3], the amplified frames, or None.
      action: its first and last of the M frames, if they are known.
      objects: of the chosen frames, as for `activation_maps`.
    """
    dense, count = len(frames), len(indices)
    chosen = np.isin(np.arange(dense), indices)
    lower = [('chosen', frames[indices])]
    lower += [] if saliency is None else [('saliency', frames[indices])]
    lower += [] if clip is None else [('amplified', clip)]
    small = count / dense  # so that the row of all frames is as wide as that of the chosen ones
    total = 0.8 + small + len(lower)
    figure, [axis] = _strips(1, count, total + 0.35, 1.15, top=0)
    heights = np.full(dense, 0.7)
    if scores is not None:
        above = np.asarray(scores, float) - np.min(scores)
        heights = 0.1 + 0.6 * above / max(float(above.max()), 1e-9)
    for place in range(dense):
        axis.add_patch(
            Rectangle(
                ((place + 0.15) * small, 0.75 - heights[place]),
                0.7 * small,
                heights[place],
                color=GREEN if chosen[place] else GREY,
                gid=f'bar {place}',
            )
        )
        edge = (1 - GAP) * small
        axis.imshow(frames[place], extent=(place * small, place * small + edge, 0.8 + edge, 0.8))
    _row_name(axis, 0.2, f'score\nof {dense} frames' if scores is not None else f'{dense} frames')
    for row, (name, shown) in enumerate(lower):
        top = 0.8 + small + row
        strip(axis, shown, 0, top)
        if name == 'chosen':
            for place, index in enumerate(indices):
                axis.text(place + 0.05, top + 0.08, index, color='white', fontsize=7, va='top')
        if objects is not None and name != 'amplified':
            for place, box in enumerate(objects):
                _object(axis, place, top, box, f'{name} {place}')
        if name == 'saliency' and saliency is not None:
            for place, salient in enumerate(saliency):
                axis.imshow(
                    salient,
                    extent=_extent(place, top),
                    cmap='inferno',
                    vmin=0,
                    alpha=0.6,
                    interpolation='bilinear',
                    gid=f'overlay {place}',
                )
        _row_name(axis, top, name)
    key = {GREEN: 'chosen'}
    if action is not None:
        ends = action[0] * small, (action[1] + 1 - GAP) * small
        axis.plot(
            ends, [0.775] * 2, color=VERMILLION, linewidth=3, solid_capstyle='butt', gid='action'
        )
        key[VERMILLION] = 'the action, from the records'
    if objects is not None:
        key[OBJECT] = 'the object, from the records'
    _key(axis, key, 0, total + 0.15)
    return figure


@styled
def chosen_frames(
    clips: Sequence[tuple[str, np.ndarray, np.ndarray, tuple[float, float] | None]],
) -> Figure:
    """A row for each clip: the M frames that a sampler chooses from, framed where it chooses them,
    with a line below those that show the action.

    Args:
      clips: (class, frames [M, H, W, 3], indices int [T], the first and last of the M frames that
        show the action, or None where nobody knows or none does).
    """
    length, step = len(clips[0][1]), 1.18
    end = step * len(clips)
    figure, [axis] = _strips(1, length, end + 0.5, 3.2)
    _frame_numbers(axis, length)
    for row, (name, frames, indices, action) in enumerate(clips):
        strip(axis, frames, 0, step * row)
        for place in indices:
            corner = float(place), step * row
            _outline(axis, corner, 1 - GAP, 1 - GAP, GREEN, 3.5, f'chosen {row} {place}', zorder=4)
        if action is not None:
            line = axis.plot(
                [action[0], action[1] + 1 - GAP],
                [step * row + 1.02] * 2,
                color=VERMILLION,
                linewidth=3,
                solid_capstyle='butt',
            )
            line[0].set_gid(f'action {row}')
        _row_name(axis, step * row, '\n'.join(textwrap.wrap(printable(name, 90), 30)))
    _key(axis, {GREEN: 'chosen', VERMILLION: 'the action, from the records'}, 0, end + 0.2)
    return figure


@styled
def angles(cosines: Mapping[str, ArrayLike], names: Sequence[str], label: int) -> Figure:
    """The angle between a query and each class, on a quarter circle: 0° is the same direction
    (MASTAF, appendix, Fig. 1).

    Args:
      cosines: {representation: [way]}.
      names: of the classes; label: the true one, drawn as a star.
    """
    labels = [textwrap.wrap(printable(name, 90), 34) for name in names]
    rows = sum(map(len, labels))
    figure = Figure(figsize=(2.7 * len(cosines), 3.1 + 0.17 * rows), layout='constrained')
    axes = figure.subplots(1, len(cosines), squeeze=False)[0]
    for axis, (title, values) in zip(axes, cosines.items()):
        angle = np.degrees(np.arccos(np.clip(np.asarray(values, float), -1, 1)))
        turn = np.radians(np.linspace(0, 90, 91))
        axis.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=1)
        axis.plot([1, 0, 0], [0, 0, 1], color=GREY, linewidth=0.8)
        for number, degrees in enumerate(angle):
            x, y = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            colour = COLOURS[number % len(COLOURS)]
            axis.plot([0, x], [0, y], color=colour, linewidth=1, alpha=0.6)
            mark = '*' if number == label else 'o'
            axis.plot(
                x, y, mark, color=colour, markersize=14 if mark == '*' else 6, gid=str(number)
            )
        nearest = np.argsort(angle, kind='stable')
        verdict = 'right' if nearest[0] == label else 'wrong'
        axis.set_title(f'{title}: {verdict}', fontsize=9)
        row = 0
        for i in nearest:
            colour, text = COLOURS[i % len(COLOURS)], partial(axis.text, fontsize=7, va='top')
            height = lambda: -0.1 - 0.11 * row
            text(-0.04, height(), '★' if i == label else '', color=colour)
            text(0.05, height(), f'{angle[i]:.1f}°', color=colour)
            for part in labels[i]:
                text(0.25, height(), part, color=colour)
                row += 1
        axis.set_xlim(-0.04, 1.1)
        axis.set_ylim(-0.12 - 0.11 * rows, 1.06)
        axis.set_aspect('equal')
        axis.axis('off')
    return figure


def overlap_boxes(offsets: ArrayLike, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the maps of a pair overlap when one is moved by the offset: the parts that spatial
    coordination compares (TA2N, Eq. 5 and 11).

    Args:
      offsets: [..., 2], (x, y); half a frame is 1.
      sign: 1 where an offset is the object's place in the query minus that in the support, −1 where
        it is the opposite (`ActionCoordination.offset_sign`).

    Returns:
      (of the support, of the query), [..., 4]: x0, y0, x1, y1, the frame from −1 to 1.
    """
    moved = sign * np.asarray(offsets, float)
    box = lambda o: np.concatenate([np.maximum(-1, o - 1), np.minimum(1, o + 1)], -1)
    return box(-moved), box(moved)


def window_span(window: ArrayLike, length: int) -> tuple[float, float]:
    """From where to where a window (a, b) reaches, in frames, each 1 wide: (0, L) is the whole
    clip."""
    a, b = np.asarray(window, float)
    ends = np.clip([b - abs(a), b + abs(a)], -1, 1)
    start, end = (ends + 1) / 2 * (length - 1)
    return float(start), float(end) + 1


def warped_frames(frames: np.ndarray, window: ArrayLike) -> np.ndarray:
    """The frame that is nearest to a·t_i + b for each i; black beyond the clip."""
    a, b = np.asarray(window, float)
    position = (a * np.linspace(-1, 1, len(frames)) + b + 1) / 2 * (len(frames) - 1)
    inside = (position > -1) & (position < len(frames))
    nearest = np.clip(np.rint(position), 0, len(frames) - 1).astype(int)
    return np.where(inside[:, None, None, None], frames[nearest], 0).astype(np.uint8)


def strip(axis: Axes, frames: np.ndarray, left: float, top: float) -> list[AxesImage]:
    """Draws frames side by side."""
    return [
        axis.imshow(frame, extent=_extent(left + place, top)) for place, frame in enumerate(frames)
    ]


def _extent(left, top):
    return (left, left + 1 - GAP, top + 1 - GAP, top)


def _box(axis, place, top, colour, inset):
    side = 1 - GAP - 2 * inset
    axis.add_patch(
        Rectangle(
            (place + inset, top + inset), side, side, fill=False, edgecolor=colour, linewidth=2
        )
    )


def _strips(columns, length, height, left, titles=(), top=0.3):
    """(figure, Axes for strips of `length` frames side by side), without room lost: one unit of an
    Axes is INCH on paper, x from -left, y from -top down to `height`."""
    head = 0.3 if any(titles) else 0
    width, tall = left + length + 0.05, top + height
    figure = Figure(figsize=(INCH * width * columns, INCH * (tall + head)))
    axes = []
    for number in range(columns):
        axis = figure.add_axes((number / columns, 0, 1 / columns, tall / (tall + head)))
        axis.set_xlim(-left, length + 0.05)
        axis.set_ylim(height, -top)
        axis.axis('off')
        # `imshow` would fit the Axes to its frame.
        axis.set_aspect('equal', adjustable='box', anchor='NW')
        if titles and titles[number]:
            axis.set_title(printable(titles[number], 60), fontsize=10)
        axes.append(axis)
    return figure, axes


def _frame_numbers(axis, length):
    for place in range(length):
        axis.text(
            place + 0.5 - GAP / 2, -0.06, place, ha='center', va='bottom', fontsize=7, color=GREY
        )


def _object(axis, left, top, box, gid):
    """A thin box around the object, x0, y0, x1, y1 from 0 to 1 of a frame; none where it is NaN."""
    if np.isfinite(box).all():
        x0, y0, x1, y1 = np.clip(box, 0, 1) * (1 - GAP)
        corner = left + x0, top + y0
        _outline(axis, corner, x1 - x0, y1 - y0, OBJECT, 1, f'object {gid}', zorder=4)


def _key(axis, entries, left, top):
    """What each colour means, in one line."""
    handles = [Line2D([], [], color=colour, linewidth=2.5) for colour in entries]
    axis.legend(
        handles,
        entries.values(),
        loc='center left',
        bbox_to_anchor=(left, top),
        bbox_transform=axis.transData,
        ncols=len(entries),
        fontsize=8,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _limits(axis, length, height, left, top):
    axis.set_xlim(-left, length + 0.02)
    axis.set_ylim(height, -top - 0.03)
    axis.set_aspect('equal', anchor='NW')
    axis.axis('off')


def _row_name(axis, row, name):
    axis.text(
        -0.08,
        row + 0.47,
        printable(name, 60) if '\n' not in name else name,
        ha='right',
        va='center',
        fontsize=8,
        color=BLACK,
        wrap=True,
    )


def _numbers(frames):
    return '(' + ', '.join(map(str, frames)) + ')'
