"""The synthetic actions: the class table, its reversals, and the truth that comes with each
clip."""

import dataclasses
import hashlib
import inspect
import subprocess
import sys

import numpy as np
import pytest

from tfds_builders.synthetic_actions import in_place, motions, renderer
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


TABLES = pytest.mark.parametrize('classes', [motions, in_place], ids=['motions', 'in_place'])


@pytest.mark.parametrize(
    'classes, sizes',
    [
        (motions, {'train': 64, 'val': 12, 'test': 24}),
        (in_place, {'train': 38, 'val': 6, 'test': 12}),
    ],
)
def test_class_split(classes, sizes):
    assert {split: len(names) for split, names in classes.SPLITS.items()} == sizes
    assert len(classes.CLASSES) == len(set(classes.CLASSES)) == sum(sizes.values())
    assert set(classes.CLASSES) == {name for names in classes.SPLITS.values() for name in names}
    assert set(classes.CLASSES) == set(classes.PROGRAMS) == set(classes.REVERSALS)


@TABLES
def test_reversals_are_exact_and_in_the_same_split(classes):
    split_of = {name: split for split, names in classes.SPLITS.items() for name in names}
    for name, partner in classes.REVERSALS.items():
        forward = classes.PROGRAMS[name].at(PROGRESS)
        backward = classes.PROGRAMS[partner].at(1 - PROGRESS)
        # In place, size and turn are relative to the start.
        if classes is in_place:
            forward, backward = forward - forward[0], backward - backward[0]
        np.testing.assert_allclose(forward, backward, atol=1e-9, err_msg=name)
        assert split_of[name] == split_of[partner], name
    partners = sum(name != partner for name, partner in classes.REVERSALS.items())
    assert partners == {motions: 84, in_place: 52}[classes]


@TABLES
def test_no_two_classes_are_the_same_motion(classes):
    states = {name: classes.PROGRAMS[name].at(PROGRESS) for name in classes.CLASSES}
    for i, first in enumerate(classes.CLASSES):
        for second in classes.CLASSES[i + 1 :]:
            if states[first].shape == states[second].shape:
                assert np.abs(states[first] - states[second]).max() > 0.3, f'{first} = {second}'


def test_join_refuses_a_jump():
    right = motions.keys(motions.pose(0), motions.pose(1))
    with pytest.raises(ValueError, match='program 1 does not start where the one before it ends'):
        motions.join(right, right)


def test_clip_is_a_pure_function_in_any_process():
    code = (
        'import hashlib; from tfds_builders.synthetic_actions import renderer, motions;s = '
        'renderer.ClipSettings(config="untrimmed");c = '
        'renderer.render_clip(motions.CLASSES[70], (3, 1, 4), '
        's);print(hashlib.sha256(c.frames.tobytes() + '
        'c.boxes.tobytes()).hexdigest());print(c.action_start, c.action_end)'
    )
    settings = ClipSettings(config='untrimmed')
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


@pytest.mark.slow
@pytest.mark.parametrize('config', renderer.CONFIGS)
def test_shapes_and_truth_ranges(config):
    settings = ClipSettings(num_frames=24, config=config)
    for i, name in enumerate(renderer.classes_of(config).CLASSES):
        clip = render_clip(name, (1, i), settings)
        assert clip.frames.shape == (24, 64, 64, 3) and clip.frames.dtype == np.uint8
        assert clip.boxes.shape == (24, 4) and clip.boxes.dtype == np.float32
        assert 0 <= clip.action_start < clip.action_end <= 23, name
        assert clip.boxes.min() >= 0 and clip.boxes.max() <= 64, name
        visible = clip.boxes.any(1)
        assert visible[clip.action_start : clip.action_end + 1].mean() > 0.5, name
        assert (clip.boxes[visible, 2:] > clip.boxes[visible, :2]).all(), name


@pytest.mark.parametrize('config', ['aligned', 'misaligned', 'shifted'])
@pytest.mark.parametrize('name', list(DIRECTIONS))
def test_boxes_follow_the_motion(name, config):
    for seed in range(5):
        clip = render_clip(name, seed, ClipSettings(config=config))
        path = centres(clip.boxes) @ np.array(DIRECTIONS[name], np.float32)
        assert path[clip.action_end] - path[clip.action_start] > (15 if config == 'shifted' else 24)
        across = centres(clip.boxes) @ np.array(DIRECTIONS[name][::-1], np.float32)
        assert np.ptp(across) < 6 if config != 'shifted' else np.ptp(across) < 10


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
    settings = ClipSettings(config='misaligned')
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


def test_timing_of_each_config():
    def spans(config, num_frames):
        settings = ClipSettings(num_frames=num_frames, config=config)
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


def test_a_spliced_action_has_its_shot_and_the_camera_is_elsewhere_before_and_after():
    settings = ClipSettings(config='spliced')
    cuts = set()
    for seed in range(40):
        scene = renderer.draw_scene(seed, settings)
        assert 8 <= scene.action_end - scene.action_start + 1 <= 11, '25 to 35% of 32 frames'
        assert scene.progress[scene.action_start] == 0 and scene.progress[scene.action_end] == 1
        shown = [t for first, stop, _ in scene.other_shots for t in range(first, stop)]
        rest = set(range(32)) - set(range(scene.action_start, scene.action_end + 1))
        assert len(shown) == len(set(shown)) and set(shown) == rest
        cuts.add(len(scene.other_shots))
    assert cuts == {2, 3, 4}
    clips = [render_clip(name, 7, settings) for name in motions.SPLITS['test'][:4]]
    outside = np.ones(32, bool)
    outside[clips[0].action_start : clips[0].action_end + 1] = False
    for clip in clips:
        assert not clip.boxes[outside].any() and clip.boxes[~outside].any(1).all()
        np.testing.assert_array_equal(clip.frames[outside], clips[0].frames[outside])
    jumps = np.abs(np.diff(clips[0].frames.astype(int), axis=0)).mean((1, 2, 3))
    cut = [clips[0].action_start - 1, clips[0].action_end]
    within = np.delete(jumps, cut)[: clips[0].action_start - 2]
    assert jumps[cut].min() > 2 * np.median(within), 'hard cuts'


def test_the_other_of_two_actions_is_another_class_of_the_split(monkeypatch):
    settings, played = ClipSettings(config='two_actions'), []
    play = renderer._play
    monkeypatch.setattr(renderer, '_play', lambda *args: (played.append(args[2:]), play(*args))[-1])
    firsts, others = [], []
    for seed in range(24):
        name = motions.SPLITS['val'][seed % 12]
        clip = render_clip(name, (seed, 1), settings)
        (scene, program), (other, other_program) = played[-2:]
        assert program is motions.PROGRAMS[name]
        others.append(next(n for n, p in motions.PROGRAMS.items() if p is other_program))
        assert others[-1] != name and others[-1] in motions.SPLITS['val']
        own = np.zeros(32, bool)
        own[clip.action_start : clip.action_end + 1] = True
        assert 12 <= own.sum() <= 20 and (own[0] != own[-1]), 'one cut, at 40 to 60%'
        firsts.append(own[0])
        frames, boxes = np.empty_like(clip.frames), np.zeros_like(clip.boxes)
        play(frames, boxes, other, other_program)
        np.testing.assert_array_equal(clip.frames[~own], frames[~own])
        assert not clip.boxes[~own].any()
        ends = other.progress[~own][[0, -1]]
        assert tuple(ends) == (0, 1), 'the other action is whole, too'
    assert 6 <= sum(firsts) <= 18 and len(set(others)) > 6


def test_in_two_objects_each_action_is_shown_by_the_objects_of_its_class(monkeypatch):
    """Those of one class look the same in every clip, whichever of the two actions is its own."""
    played, looks = [], {}
    monkeypatch.setattr(renderer, '_play', lambda *args: played.append(args[2:]))
    for seed in range(40):
        render_clip(motions.SPLITS['val'][seed % 6], seed, ClipSettings(config='two_objects'))
        render_clip(motions.SPLITS['val'][seed % 6], seed, ClipSettings(config='two_actions'))
        own, other, *plain = played[-4:]
        assert [program for _, program in plain] == [own[1], other[1]], 'the same actions'
        for scene, program in (own, other):
            name = next(n for n, p in motions.PROGRAMS.items() if p is program)
            outlines = [sprite.outline for sprite in scene.objects]
            for found, expected in zip(outlines, looks.setdefault(name, outlines), strict=True):
                np.testing.assert_array_equal(found, expected)
        with pytest.raises(AssertionError):
            for found, expected in zip(own[0].objects, other[0].objects, strict=True):
                np.testing.assert_array_equal(found.outline, expected.outline)
    assert len(looks) > 8


def test_in_two_scenes_each_action_is_shown_in_the_scene_of_its_class(monkeypatch):
    """Training and new classes share the scenes, and nothing else of the clips changes."""
    played, grounds = [], {}
    monkeypatch.setattr(renderer, '_play', lambda *args: played.append(args[2:]))
    names = motions.SPLITS['train'][:20] + motions.SPLITS['test'][:20]
    for seed, name in enumerate(names):
        render_clip(name, seed, ClipSettings(config='two_scenes'))
        render_clip(name, seed, ClipSettings(config='two_actions'))
        own, other, plain, _ = played[-4:]
        assert plain[1] is own[1] and np.array_equal(plain[0].home, own[0].home)
        shown = []
        for scene, program in (own, other):
            shown.append(
                renderer.scene_of(
                    next(n for n in motions.CLASSES if motions.PROGRAMS[n] is program)
                )
            )
            ground = scene.place.background
            np.testing.assert_array_equal(ground, grounds.setdefault(shown[-1], ground))
        assert shown[0] != shown[1] and shown[0] == renderer.scene_of(name)
    assert len({ground.tobytes() for ground in grounds.values()}) == renderer.SCENES == len(grounds)
    for names in motions.SPLITS.values():
        found = {renderer.scene_of(name) for name in names}
        assert len(found) == min(len(names), renderer.SCENES)


def test_a_small_object_stays_in_its_place():
    homes = []
    for seed, name in enumerate(in_place.CLASSES):
        clip = render_clip(name, seed, ClipSettings(size=96, config='small'))
        where = centres(clip.boxes)[clip.boxes.any(1)]
        assert np.ptp(where, axis=0).max() < 0.2 * 96, name
        sides = (clip.boxes[0, 2:] - clip.boxes[0, :2]) / 96
        assert 0.04 < sides.max() < 0.16, name
        homes.append(where[0] / 96)
    assert (np.ptp(homes, axis=0) > 0.55).all(), 'anywhere in the frame'


def test_small_plain_shows_the_clips_of_small_on_ground_of_one_colour():
    for seed, name in enumerate(in_place.CLASSES[::8]):
        plain, small = (
            render_clip(name, seed, ClipSettings(size=96, config=config))
            for config in ('small_plain', 'small')
        )
        np.testing.assert_array_equal(plain.boxes, small.boxes)
        seen = plain.boxes.any(1)
        for frame, other, box in zip(plain.frames[seen], small.frames[seen], plain.boxes[seen]):
            outside = np.ones((96, 96), bool)
            x0, y0, x1, y1 = box
            outside[max(0, int(y0) - 9) : int(y1) + 9, max(0, int(x0) - 9) : int(x1) + 9] = False
            assert np.ptp(frame[outside], axis=0).max() == 0
            assert np.ptp(other[outside], axis=0).max() > 5
            mean = frame[outside][0] - other[outside].mean(0)
            assert np.abs(mean).max() < 25, 'the mean colour of the ground that it replaces'


def test_shifted_moves_the_action():
    def spread(config):
        settings = ClipSettings(config=config)
        homes = [renderer.draw_scene(seed, settings).home for seed in range(80)]
        return np.ptp(homes, axis=0) / 64

    assert (spread('shifted') > 0.42).all() and (spread('shifted') <= 0.5).all()
    assert (spread('aligned') <= 0.1).all()


def test_nuisances_never_see_the_class():
    """The scene is drawn without the class: one seed, one background, timing and set of objects."""
    assert list(inspect.signature(renderer.draw_scene).parameters) == ['seed', 'settings']
    settings = ClipSettings(config='misaligned')
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
        still = [centres(clip.boxes) - scene.place.camera for clip in boxes]
        span = slice(scene.action_start, scene.action_end + 1)
        np.testing.assert_allclose(still[0][span], still[1][span][::-1], atol=0.5)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'config': 'late'}, "config is 'late', expected one of aligned"),
        ({'size': 65}, 'size is 65 pixels, a clip needs an even number from 16 on'),
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
