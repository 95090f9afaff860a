"""The pictures of a run: curves, accuracies, confusion, classes, and t-SNE. Plain arrays in, a
matplotlib Figure out.

What happens inside an episode is drawn in episode_figures.py. `save` writes a Figure as PNG and
PDF. Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

import io
import pathlib
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from fsar_jax.files import write_whole
from fsar_jax.messages import printable

BLUE, ORANGE, GREEN, VERMILLION = '#0072B2', '#E69F00', '#009E73', '#D55E00'
PURPLE, SKY, BLACK, GREY = '#CC79A7', '#56B4E9', '#000000', '#9A9A9A'
COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK)
MARKERS = 'osD^vP*X'
STYLE: Any = {
    'pdf.fonttype': 42,  # fonts inside, as text that can be searched and edited
    'text.parse_math': False,  # a '$' in the name of a class is a '$'
    'font.size': 9,
    'axes.titlesize': 10,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'figure.facecolor': 'white',
}
DPI = 110
MOST_NUMBERS = 30  # classes of a confusion matrix whose cells have numbers
styled = matplotlib.rc_context(STYLE)

# Step and value of each point of a line, each [N].
Line = tuple[ArrayLike, ArrayLike]


def save(figure: Figure, stem: pathlib.Path) -> bytes:
    """Writes <stem>.png and <stem>.pdf, each whole or not at all, and returns the bytes of the PNG.

    The same figure gives the same bytes: neither file holds a date.
    """
    png, pdf = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A name in letters that the font lacks has boxes in their place.
        warnings.filterwarnings('ignore', message='Glyph .* missing from')
        FigureCanvasPdf(figure).print_pdf(pdf, metadata={'CreationDate': None})
        FigureCanvasAgg(figure).print_png(png, metadata={'Software': None})
    write_whole(stem.with_suffix('.png'), png.getvalue())
    write_whole(stem.with_suffix('.pdf'), pdf.getvalue())
    return png.getvalue()


@styled
def training_curves(
    panels: Mapping[str, Mapping[str, Line]], selected: int | None = None
) -> Figure:
    """One panel for each quantity, over the optimiser steps.

    Args:
      panels: {quantity: {line: (steps, values)}}; a value may be NaN. A line of more than 40 points
        is drawn faintly, and its running mean over a twentieth of the points on top of it.
      selected: the step of the checkpoint that is evaluated; a vertical line.
    """
    count = len(panels)
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.3 * columns, 2.3 * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (quantity, lines) in zip(axes.flat, panels.items()):
        for number, (name, (steps, values)) in enumerate(lines.items()):
            colour = COLOURS[number % len(COLOURS)]
            steps, values = np.asarray(steps), np.asarray(values, float)
            many = len(steps) > 40
            few = len(steps) <= 20
            axis.plot(
                steps,
                values,
                color=colour,
                alpha=0.3 if many and _varies(values) else 1,
                linewidth=0.8 if many and _varies(values) else 1.5,
                marker='o' if few else None,
                markersize=3,
                label=None if many and _varies(values) else name,
            )
            if many and _varies(values):
                axis.plot(*_running_mean(steps, values), color=colour, linewidth=1.5, label=name)
        if selected is not None:
            axis.axvline(selected, color=GREY, linewidth=1, linestyle=':')
        axis.set_title(quantity)
        axis.set_xlabel('step')
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if 'accuracy' in quantity:
            axis.yaxis.set_major_formatter(PercentFormatter(1))
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=8)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure


@styled
def accuracies(runs: Mapping[str, tuple[float, float]], chance: float) -> Figure:
    """The test accuracy of each run with its 95% interval, beside chance.

    Args:
      runs: {name: (accuracy, half-width of the interval)}, fractions.
      chance: 1 / way.
    """
    names = [printable(name, 60) for name in runs]
    size = 4.5 + max(1.5, _inches(names)), 0.9 + 0.4 * len(runs)
    figure = Figure(figsize=size, layout='constrained')
    axis = figure.subplots()
    height = -np.arange(len(runs))
    values, widths = np.array(list(runs.values())).T
    axis.barh(height, values, height=0.6, color=COLOURS[: len(runs)], alpha=0.35)
    axis.errorbar(values, height, xerr=widths, fmt='o', color=BLACK, markersize=3, capsize=3)
    for y, value, width in zip(height, values, widths):
        axis.annotate(
            f'{100 * value:.2f} ± {100 * width:.2f} %',
            (value + width, y),
            xytext=(6, 0),
            textcoords='offset points',
            va='center',
        )
    axis.axvline(chance, color=GREY, linestyle='--', linewidth=1)
    axis.annotate(
        'chance', (chance, 1), xycoords=('data', 'axes fraction'), ha='center', va='bottom'
    )
    axis.set_yticks(height, names)
    axis.set_xlim(0, 1.18)
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    return figure


@styled
def confusion_matrix(confusion: ArrayLike, classes: Sequence[str]) -> Figure:
    """Row: the true class; column: the answer; the colour is the share of the row's queries.

    Args:
      confusion: int [C, C]; a row without queries stays white.
      classes: [C] names.
    """
    counts = np.asarray(confusion, float)
    asked = counts.sum(1, keepdims=True)
    share = np.divide(counts, asked, out=np.full(counts.shape, np.nan), where=asked > 0)
    count = len(classes)
    every = -(-count // 80)
    ticks, names = range(0, count, every), [printable(name, 64) for name in classes[::every]]
    side = min(2 + 0.28 * count, 12.5) + max(1.5, _inches(names))
    figure = Figure(figsize=(side + 1.2, side), layout='constrained')
    axis = figure.subplots()
    image = axis.imshow(share, cmap='Blues', vmin=0, vmax=1)
    axis.set_yticks(ticks, names)
    axis.set_xticks(ticks, names, rotation=90)
    axis.spines[:].set_visible(False)
    axis.set_ylabel('true class')
    axis.set_xlabel('answer')
    if count <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(share):
            if np.isfinite(value) and value >= 0.005:
                axis.text(
                    column,
                    row,
                    f'{100 * value:.0f}',
                    ha='center',
                    va='center',
                    fontsize=7,
                    color='white' if value > 0.5 else 'black',
                )
    bar = figure.colorbar(image, ax=axis, shrink=0.6, aspect=30)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label("share of the class's queries")
    return figure


@styled
def class_accuracies(per_class: Mapping[str, float], chance: float) -> Figure:
    """A bar for each class, best first.

    Args:
      per_class: {class: accuracy, a fraction}.
      chance: 1 / way.
    """
    names = sorted(per_class, key=lambda name: -per_class[name])
    figure, axis = _bars(names, [per_class[name] for name in names], [BLUE] * len(names), '{:.0%}')
    axis.axvline(chance, color=GREY, linestyle='--', linewidth=1)
    axis.set_xlim(0, 1.12)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.set_xlabel('accuracy (dashed: chance)')
    return figure


@styled
def class_gains(gains: Mapping[str, float], names: tuple[str, str]) -> Figure:
    """How much better each class is answered by the second run than by the first, largest gain
    first (STRM, Fig. 9; TA2N, Fig. 9; VIM, Fig. 16).

    Args:
      gains: {class: difference of two accuracies, a fraction}.
      names: of both runs.
    """
    ordered = sorted(gains, key=lambda name: -gains[name])
    values = [100 * gains[name] for name in ordered]
    colours = [BLUE if value >= 0 else VERMILLION for value in values]
    figure, axis = _bars(ordered, values, colours, '{:+.1f}')
    axis.axvline(0, color=BLACK, linewidth=0.8)
    axis.margins(x=0.2)
    first, second = (printable(name, 60) for name in names)
    label = f'accuracy of {second} minus {first}, in points'
    axis.set_xlabel(textwrap.fill(label, 75, break_on_hyphens=False), loc='right')
    return figure


@styled
def paired_differences(differences: ArrayLike, mean: float, ci95: float, queries: int) -> Figure:
    """How the accuracies of two runs differ from episode to episode, and on average.

    Args:
      differences: [E], second minus first, fractions.
      mean, ci95: of them, and the half-width of its 95% interval.
      queries: of an episode, so that differences are multiples of 1 / queries.
    """
    steps = np.rint(np.asarray(differences, float) * queries).astype(int)
    places = np.arange(-queries, queries + 1)
    shares = np.bincount(steps + queries, minlength=len(places)) / len(steps)
    figure = Figure(figsize=(6, 2.6), layout='constrained')
    axis = figure.subplots()
    axis.bar(100 * places / queries, shares, width=80 / queries, color=SKY)
    axis.axvline(0, color=BLACK, linewidth=0.8)
    axis.axvline(100 * mean, color=VERMILLION, linewidth=1.5)
    axis.axvspan(100 * (mean - ci95), 100 * (mean + ci95), color=VERMILLION, alpha=0.3)
    axis.set_title(f'mean {100 * mean:+.2f} ± {100 * ci95:.2f} points', color=VERMILLION)
    axis.set_xlabel('difference within an episode, in points')
    axis.set_ylabel('share of episodes')
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


@styled
def scatter(
    panels: Mapping[str, ArrayLike],
    groups: Sequence[int] | np.ndarray,
    names: Sequence[str],
    stars: Sequence[bool] | np.ndarray | None = None,
    notes: Mapping[str, str] | None = None,
    kinds: tuple[str, str] | None = None,
) -> Figure:
    """Points in the plane, one panel for each stage, coloured by group.

    Args:
      panels: {title: [N, 2]}.
      groups: int [N], which name each point has. After the last colour, colours begin again with
        another marker.
      names: of the groups.
      stars: bool [N], points that stand out: triangles with an edge.
      notes: {title: a few words below that panel}.
      kinds: what the other points are, and what those that stand out are; for the legend.
    """
    groups = np.asarray(groups)
    stars = np.zeros(len(groups), bool) if stars is None else np.asarray(stars)
    figure = Figure(figsize=(3.2 * len(panels) + 1.6, 3.2), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, points) in zip(axes, panels.items()):
        points = np.asarray(points)
        for group in np.unique(groups):
            colour = COLOURS[group % len(COLOURS)]
            marker = MARKERS[group // len(COLOURS) % len(MARKERS)]
            plain, special = (points[(groups == group) & (stars == star)] for star in (0, 1))
            label = textwrap.fill(printable(names[group], 90), 34)
            axis.scatter(*plain.T, color=colour, marker=marker, s=16, alpha=0.8, label=label)
            if len(special):
                axis.scatter(
                    *special.T,
                    color=colour,
                    marker='^',
                    s=90,
                    edgecolor=BLACK,
                    linewidth=1,
                    zorder=3,
                )
        axis.set_title(title)
        axis.set_xlabel((notes or {}).get(title, ''), fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(True)
    if len(np.unique(groups)) <= 24:
        handles, labels = axes[0].get_legend_handles_labels()
        for name, marker, size in zip(kinds or (), 'o^', (4, 9)):
            edge = BLACK if marker == '^' else GREY
            handles.append(
                Line2D(
                    [],
                    [],
                    linestyle='',
                    marker=marker,
                    markersize=size,
                    color=GREY,
                    markeredgecolor=edge,
                )
            )
            labels.append(name)
        figure.legend(handles, labels, loc='outside right upper', frameon=False, fontsize=8)
    return figure


@styled
def chosen_places(shares: ArrayLike, action: ArrayLike | None = None) -> Figure:
    """How often a sampler chooses each of the M frames (VIM, Fig. 15).

    Args:
      shares: [M], of the clips that choose it.
      action: [M], of the clips that show the action in it; None where nobody knows.
    """
    shares = np.asarray(shares, float)
    figure = Figure(figsize=(6, 2.2), layout='constrained')
    axis = figure.subplots()
    axis.bar(np.arange(len(shares)), shares, color=GREEN, label='choose it')
    if action is not None:
        middle = np.arange(len(shares))
        axis.plot(middle, np.asarray(action, float), color=VERMILLION, label='show the action')
        axis.legend(frameon=False, fontsize=8, loc='upper right', ncols=2)
    axis.set_xlabel('frame of the clip')
    axis.set_ylabel('share of clips')
    axis.set_ylim(0, 1.12)
    axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


@styled
def places_by_class(places: Mapping[str, ArrayLike]) -> Figure:
    """How often the clips of each class choose each of the M frames: a row for each class.

    Args:
      places: {class: [M], of its clips}.
    """
    shares = np.stack([np.asarray(of_class, float) for of_class in places.values()])
    names = [printable(name, 64) for name in places]
    size = 5.5 + max(3, _inches(names)), max(2.4, 1.2 + 0.22 * len(shares))
    figure = Figure(figsize=size, layout='constrained')
    axis = figure.subplots()
    image = axis.imshow(shares, cmap='Greens', vmin=0, vmax=1, aspect='auto')
    axis.set_yticks(range(len(shares)), names)
    axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axis.set_xlabel('frame of the clip')
    bar = figure.colorbar(image, ax=axis, aspect=30)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    bar.set_label('share of clips that choose it')
    return figure


def tsne(features: ArrayLike, seed: int = 0) -> np.ndarray:
    """t-SNE of N feature vectors (scikit-learn's; perplexity 30, or a third of N - 1 where that is
    less).

    Args:
      features: [N, D], N at least 4. Features of one point are scaled to unit length, because the
        methods compare by cosine or after a norm.

    Returns:
      float32 [N, 2].
    """
    # Half a second that only this picture needs.
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    features = np.asarray(features, np.float64)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    perplexity = min(30.0, (len(features) - 1) / 3)
    # So few points are faster in one thread, and the same on every machine.
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(
            features / np.maximum(lengths, 1e-12)
        )


def _bars(names, values, colours, pattern):
    """A figure with a horizontal bar and its value for each name, first on top."""
    names = [printable(name, 60) for name in names]
    size = 4 + max(3, _inches(names)), 0.8 + 0.21 * len(names)
    figure = Figure(figsize=size, layout='constrained')
    axis = figure.subplots()
    height = -np.arange(len(names))
    bars = axis.barh(height, values, color=colours)
    axis.bar_label(bars, [pattern.format(value) for value in values], padding=3, fontsize=8)
    axis.set_yticks(height, names)
    axis.set_ylim(height[-1] - 0.6, 0.6)
    return figure, axis


def _inches(names):
    """About how long the longest of these names is."""
    return 0.075 * max(map(len, names), default=0)


def _varies(values):
    """Whether a line goes up and down, so that its running mean says more."""
    changes = np.sign(np.diff(values[np.isfinite(values)]))
    return len(changes) > 0 and (changes > 0).mean() > 0.2 and (changes < 0).mean() > 0.2


def _running_mean(steps, values):
    """Means over windows of a twentieth of the points; NaN does not count."""
    width = max(5, len(values) // 20)
    known = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(known, values, 0), kernel, 'valid')
    count = np.convolve(known.astype(float), kernel, 'valid')
    middle = steps[(width - 1) // 2 :][: len(total)]
    return middle, np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
