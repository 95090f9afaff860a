"""The pictures of a run show the arrays that they are given."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba

from fsar_jax.analysis import figures


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def test_curves_are_the_logged_values_and_their_running_mean():
    steps = np.arange(1, 201)
    noisy = np.random.default_rng(0).normal(2, 1, 200)
    noisy[50] = np.nan
    figure = figures.training_curves(
        {
            'loss': {'loss': (steps, noisy)},
            'learning rate': {'learning rate': (steps, 1 / steps)},
            'accuracy of val episodes': {'val': ([60, 120], [0.3, 0.6])},
        },
        selected=120,
    )
    loss, rate, val = figure.axes
    raw, mean, selected = loss.lines
    np.testing.assert_array_equal(raw.get_ydata(), noisy)
    x, y = mean.get_data()
    np.testing.assert_allclose(y[0], noisy[:10].mean())
    assert x[0] == 5 and np.isclose(y[45], np.nanmean(noisy[45:55]))  # the NaN does not count
    assert set(selected.get_xdata()) == {120}
    assert len(rate.lines) == 2  # a line that only falls needs no mean
    np.testing.assert_array_equal(val.lines[0].get_ydata(), [0.3, 0.6])


def test_accuracies_have_their_intervals_and_chance():
    figure = figures.accuracies({'strm': (0.75, 0.01), 'trm': (0.5, 0.02)}, 0.2)
    [axis] = figure.axes
    assert [bar.get_width() for bar in axis.containers[0]] == [0.75, 0.5]
    [ends] = axis.containers[1].lines[2]
    np.testing.assert_allclose([s[:, 0] for s in ends.get_segments()], [[0.74, 0.76], [0.48, 0.52]])
    assert labels(axis.get_yticklabels()) == ['strm', 'trm']
    assert axis.texts[0].get_text() == '75.00 ± 1.00 %'
    assert any(set(line.get_xdata()) == {0.2} for line in axis.lines)


def test_a_row_of_the_confusion_matrix_adds_up_to_its_queries():
    figure = figures.confusion_matrix([[3, 1, 0], [0, 0, 0], [1, 1, 2]], ['a', 'b', 'c'])
    axis = figure.axes[0]
    shown = np.ma.filled(axis.images[0].get_array(), np.nan)
    np.testing.assert_allclose(
        shown, [[0.75, 0.25, 0], [np.nan] * 3, [0.25, 0.25, 0.5]], equal_nan=True
    )
    cells = {(t.get_position()[::-1]): t.get_text() for t in axis.texts}
    assert cells[0, 0] == '75' and cells[2, 1] == '25' and (0, 2) not in cells
    assert labels(axis.get_yticklabels()) == ['a', 'b', 'c']


def test_classes_stand_best_first():
    figure = figures.class_accuracies({'a': 0.2, 'b': 0.9, 'c': 0.5}, 0.2)
    [axis] = figure.axes
    assert labels(axis.get_yticklabels()) == ['b', 'c', 'a']
    assert [bar.get_width() for bar in axis.patches] == [0.9, 0.5, 0.2]
    assert [bar.get_y() for bar in axis.patches] == sorted(
        (bar.get_y() for bar in axis.patches), reverse=True
    )


def test_gains_are_sorted_and_losses_have_another_colour():
    figure = figures.class_gains({'a': -0.1, 'b': 0.2, 'c': 0.0}, ('trm', 'strm'))
    [axis] = figure.axes
    assert labels(axis.get_yticklabels()) == ['b', 'c', 'a']
    np.testing.assert_allclose([bar.get_width() for bar in axis.patches], [20, 0, -10])
    colours = [bar.get_facecolor() for bar in axis.patches]
    assert colours == [to_rgba(c) for c in (figures.BLUE, figures.BLUE, figures.VERMILLION)]
    assert axis.get_xlabel() == 'accuracy of strm minus trm, in points'


def test_paired_differences_are_counted_per_episode():
    figure = figures.paired_differences([0.2, 0.2, -0.4, 0.0], 0.0, 0.1, 5)
    [axis] = figure.axes
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axis.patches[:11]}
    assert {place: height for place, height in bars.items() if height} == {
        20: 0.5,
        -40: 0.25,
        0: 0.25,
    }


def test_points_have_the_colour_of_their_group_and_stars_are_triangles():
    points = np.arange(12.0).reshape(6, 2)
    figure = figures.scatter(
        {'before': points, 'after': -points},
        [0, 0, 1, 1, 2, 2],
        ['a', 'b', 'moving something down and back, then right and back'],
        [True, False] * 3,
        {'after': '40% nearest'},
        ('clip', 'prototype'),
    )
    before, after = figure.axes
    assert (before.get_xlabel(), after.get_xlabel()) == ('', '40% nearest')
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ['a', 'b'] and names[3:] == ['clip', 'prototype']
    assert names[2].replace('\n', ' ') == 'moving something down and back, then right and back'
    for axis, sign in ((before, 1), (after, -1)):
        plain, stars = axis.collections[::2], axis.collections[1::2]
        np.testing.assert_array_equal([c.get_offsets()[0] for c in stars], sign * points[::2])
        np.testing.assert_array_equal([c.get_offsets()[0] for c in plain], sign * points[1::2])
        for group, (a, b) in enumerate(zip(plain, stars)):
            colour = to_rgba(figures.COLOURS[group])[:3]
            assert tuple(a.get_facecolor()[0][:3]) == tuple(b.get_facecolor()[0][:3]) == colour


def test_tsne_keeps_two_clusters_apart_and_repeats():
    rng = np.random.default_rng(0)
    centres = np.eye(8)[[0, 1]].repeat(10, 0)
    features = centres + 0.05 * rng.normal(size=(20, 8))
    points = figures.tsne(features)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(20)
    assert (distance.argmin(1) // 10 == np.arange(20) // 10).all()
    np.testing.assert_array_equal(points, figures.tsne(3 * features))


def test_names_of_classes_are_plain_text(tmp_path):
    """No mathematics, no markup, no line breaks; letters that the font lacks are no warning."""
    figure = figures.class_accuracies({'$x_1$\n<b>': 0.5, '拍手': 0.4, 'a' * 300: 0.1}, 0.2)
    png = figures.save(figure, tmp_path / 'classes')
    names = labels(figure.axes[0].get_yticklabels())
    assert names[0] == '$x_1$\\n<b>' and len(names[2]) == 61
    assert (tmp_path / 'classes.png').read_bytes() == png and png.startswith(b'\x89PNG')


@pytest.mark.parametrize('count', [2, 3, 8])
def test_long_names_leave_room_for_what_they_name(count):
    """Names as long as those of Something-Something, in figures of few classes."""
    names = [
        f'{i} pretending to put something underneath something, then not' for i in range(count)
    ]
    share = np.eye(count)
    drawn = {
        'confusion': figures.confusion_matrix(share, names),
        'places': figures.places_by_class(dict(zip(names, share))),
        'classes': figures.class_accuracies(dict(zip(names, share[0])), 0.2),
        'gains': figures.class_gains(dict(zip(names, share[0])), (names[0], names[1])),
        'runs': figures.accuracies({name: (0.5, 0.1) for name in names[:2]}, 0.2),
    }
    for name, figure in drawn.items():
        FigureCanvasAgg(figure).draw()
        axis = figure.axes[0]
        assert axis.get_window_extent().width > 2.4 * figure.dpi, name
        shown = figure.get_tightbbox()  # in inches
        assert min(shown.x0, shown.y0) > -0.01, name
        assert (shown.max <= figure.get_size_inches() + 0.01).all(), name
        across = [tick.get_window_extent() for tick in axis.get_xticklabels()]
        if name == 'confusion':
            assert all(left.x1 < right.x0 for left, right in zip(across, across[1:]))


def test_files_hold_no_date_and_their_fonts(tmp_path):
    draw = lambda: figures.class_accuracies({'a': 0.5, 'b': 0.4}, 0.2)
    for name in ('one', 'two'):
        figures.save(draw(), tmp_path / name)
    one, two = ((tmp_path / f'{name}.pdf').read_bytes() for name in ('one', 'two'))
    assert one == two and b'FontFile2' in one and b'/Type3' not in one
    assert matplotlib.rcParams['pdf.fonttype'] == 3  # what others draw stays as it was


@pytest.mark.parametrize('shares', [[0.5, 1.0, 0.0], [0.1] * 20])
def test_a_bar_for_each_frame_that_may_be_chosen(shares):
    action = np.linspace(0, 1, len(shares))
    [axis] = figures.chosen_places(shares, action).axes
    assert [bar.get_height() for bar in axis.patches] == shares
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), list(enumerate(action)))
    assert not figures.chosen_places(shares).axes[0].lines
