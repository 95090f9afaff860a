"""The synthetic actions: the class table, its reversals, and the truth that comes with each
clip."""

import dataclasses
import hashlib
import inspect
import subprocess
import sys

import numpy as np
import pytest

from tfds_builders.synthetic_actions import motions, renderer
from tfds_builders.synthetic_actions.renderer import ClipSettings, render_clip

PROGRESS = np.linspace(0, 1, 41)
DIRECTIONS = {
    'moving something from left to right': (1, 0),
    'moving something from right to left': (-1, 0),
    'dropping something': (0, 1),
    'lifting something': (0, -1),
}


def centres(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def test_class_split():
    assert {split: len(n) for split, n in motions.SPLITS.items()} == {
        'train': 64,
        'val': 12,
        'test': 24,
    }
    assert len(motions.CLASSES) == len(set(motions.CLASSES)) == 100
    assert set(motions.CLASSES) == {name for names in motions.SPLITS.values() for name in names}
    assert set(motions.CLASSES) == set(motions.PROGRAMS) == set(motions.REVERSALS)


def test_reversals_are_exact_and_in_the_same_split():
    split_of = {name: split for split, names in motions.SPLITS.items() for name in names}
    for name, partner in motions.REVERSALS.items():
        forward, backward = (
            motions.PROGRAMS[name].at(PROGRESS),
            motions.PROGRAMS[partner].at(1 - PROGRESS),
        )
        np.testing.assert_allclose(forward, backward, atol=1e-9, err_msg=name)
        assert split_of[name] == split_of[partner], name
    assert sum(name != partner for name, partner in motions.REVERSALS.items()) == 84


def test_no_two_classes_are_the_same_motion():
    states = {name: motions.PROGRAMS[name].at(PROGRESS) for name in motions.CLASSES}
    for i, first in enumerate(motions.CLASSES):
        for second in motions.CLASSES[i + 1 :]:
            if states[first].shape == states[second].shape:
                assert np.abs(states[first] - states[second]).max() > 0.3, f'{first} = {second}'


def test_join_refuses_a_jump():
    right = motions.keys(motions.pose(0), motions.pose(1))
    with pytest.raises(ValueError, match='program 1 does not start where the one before it ends'):
        motions.join(right, right)


def test_clip_is_a_pure_function_in_any_process():
    code = (
        'import hashlib; from tfds_builders.synthetic_actions import renderer, motions;s = '
        'renderer.ClipSettings(misalignment="untrimmed");c = '
        'renderer.render_clip(motions.CLASSES[70], (3, 1, 4), '
        's);print(hashlib.sha256(c.frames.tobytes() + '
        'c.boxes.tobytes()).hexdigest());print(c.action_start, c.action_end)'
    )
    settings = ClipSettings(misalignment='untrimmed')
    render_clip(motions.CLASSES[0], 5, settings)  # an earlier clip must not matter
    clip = render_clip(motions.CLASSES[70], (3, 1, 4), settings)
    here = [
        hashlib.sha256(clip.frames.tobytes() + clip.boxes.tobytes()).hexdigest(),
        str(clip.action_start),
        str(clip.action_end),
    ]
    process = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert here == process.stdout.split()
    other = render_clip(motions.CLASSES[70], (3, 1, 5), settings)
    assert not np.array_equal(clip.frames, other.frames)


@pytest.mark.parametrize('misalignment', renderer.MISALIGNMENTS)
def test_shapes_and_truth_ranges(misalignment):
    settings = ClipSettings(num_frames=24, misalignment=misalignment)
    for i, name in enumerate(motions.CLASSES):
        clip = render_clip(name, (1, i), settings)
        assert clip.frames.shape == (24, 64, 64, 3) and clip.frames.dtype == np.uint8
        assert clip.boxes.shape == (24, 4) and clip.boxes.dtype == np.float32
        assert 0 <= clip.action_start < clip.action_end <= 23, name
        assert clip.boxes.min() >= 0 and clip.boxes.max() <= 64, name
        visible = clip.boxes.any(1)
        assert visible[clip.action_start : clip.action_end + 1].mean() > 0.5, name
        assert (clip.boxes[visible, 2:] > clip.boxes[visible, :2]).all(), name


@pytest.mark.parametrize('misalignment', ['aligned', 'misaligned', 'shifted'])
@pytest.mark.parametrize('name', list(DIRECTIONS))
def test_boxes_follow_the_motion(name, misalignment):
    for seed in range(5):
        clip = render_clip(name, seed, ClipSettings(misalignment=misalignment))
        path = centres(clip.boxes) @ np.array(DIRECTIONS[name], np.float32)
        assert path[clip.action_end] - path[clip.action_start] > (
            15 if misalignment == 'shifted' else 24
        )
        across = centres(clip.boxes) @ np.array(DIRECTIONS[name][::-1], np.float32)
        assert np.ptp(across) < 6 if misalignment != 'shifted' else np.ptp(across) < 10


def test_box_lies_where_the_object_is_drawn(monkeypatch):
    """Against the pixels: the same clip with the actor invisible differs inside the box and nowhere
    else."""
    name = 'moving something along a diamond clockwise'
    program = motions.PROGRAMS[name]
    hidden = dataclasses.replace(
        program, states=program.states * np.array([1, 1, 1, 1, 1, 1, 0, 1.0])
    )
    for seed in range(6):
        clip = render_clip(name, seed, ClipSettings())
        with monkeypatch.context() as patch:
            patch.setitem(motions.PROGRAMS, name, hidden)
            empty = render_clip(name, seed, ClipSettings())
        assert not empty.boxes.any()
        changed = np.abs(clip.frames.astype(int) - empty.frames).max(-1) > 24
        for frame, box in zip(changed, clip.boxes):
            y, x = np.nonzero(frame)
            drawn = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert np.abs(drawn - box).max() < 3, (seed, drawn, box)


def test_objects_rest_outside_the_action():
    settings = ClipSettings(misalignment='misaligned')
    name = 'moving something left then up'
    for seed in range(30):
        clip = render_clip(name, seed, settings)
        where = centres(clip.boxes)
        assert np.abs(where[: clip.action_start + 1] - where[clip.action_start]).max() < 3
        assert np.abs(where[clip.action_end :] - where[clip.action_end]).max() < 3
        states = motions.PROGRAMS[name].at(renderer.draw_scene(seed, settings).progress)
        assert (states[: clip.action_start + 1] == states[0]).all()
        assert (states[clip.action_end :] == states[-1]).all()
        assert (states[clip.action_start + 1] != states[0]).any(), (
            'the action starts in the next frame'
        )


def test_timing_of_each_misalignment():
    def spans(misalignment, num_frames):
        settings = ClipSettings(num_frames=num_frames, misalignment=misalignment)
        scenes = [renderer.draw_scene(seed, settings) for seed in range(150)]
        last = num_frames - 1
        return (
            np.array([s.action_start for s in scenes]) / last,
            np.array([s.action_end - s.action_start for s in scenes]) / last,
            scenes,
        )

    start, duration, scenes = spans('aligned', 32)
    assert start.max() < 0.07 and duration.min() > 0.9
    steps = [np.diff(s.progress[s.action_start : s.action_end + 1]) for s in scenes]
    assert all(np.ptp(s) < 1e-9 for s in steps), 'constant speed'
    start, duration, scenes = spans('misaligned', 32)
    assert start.max() > 0.38 and start.min() < 0.05 and start.max() < 0.48
    assert 0.27 < duration.min() < 0.4 and duration.max() > 0.85
    steps = [np.diff(s.progress[s.action_start : s.action_end + 1]) for s in scenes]
    assert all((s >= 0).all() for s in steps), 'time never runs backwards'
    assert np.median([s.max() / s.min() for s in steps]) > 3, 'speed varies strongly'
    start, duration, _ = spans('untrimmed', 64)
    assert 0.24 < duration.min() and duration.max() < 0.36
    assert start.min() < 0.15 and start.max() > 0.5


def test_shifted_moves_the_action():
    def spread(misalignment):
        settings = ClipSettings(misalignment=misalignment)
        homes = [renderer.draw_scene(seed, settings).home for seed in range(80)]
        return np.ptp(homes, axis=0) / 64

    assert (spread('shifted') > 0.42).all() and (spread('shifted') <= 0.5).all()
    assert (spread('aligned') <= 0.1).all()


def test_nuisances_never_see_the_class():
    """The scene is drawn without the class: one seed, one background, timing and set of objects."""
    assert list(inspect.signature(renderer.draw_scene).parameters) == ['seed', 'settings']
    settings = ClipSettings(misalignment='misaligned')
    clips = [render_clip(name, 11, settings) for name in motions.CLASSES]
    assert len({(clip.action_start, clip.action_end) for clip in clips}) == 1
    frames = np.stack([clip.frames for clip in clips])
    border = frames[:, :, [2, 2, 61, 61], [2, 61, 2, 61]]
    same = (border == np.median(border, axis=0)).mean()
    assert same > 0.97, 'corners that objects hardly reach show the same background in all classes'
    # At rest in the middle, eight excursion classes show the very same first frame.
    first = {
        c.frames[0].tobytes()
        for name, c in zip(motions.CLASSES, clips)
        if name.count('and back') == 2
    }
    assert len(first) == 1


def test_reversed_classes_hold_the_same_frames():
    """Aligned, without camera and light: the partner's clip is the clip backwards."""
    settings = ClipSettings()
    for name in (
        'dropping something',
        'covering something with something',
        'swapping two things clockwise',
    ):
        partner = motions.REVERSALS[name]
        boxes = render_clip(name, 2, settings), render_clip(partner, 2, settings)
        scene = renderer.draw_scene(2, settings)
        still = [centres(clip.boxes) - scene.camera for clip in boxes]
        span = slice(scene.action_start, scene.action_end + 1)
        np.testing.assert_allclose(still[0][span], still[1][span][::-1], atol=0.5)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'misalignment': 'late'}, "misalignment is 'late', expected one of aligned"),
        ({'num_frames': 2}, 'num_frames is 2, a clip needs at least 8'),
        ({'size': 4}, 'size is 4 pixels'),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClipSettings(**arguments)


def test_unknown_class_is_named():
    with pytest.raises(ValueError, match="'flying' is not a class"):
        render_clip('flying', 0, ClipSettings())


def test_resolution_is_a_setting():
    small, large = (
        render_clip('lifting something', 4, ClipSettings(size=size)) for size in (64, 128)
    )
    assert large.frames.shape == (32, 128, 128, 3)
    np.testing.assert_allclose(large.boxes / 2, small.boxes, atol=2)
