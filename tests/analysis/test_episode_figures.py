"""What is drawn of an episode agrees with the arrays: lines join the best matches, boxes lie where
the offset says, overlays lie on their frames."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from fsar_jax.analysis import episode_figures as figures
from fsar_jax.analysis.figures import GREEN, GREY
from fsar_jax.layers import frame_tuples
from fsar_jax.matchers.offset_masks import grid_weights, mask_weights

RNG = np.random.default_rng(0)


def clip(length, shade=None):
    """Frames whose pixels say which frame it is, so that a test can tell them apart."""
    frames = np.zeros((length, 8, 8, 3), np.uint8)
    frames += (10 * np.arange(length, dtype=np.uint8) + (shade or 0))[:, None, None, None]
    return frames


def pictures(axis):
    """{(left, top): pixels} of the frames and overlays that an Axes shows."""
    return {
        (round(image.get_extent()[0], 3), round(image.get_extent()[3], 3)): image
        for image in axis.images
    }


def shapes(axis, name):
    return {
        patch.get_gid(): patch for patch in axis.patches if str(patch.get_gid()).startswith(name)
    }


def test_best_matches_are_the_largest_weights_of_all_clips():
    tuples = frame_tuples(4, 2)
    attention = RNG.random((6, 3, 6)).astype(np.float32)
    attention[4, 1, 2] = 5
    attention[2, 0, 3], attention[2, 2, 0], attention[2, 1, 1] = 4, 3, 2
    first, second, _ = figures.best_matches(attention, tuples)
    assert first.query == tuple(tuples[4]) and first.best[0] == (1, tuple(tuples[2]), 5)
    assert second.query == tuple(tuples[2])
    assert [(k, frames) for k, frames, _ in second.best] == [
        (0, tuple(tuples[3])),
        (2, tuple(tuples[0])),
        (1, tuple(tuples[1])),
    ]
    [chosen] = figures.best_matches(attention, tuples, [0])
    clips, places = np.unravel_index(attention[0].argmax(), (3, 6))
    assert chosen.best[0][:2] == (clips, tuple(tuples[places]))


@pytest.mark.parametrize('shots', [1, 5])
def test_a_line_joins_a_tuple_to_its_best_match(shots):
    tuples = frame_tuples(5, 2)
    attention = RNG.random((len(tuples), shots, len(tuples)))
    matches = figures.best_matches(attention, tuples)
    query, support = clip(5), np.stack([clip(5, 100 + shot) for shot in range(shots)])
    figure = figures.tuple_matches(query, support, {'trm': matches[:1], 'strm': matches})
    _, axis = figure.axes
    shown = pictures(axis)
    assert len(shown) == 5 * (1 + shots)
    for place, match in enumerate(matches):
        row = [t for t in range(len(tuples)) if tuple(tuples[t]) == match.query][0]
        best, at = np.unravel_index(attention[row].argmax(), attention.shape[1:])
        ends = [line.get_xydata() for line in axis.lines if line.get_gid() == f'match {place}']
        assert len(ends) == 2
        joined = []
        for (x0, y0), (x1, y1) in ends:
            over = [
                image.get_array()[0, 0, 0]
                for x, y in ((x0, y0 - 0.02), (x1, y1 + 0.02))
                for (left, top), image in shown.items()
                if left <= x <= left + 1 and top <= y <= top + 1
            ]
            joined.append(over)
        # the frame of the query, and the frame of the support clip, told by their pixels
        expected = [[10 * q, 100 + best + 10 * s] for q, s in zip(match.query, tuples[at])]
        assert joined == expected
    weights = [f'{match.best[0][2]:.1%}' for match in matches]
    words = [text.get_text() for text in axis.texts if text.get_gid() == 'words']
    assert len(words) == 3 and all(w in line for w, line in zip(weights, words))
    names = ['support'] if shots == 1 else [f'support {i + 1}' for i in range(shots)]
    assert [t.get_text() for t in axis.texts if t.get_ha() == 'right'] == ['query', *names]


def test_overlays_lie_on_their_frames():
    frames, maps = clip(4), RNG.random((4, 3, 3))
    coarse = RNG.random((2, 3, 3))  # a backbone that leaves half of the steps
    objects = np.array([[0.25, 0.5, 0.5, 0.75], [np.nan] * 4, [0, 0, 1, 1], [-0.5, 0, 0.5, 1]])
    figure = figures.activation_maps(frames, {'backbone': maps, 'later': coarse}, objects)
    [axis] = figure.axes
    overlays = {i.get_gid(): i for i in axis.images if i.get_gid()}
    boxes = shapes(axis, 'object 1')
    assert sorted(boxes) == ['object 1 0', 'object 1 2', 'object 1 3']  # where it is visible
    left, right, bottom, top = overlays['overlay 1 0'].get_extent()
    box = boxes['object 1 0']
    at = [box.get_x() - left, box.get_y() - top, box.get_width(), box.get_height()]
    np.testing.assert_allclose(np.array(at) / (right - left), [0.25, 0.5, 0.25, 0.25])
    # the part of it that the frame shows
    assert boxes['object 1 3'].get_width() == pytest.approx((right - left) / 2)
    plain = [i for i in axis.images if not i.get_gid()]
    for place in range(4):
        overlay = overlays[f'overlay 1 {place}']
        np.testing.assert_array_equal(overlay.get_array(), maps[place])
        [below] = [i for i in plain if i.get_extent() == overlay.get_extent()]
        assert (below.get_array() == frames[place]).all()
        [above] = [i for i in plain if i.get_extent()[0] == place and i.get_extent()[3] == 0]
        assert (above.get_array() == frames[place]).all()
    assert overlays['overlay 1 0'].get_clim() == (maps.min(), maps.max())
    lefts = [overlays[f'overlay 2 {place}'].get_extent()[0] for place in range(2)]
    assert lefts == [0, 2] and 'overlay 2 2' not in overlays


def test_the_matrix_has_the_query_on_the_left_and_its_path_through_the_cells():
    values, cells = RNG.random((3, 4)), np.array([(0, 0), (1, 1), (1, 2), (2, 3)])
    panel = {
        'values': values,
        'query': clip(3),
        'support': clip(4, 100),
        'paths': {'cheapest': cells},
        'label': 'distance',
    }
    figure = figures.alignment_matrices({'its class': panel, 'the answer': panel})
    axis = figure.axes[0]
    matrix, *frames = axis.images
    np.testing.assert_array_equal(matrix.get_array(), values)
    assert list(matrix.get_extent()) == [0, 4, 3, 0]
    column, row = axis.lines[0].get_data()
    np.testing.assert_array_equal(np.stack([np.floor(row), np.floor(column)], 1), cells)
    left = {i.get_extent()[3]: i.get_array()[0, 0, 0] for i in frames if i.get_extent()[0] < 0}
    top = {i.get_extent()[0]: i.get_array()[0, 0, 0] for i in frames if i.get_extent()[3] < 0}
    assert left == {0: 0, 1: 10, 2: 20} and top == {0: 100, 1: 110, 2: 120, 3: 130}


@pytest.mark.parametrize('offset', [(0.0, 0.0), (0.5, -0.25), (-0.7, 0.6)])
def test_the_box_is_where_the_offset_says(offset):
    """It holds the cells that the masks of spatial coordination keep whole."""
    sides = 40
    support, query = figures.overlap_boxes(offset, 1)
    centres = np.linspace(-1, 1, sides)
    for box, sign in ((support, 1), (query, -1)):
        mask = np.asarray(mask_weights(sign * np.array(offset, np.float32), sides, sides, 0.0))
        whole = mask > 0.999 * mask.max()
        x0, y0, x1, y1 = box
        inside = lambda low, high: (centres > low - 0.06) & (centres < high + 0.06)
        well_inside = lambda low, high: (centres > low + 0.06) & (centres < high - 0.06)
        assert not whole[~np.outer(inside(y0, y1), inside(x0, x1))].any()
        assert whole[np.outer(well_inside(y0, y1), well_inside(x0, x1))].all()
        grid = np.asarray(grid_weights(sign * np.array(offset, np.float32), sides, sides))
        middle = np.array([(grid.sum(0) * centres).sum(), (grid.sum(1) * centres).sum()])
        np.testing.assert_allclose(middle, [(x0 + x1) / 2, (y0 + y1) / 2], atol=0.03)
    np.testing.assert_allclose(figures.overlap_boxes(offset, -1), [query, support])


def test_windows_and_boxes_lie_on_the_frames():
    length = 5
    boxes = np.tile([-1.0, -0.5, 0.0, 1.0], (length, 1))
    figure = figures.coordination(
        {
            'query': {
                'frames': clip(length),
                'window': (0.5, 0.25),
                'boxes': boxes,
                'action': (1.0, 2.5),
            },
            'support': {
                'frames': clip(length, 100),
                'window': None,
                'boxes': None,
                'action': (np.nan, np.nan),
            },
        }
    )
    [axis] = figure.axes
    [window] = shapes(axis, 'window').values()
    # t from −0.25 to 0.75 is frame 1.5 to 3.5, which end where frame 4.5 ends
    assert window.get_x() == pytest.approx(1.5 - figures.GAP / 2)
    assert window.get_width() == pytest.approx(3.0)
    [line] = [line for line in axis.lines if str(line.get_gid()).startswith('action')]
    assert list(line.get_xdata()) == pytest.approx([1.0, 3.5 - figures.GAP])
    assert (0 < line.get_ydata()).all() and (line.get_ydata() < 1).all()  # on the first row
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert legend == [
        'the action, from the records',
        'what the temporal transform reads',
        'what spatial coordination compares',
    ]
    shown = pictures(axis)
    read = [shown[place, 1].get_array()[0, 0, 0] for place in range(length)]
    assert read == [20, 20, 20, 30, 40]  # nearest to 1.5, 2, 2.5, 3 and 3.5
    for place in range(length):
        box: Rectangle = shapes(axis, 'box')[f'box query {place}']
        left, right, bottom, top = shown[place, 1].get_extent()
        assert box.get_x() == pytest.approx(left)
        assert box.get_x() + box.get_width() == pytest.approx((left + right) / 2)
        assert box.get_y() == pytest.approx(top + (bottom - top) / 4)
        assert box.get_y() + box.get_height() == pytest.approx(bottom)
    assert shown[0, 2].get_array()[0, 0, 0] == 100


def test_frames_beyond_the_clip_are_black():
    frames = clip(4, 50)
    np.testing.assert_array_equal(figures.warped_frames(frames, (1, 0)), frames)
    assert figures.window_span((1, 0), 4) == (0, 4)
    assert figures.window_span((-1, 0), 4) == (0, 4)  # backwards
    shifted = figures.warped_frames(frames, (1, 1))  # positions 1.5, 2.5, 3.5, 4.5
    assert shifted[:, 0, 0, 0].tolist()[-1] == 0 and shifted[0, 0, 0, 0] == frames[2, 0, 0, 0]
    np.testing.assert_array_equal(figures.warped_frames(frames, (-1, 0)), frames[::-1])


def test_bars_of_chosen_frames_are_green_and_as_high_as_their_score():
    frames, indices = clip(6), np.array([1, 2, 5])
    scores = np.array([0.0, 1.0, 0.5, 0.25, 0.0, 0.75])
    saliency, seen = RNG.random((3, 2, 2)), clip(3, 200)
    objects = np.tile([0.0, 0.5, 0.5, 1.0], (3, 1))
    figure = figures.sampler_choice(frames, indices, scores, saliency, seen, (1.0, 4.0), objects)
    [axis] = figure.axes
    [line] = [line for line in axis.lines if line.get_gid() == 'action']
    # frames 1 to 4, each half as wide as a chosen one
    assert list(line.get_xdata()) == pytest.approx([0.5, 2.5 - figures.GAP / 2])
    assert len(shapes(axis, 'object chosen')) == len(shapes(axis, 'object saliency')) == 3
    assert not shapes(axis, 'object amplified')  # there it is elsewhere
    bars = shapes(axis, 'bar')
    for place in range(6):
        bar = bars[f'bar {place}']
        assert bar.get_facecolor() == to_rgba(GREEN if place in indices else GREY)
        assert bar.get_height() == pytest.approx(0.1 + 0.6 * scores[place])
        assert bar.get_y() + bar.get_height() == pytest.approx(0.75)
        # below its bar, the frame
        [image] = [
            i
            for i in axis.images
            if abs(i.get_extent()[0] - place / 2) < 1e-6 and i.get_extent()[3] == 0.8
        ]
        assert image.get_array()[0, 0, 0] == frames[place, 0, 0, 0]
        assert bar.get_x() >= image.get_extent()[0]
        assert bar.get_x() + bar.get_width() <= image.get_extent()[0] + 0.5
    shown = [image for image in axis.images[6:] if not image.get_gid()]
    assert [i.get_array()[0, 0, 0] for i in shown[:3]] == [10, 20, 50]
    assert [i.get_array()[0, 0, 0] for i in shown[-3:]] == [200, 210, 220]
    for place in range(3):
        [overlay] = [i for i in axis.images if i.get_gid() == f'overlay {place}']
        np.testing.assert_array_equal(overlay.get_array(), saliency[place])
        [under] = [i for i in shown if i.get_extent() == overlay.get_extent()]
        assert under.get_array()[0, 0, 0] == frames[indices[place], 0, 0, 0]


def test_a_sampler_without_scores_has_bars_of_one_height():
    [axis] = figures.sampler_choice(clip(6), np.array([0, 3])).axes
    bars = shapes(axis, 'bar').values()
    assert len({bar.get_height() for bar in bars}) == 1 and len(bars) == 6
    assert len(axis.images) == 6 + 2  # all frames, and the chosen ones


def test_a_class_lies_at_the_angle_of_its_cosine():
    cosines = np.cos(np.radians([60.0, 0.0, 90.0]))
    figure = figures.angles({'self': cosines, 'fused': cosines[::-1]}, ['a', 'b', 'c'], 1)
    first, second = figure.axes
    at = lambda axis: {
        int(line.get_gid()): np.degrees(np.arctan2(*line.get_xydata()[0][::-1]))
        for line in axis.lines
        if line.get_gid() and line.get_gid().isdigit()
    }
    assert at(first) == pytest.approx({0: 60, 1: 0, 2: 90}, abs=1e-6)
    assert at(second) == pytest.approx({0: 90, 1: 0, 2: 60}, abs=1e-6)
    stars = [line for line in first.lines if line.get_marker() == '*']
    assert [line.get_gid() for line in stars] == ['1'] and first.get_title() == 'self: right'
    lines = [text.get_text() for text in first.texts]
    assert lines == ['★', '0.0°', 'b', '', '60.0°', 'a', '', '90.0°', 'c']


def test_a_long_name_stands_whole_below_the_angles():
    """Classes often differ in the last word alone."""
    names = ['pretending to put something next to something', 'moving something up']
    [axis] = figures.angles({'self': [0.5, 1.0]}, names, 0).axes
    rows = [(text.get_position()[1], text.get_text()) for text in axis.texts]
    first, *rest = [text for _, text in rows if len(text) > 6]
    assert [first, ' '.join(rest)] == names[::-1]
    heights = [height for height, text in rows if len(text) > 6]
    assert len(set(heights)) == 3 and heights == sorted(heights)[::-1]
