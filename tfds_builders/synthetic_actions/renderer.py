"""Draws clips of the synthetic actions, with the truth about when and where the action happens.

A clip is a scene in which the motion program of a class is played. The scene (objects, background,
position, extent, timing, camera, light) depends only on the seed, never on the class. With the same
seed, two classes show the same objects at the same position with the same timing, so only the
motion tells the class.
"""

import dataclasses
import types

import cv2
import numpy as np

from tfds_builders.synthetic_actions import in_place, motions

TWO = ('two_actions', 'two_objects', 'two_scenes')  # with two shots of two actions
SMALL = ('small', 'small_plain')  # with a small object that acts in its place
CONFIGS = ('aligned', 'misaligned', 'shifted', 'untrimmed', 'spliced', *TWO, *SMALL)
SCENES = 16  # of 'two_scenes'


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """How clips are rendered.

    size: height and width in pixels.  fps: frames per second.
    config: 'aligned' (the action fills the clip at constant speed), 'misaligned' (random onset,
    duration and speed, the objects rest before and after), 'shifted' (as aligned, the whole action
    displaced by up to a quarter of the frame), 'untrimmed' (the action takes about 30% of the clip,
    other things move all the time), 'spliced' (the action takes about 30% of the clip, the camera
    shows other places before and after it), 'two_actions' (two shots of two actions, one of which
    is the class's), 'two_objects' (the same, and every class has objects of its own), 'two_scenes'
    (as two_actions, and every class has one of 16 scenes, which training and new classes share),
    'small' (a small object does something in its place) or 'small_plain' (the same on ground of one
    colour).
    """

    size: int = 64
    num_frames: int = 32
    fps: int = 12
    config: str = 'aligned'

    def __post_init__(self):
        if self.config not in CONFIGS:
            raise ValueError(f'config is {self.config!r}, expected one of {", ".join(CONFIGS)}')
        if self.num_frames < 8:
            raise ValueError(f'num_frames is {self.num_frames}, a clip needs at least 8')
        if self.size < 16 or self.size % 2:
            raise ValueError(f'size is {self.size} pixels, a clip needs an even number from 16 on')


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """A rendered clip.

    frames: uint8 [N, H, W, 3] RGB.
    action_start, action_end: the action's first and last frame. In a clip of one shot, frames up to
        action_start show the start state, frames from action_end on the end state.
    boxes: float32 [N, 4], x0, y0, x1, y1 of the acting object in pixels, clipped to the frame,
    zeros where it is not visible.
    """

    frames: np.ndarray
    action_start: int
    action_end: int
    boxes: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Sprite:
    """An object.

    image: float32 [s, s, 4], colour times coverage (0..255) and coverage (0..1).
    outline: float64 [P, 2] in units of the object's diameter, centred.
    diameter: in pixels of the clip.
    """

    image: np.ndarray
    outline: np.ndarray
    diameter: float


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """What the camera sees in N frames besides acting objects. Lengths are in pixels.

    background: float32 [S, S, 3], at least as large as the frame, which is its middle.
    camera: [N, 2], displacement of everything.  light: [N], factor.
    movers, mover_states: sprites that move on their own, and their x, y, turn [N, movers, 3].
    """

    background: np.ndarray
    camera: np.ndarray
    light: np.ndarray
    movers: tuple
    mover_states: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """Everything in a clip of N frames that does not depend on its class. Lengths are in pixels.

    objects: the three sprites that a program may use.
    home: [2], position of the program's origin.  reach: length of the program's unit.
    turns: [3], rotation of the objects at rest.
    progress: [N] in [0, 1].
    drift: [N, 2], displacement of the objects outside the action.
    other_shots: (first frame, the frame after the last, place) of each shot without the action.
    """

    place: Place
    objects: tuple
    home: np.ndarray
    reach: float
    turns: np.ndarray
    action_start: int
    action_end: int
    progress: np.ndarray
    drift: np.ndarray
    other_shots: tuple = ()


def _colour(rng):
    """RGB float32 [3], saturated enough to be seen on most backgrounds."""
    hue, saturation, value = rng.uniform(0, 180), rng.uniform(90, 255), rng.uniform(110, 255)
    pixel = np.array([[[hue, saturation, value]]], np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def _outline(rng):
    """Outline [P, 2] float64 of a random shape within the unit disc."""
    kind = rng.integers(6)
    if kind == 0:  # disc
        radii, count = np.ones(24), 24
    elif kind == 1:  # triangle, square, pentagon, hexagon
        count = int(rng.integers(3, 7))
        radii = np.ones(count)
    elif kind == 2:  # star
        count = 2 * int(rng.integers(4, 7))
        radii = np.where(np.arange(count) % 2, rng.uniform(0.45, 0.6), 1.0)
    elif kind == 3:  # blob
        count, angles = 24, np.linspace(0, 2 * np.pi, 24, endpoint=False)
        radii = 0.82 + 0.18 * np.sin(rng.integers(2, 5) * angles + rng.uniform(0, 6))
    elif kind == 4:  # irregular polygon
        count = int(rng.integers(5, 9))
        radii = rng.uniform(0.7, 1.0, count)
    else:  # rectangle
        width, height = 0.5 * np.sqrt(2), rng.uniform(0.45, 0.9)
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width, height]
    angles = 2 * np.pi * np.arange(count) / count
    return radii[:, None] * np.stack([np.sin(angles), -np.cos(angles)], 1)


def _texture(rng, size):
    """Image float32 [size, size, 3] to cut an object or a background from."""
    first, second = _colour(rng), _colour(rng)
    kind = rng.integers(5)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    if kind == 0:  # flat
        share = np.zeros_like(x)
    elif kind == 1:  # stripes
        angle, count = rng.uniform(0, np.pi), rng.uniform(2, 5)
        share = np.sin(2 * np.pi * count * (x * np.cos(angle) + y * np.sin(angle))) > 0
    elif kind == 2:  # checker
        count = rng.integers(3, 6)
        share = (np.floor(x * count) + np.floor(y * count)) % 2
    elif kind == 3:  # dots
        count = rng.integers(3, 6)
        share = np.hypot((x * count) % 1 - 0.5, (y * count) % 1 - 0.5) < 0.3
    else:  # noise
        cells = rng.uniform(0, 1, (6, 6)).astype(np.float32)
        share = cv2.resize(cells, (size, size), interpolation=cv2.INTER_LINEAR)
    share = np.asarray(share, np.float32)[..., None]
    return (1 - share) * first + share * second


def _sprite(rng, diameter):
    side = max(12, int(round(1.5 * diameter)))
    big = 2 * side
    outline = _outline(rng) * 0.5
    image = _texture(rng, big)
    # A mark on one side makes any turn visible.
    mark = np.round(0.65 * outline[0] * (big - 4) + big / 2).astype(int)
    cv2.circle(image, mark.tolist(), big // 8, _colour(rng).tolist(), -1, cv2.LINE_AA)
    coverage = np.zeros((big, big), np.float32)
    points = np.round((outline * (big - 4) + big / 2) * 16).astype(np.int32)
    cv2.fillPoly(coverage, [points], 1.0, cv2.LINE_8, 4)
    border = cv2.erode(coverage, np.ones((3, 3), np.uint8), iterations=max(1, big // 40))
    image[(coverage > 0) & (border == 0)] *= (
        0.35  # a dark rim separates objects from any background
    )
    image = np.concatenate([image * coverage[..., None], coverage[..., None]], 2)
    return Sprite(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), outline, diameter)


def _background(rng, size, margin):
    """Image float32 [size + 2 margin, same, 3]: muted, with resting things on it."""
    full = size + 2 * margin
    kind = rng.integers(4)
    first, second = _colour(rng), _colour(rng)
    y, x = np.mgrid[:full, :full].astype(np.float32) / full
    if kind == 0:  # gradient
        angle = rng.uniform(0, 2 * np.pi)
        share = 0.5 + 0.7 * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle))
    elif kind == 1:  # noise
        cells = rng.uniform(0, 1, (12, 12)).astype(np.float32)
        share = cv2.resize(cells, (full, full), interpolation=cv2.INTER_CUBIC)
    elif kind == 2:  # stripes
        angle, count = rng.uniform(0, np.pi), rng.uniform(2, 6)
        share = 0.5 + 0.5 * np.sin(2 * np.pi * count * (x * np.cos(angle) + y * np.sin(angle)))
    else:  # blobs
        share = np.zeros_like(x)
        for cx, cy, radius in rng.uniform((0, 0, 0.1), (1, 1, 0.3), (5, 3)):
            share += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / radius**2)
    image = first + np.clip(share, 0, 1)[..., None] * (second - first)
    grey = image.mean(-1, keepdims=True)
    image = rng.uniform(0.35, 0.7) * (0.5 * image + 0.5 * grey) + rng.uniform(0, 60)
    for _ in range(rng.integers(3)):
        sprite = _sprite(rng, size * rng.uniform(0.1, 0.18))
        _draw(image, sprite, rng.uniform(0.05, 0.95, 2) * full, 1.0, rng.uniform(0, 6.3), 1.0)
    return image


def _draw(image, sprite, centre, scale, turn, opacity):
    """Draws a sprite into `image` float32 [H, W, 3] in place; centre in pixels, turn in radians
    clockwise."""
    side = sprite.image.shape[0]
    zoom = sprite.diameter * scale / side
    cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
    radius = 0.5 * side * (abs(cos) + abs(sin)) + 1
    height, width = image.shape[:2]
    x0, y0 = max(0, int(centre[0] - radius)), max(0, int(centre[1] - radius))
    x1, y1 = min(width, int(centre[0] + radius) + 2), min(height, int(centre[1] + radius) + 2)
    if x0 >= x1 or y0 >= y1 or opacity <= 0:
        return
    half = (side - 1) / 2
    # Pixel i covers [i, i + 1), so the centre of the frame in array coordinates is half a pixel
    # less.
    matrix = np.array(
        [
            [cos, -sin, centre[0] - 0.5 - x0 - cos * half + sin * half],
            [sin, cos, centre[1] - 0.5 - y0 - sin * half - cos * half],
        ]
    )
    patch = cv2.warpAffine(sprite.image, matrix, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    if opacity < 1:
        patch *= opacity
    region = image[y0:y1, x0:x1]
    region *= 1 - patch[..., 3:]
    region += patch[..., :3]


def _box(sprite, centre, scale, turn, opacity, size):
    if opacity < 0.05:
        return np.zeros(4, np.float32)
    cos, sin = np.cos(turn), np.sin(turn)
    points = centre + sprite.diameter * scale * sprite.outline @ np.array([[cos, sin], [-sin, cos]])
    box = np.clip(np.concatenate([points.min(0), points.max(0)]), 0, size)
    visible = box[2] - box[0] > 0.5 and box[3] - box[1] > 0.5
    return box.astype(np.float32) if visible else np.zeros(4, np.float32)


def _smooth_walk(rng, num_frames, columns, step=8):
    """Random smooth curves [num_frames, columns] in about [-1, 1], a new direction about every
    `step` frames."""
    knots = rng.uniform(-1, 1, (num_frames // step + 3, columns))
    time = np.arange(num_frames) / step
    knot = time.astype(int)
    share = (1 - np.cos(np.pi * (time - knot)))[:, None] / 2
    return (1 - share) * knots[knot] + share * knots[knot + 1]


def _timing(rng, settings):
    """(action_start, action_end, progress [N])."""
    num_frames = settings.num_frames
    last = num_frames - 1
    warp = np.linspace(0, 1, 7)
    if settings.config == 'misaligned':
        onset = rng.uniform(0, 0.45)
        duration = min(rng.uniform(0.3, 1.0), 1 - onset)
        speeds = np.exp(rng.normal(0, 0.7, 6))
        warp = np.append(0, np.cumsum(speeds)) / speeds.sum()
    elif settings.config == 'untrimmed':
        duration = rng.uniform(0.25, 0.35)
        onset = rng.uniform(0.05, 0.95 - duration)
    elif settings.config == 'spliced':
        # Of the frames, as the shot has the action in all of its frames and in no other.
        duration = max(2, round(rng.uniform(0.25, 0.35) * num_frames) - 1) / last
        onset = rng.uniform(0.05, 0.95 - duration)
    elif settings.config in TWO:
        cut = round(rng.uniform(0.4, 0.6) * num_frames)
        first, stop = (0, cut) if rng.random() < 0.5 else (cut, num_frames)
        onset, duration = first / last, (stop - 1 - first) / last
    else:
        onset = rng.uniform(0, 0.04)
        duration = 1 - onset - rng.uniform(0, 0.04)
    start = int(round(onset * last))
    shortest = 2 if settings.config in ('spliced', *TWO) else 4
    end = min(last, start + max(shortest, int(round(duration * last))))
    return start, end, _progress(start, end, num_frames, warp)


def _progress(start, end, num_frames, warp):
    """Progress [N] in [0, 1] of an action from frame `start` to `end`; `warp` [K] is its progress
    at K equally spaced times."""
    share = np.clip((np.arange(num_frames) - start) / (end - start), 0, 1)
    return np.interp(share, np.linspace(0, 1, len(warp)), warp)


def _other_place(rng, settings):
    """A place that a panning camera shows in a shot without the action, sometimes with a few small
    things that move."""
    size, num_frames = settings.size, settings.num_frames
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.6) * size / num_frames
    time = np.arange(num_frames) - num_frames / 2
    camera = speed * time[:, None] * [np.cos(angle), np.sin(angle)]
    light = np.full(num_frames, rng.uniform(0.85, 1.15))
    background = _background(rng, size, size // 3)
    movers = tuple(
        _sprite(rng, size * rng.uniform(0.08, 0.15))
        for _ in range(rng.integers(1, 4) if rng.random() < 0.5 else 0)
    )
    walk = _smooth_walk(rng, num_frames, 3 * len(movers), step=10).reshape(num_frames, -1, 3)
    states = walk * [0.5 * size, 0.5 * size, 2] + [size / 2, size / 2, 0]
    return Place(background, camera, light, movers, states)


def _other_shots(rng, settings, start, end):
    """Shots of other places for the frames before `start` and after `end`, one or two each."""
    shots = []
    for first, stop in ((0, start), (end + 1, settings.num_frames)):
        cuts = [first, stop]
        if stop - first >= 8 and rng.random() < 0.5:
            cuts.insert(1, int(rng.integers(first + 4, stop - 3)))
        shots += [(*span, _other_place(rng, settings)) for span in zip(cuts, cuts[1:])]
    return tuple(shot for shot in shots if shot[0] < shot[1])


def draw_scene(seed, settings):
    """The scene of a clip, a pure function of `seed` (int or tuple of ints, none negative) and
    `settings`."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    size, num_frames, config = settings.size, settings.num_frames, settings.config
    start, end, progress = _timing(rng, settings)
    # Of the reach and diameter of the other configs, and where home may lie, of the frame.
    reach_share, size_share, spread = {'shifted': (0.75, 0.85, 0.25)}.get(
        config, (1, 0.4, 0.35) if config in SMALL else (1, 1, 0.05)
    )
    reach = size * rng.uniform(0.28, 0.35) * reach_share
    diameter = size * rng.uniform(0.2, 0.3) * size_share
    home = size * (0.5 + rng.uniform(-1, 1, 2) * spread)
    objects = tuple(_sprite(rng, diameter * rng.uniform(0.92, 1.08)) for _ in range(3))
    turns = rng.uniform(0, 2 * np.pi, 3)
    margin = max(2, size // 16)
    camera = size / 64 * rng.uniform(0, 0.8) * _smooth_walk(rng, num_frames, 2, step=4)
    light = 1 + rng.uniform(0, 0.12) * _smooth_walk(rng, num_frames, 1, step=12)[:, 0]
    background = _background(rng, size, margin)
    if config == 'small_plain':
        background[:] = background.mean((0, 1))
    drift = np.zeros((num_frames, 2))
    movers, mover_states, other_shots = (), np.zeros((num_frames, 0, 3)), ()
    if config == 'untrimmed':
        # The walk is held at 0 during the action, so that the action itself is unchanged.
        frame = np.arange(num_frames)
        away = np.maximum(np.maximum(start - frame, frame - end), 0) / num_frames
        drift = (
            size
            * 0.16
            * np.minimum(1, 6 * away)[:, None]
            * _smooth_walk(rng, num_frames, 2, step=6)
        )
        movers = tuple(
            _sprite(rng, size * rng.uniform(0.12, 0.18)) for _ in range(rng.integers(1, 4))
        )
        mover_states = _smooth_walk(rng, num_frames, 3 * len(movers), step=10).reshape(
            num_frames, -1, 3
        )
        mover_states = mover_states * [0.55 * size, 0.55 * size, 2] + [size / 2, size / 2, 0]
    elif config == 'spliced':
        other_shots = _other_shots(rng, settings, start, end)
    return Scene(
        Place(background, camera, light, movers, mover_states),
        objects,
        home,
        reach,
        turns,
        start,
        end,
        progress,
        drift,
        other_shots,
    )


def classes_of(config: str) -> types.ModuleType:
    """The module with the PROGRAMS, REVERSALS, SPLITS and CLASSES of a config."""
    return in_place if config in SMALL else motions


def _seed(seed, *more):
    return (*((seed,) if np.ndim(seed) == 0 else seed), *more)


def _another_class(class_name, seed, settings):
    """The other class of a clip with two actions: any of its split, in 'two_scenes' any of another
    scene."""
    splits = classes_of(settings.config).SPLITS.values()
    names = next(names for names in splits if class_name in names)
    others = [name for name in names if name != class_name]
    if settings.config == 'two_scenes':
        others = [name for name in others if scene_of(name) != scene_of(class_name)]
    return others[np.random.default_rng(_seed(seed, 2)).integers(len(others))]


def scene_of(class_name: str) -> int:
    """The scene in which a class of 'two_scenes' takes place, 0 to SCENES - 1: its place in its
    split modulo SCENES, so every split has (nearly) all scenes."""
    names = next(names for names in motions.SPLITS.values() if class_name in names)
    return names.index(class_name) % SCENES


def _another_scene(scene, seed, settings):
    """The scene of the other shot of a clip with two actions, whose action takes the rest of the
    clip."""
    last = settings.num_frames - 1
    start, end = (
        (scene.action_end + 1, last) if scene.action_start == 0 else (0, scene.action_start - 1)
    )
    return dataclasses.replace(
        draw_scene(_seed(seed, 1), settings),
        action_start=start,
        action_end=end,
        progress=_progress(start, end, settings.num_frames, np.linspace(0, 1, 7)),
    )


def _with_look_of(class_name, scene, settings):
    """The scene with what looks the same in all clips of a class: in 'two_objects' its objects, in
    'two_scenes' its background."""
    if settings.config == 'two_objects':
        rng = np.random.default_rng((motions.CLASSES.index(class_name), 4))
        objects = tuple(_sprite(rng, sprite.diameter) for sprite in scene.objects)
        return dataclasses.replace(scene, objects=objects)
    if settings.config == 'two_scenes':
        margin = (len(scene.place.background) - settings.size) // 2
        rng = np.random.default_rng((scene_of(class_name), 5))
        place = dataclasses.replace(scene.place, background=_background(rng, settings.size, margin))
        return dataclasses.replace(scene, place=place)
    return scene


def render_clip(class_name, seed, settings):
    """A clip of a class of `classes_of(settings.config).CLASSES` (else ValueError): a pure function
    of its arguments, in any process on any machine.

    seed: int or tuple of ints, none negative.
    """
    classes = classes_of(settings.config)
    if class_name not in classes.PROGRAMS:
        raise ValueError(
            f'{class_name!r} is not a class of the synthetic actions; see '
            f'{classes.__name__.rpartition(".")[2]}.CLASSES'
        )
    scene = _with_look_of(class_name, draw_scene(seed, settings), settings)
    frames = np.empty((settings.num_frames, settings.size, settings.size, 3), np.uint8)
    boxes = np.zeros((settings.num_frames, 4), np.float32)
    _play(frames, boxes, scene, classes.PROGRAMS[class_name])
    for first, stop, place in scene.other_shots:
        boxes[first:stop] = 0
        for t in range(first, stop):
            frames[t] = _lit(_empty(place, t, settings.size), place, t)
    if settings.config in TWO:
        other_class = _another_class(class_name, seed, settings)
        other = _with_look_of(other_class, _another_scene(scene, seed, settings), settings)
        shot = slice(other.action_start, other.action_end + 1)
        shown = frames.copy()
        _play(shown, boxes.copy(), other, classes.PROGRAMS[other_class])
        frames[shot], boxes[shot] = shown[shot], 0
    return Clip(frames, scene.action_start, scene.action_end, boxes)


def _empty(place, t, size):
    """Frame `t` of a place without acting objects, before light: float32 [size, size, 3]."""
    margin = (place.background.shape[0] - size) // 2
    shift = np.array([[1, 0, place.camera[t, 0] - margin], [0, 1, place.camera[t, 1] - margin]])
    image = cv2.warpAffine(
        place.background,
        shift,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    for sprite, (x, y, turn) in zip(place.movers, place.mover_states[t]):
        _draw(image, sprite, np.array([x, y]) + place.camera[t], 1.0, turn, 1.0)
    return image


def _lit(image, place, t):
    return cv2.convertScaleAbs(image, alpha=place.light[t])


def _play(frames, boxes, scene, program):
    """Renders a program in a scene into `frames` [N, size, size, 3] and `boxes` [N, 4]."""
    num_frames, size = frames.shape[:2]
    states = program.at(scene.progress)
    diameter = scene.objects[0].diameter
    centres = scene.home + scene.reach * states[..., 0:2] + diameter * states[..., 2:4]
    centres = centres + (scene.drift + scene.place.camera)[:, None]
    scales = np.exp2(states[..., 4])
    for t in range(num_frames):
        image = _empty(scene.place, t, size)
        for i in np.argsort(states[t, :, 7], kind='stable'):
            turn = scene.turns[i] + states[t, i, 5]
            _draw(image, scene.objects[i], centres[t, i], scales[t, i], turn, states[t, i, 6])
        frames[t] = _lit(image, scene.place, t)
        boxes[t] = _box(
            scene.objects[0],
            centres[t, 0],
            scales[t, 0],
            scene.turns[0] + states[t, 0, 5],
            states[t, 0, 6],
            size,
        )
