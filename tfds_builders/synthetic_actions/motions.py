"""The 100 actions of the synthetic dataset, as motion programs, and their split by class.

A program gives the state of up to three objects at progress u in [0, 1] of the action. It is a
polyline of key states, so its time reversal is exact: `reverse(program).at(u) == program.at(1 -
u)`. Most classes have such a partner, and partners are always in the same split: telling them apart
needs the order of the frames, not the frames themselves.

Nothing here is random, and appearance is not decided here, but in renderer.py.
"""

import dataclasses

import numpy as np

# Columns of a state. x, y: position in units of the clip's reach (y points down). contact_x,
# contact_y: further offset in units of the object diameter, for objects that touch. log_size: log2
# of the size relative to the object's own. turn: radians, clockwise. opacity in [0, 1]. depth:
# objects of higher depth are drawn over those of lower depth.
FIELDS = ('x', 'y', 'contact_x', 'contact_y', 'log_size', 'turn', 'opacity', 'depth')


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Key states of the objects of an action.

    times: [K] float64, increasing from 0 to 1.  states: [K, objects, 8] float64, columns FIELDS;
    object 0 acts.
    """

    times: np.ndarray
    states: np.ndarray

    def at(self, progress):
        """States [..., objects, 8] float64 at `progress` [...] in [0, 1] (clipped to it)."""
        progress = np.clip(np.asarray(progress, np.float64), 0, 1)
        key = np.searchsorted(self.times, progress, side='right') - 1
        key = np.clip(key, 0, len(self.times) - 2)
        share = (progress - self.times[key]) / (self.times[key + 1] - self.times[key])
        share = share[..., None, None]
        return (1 - share) * self.states[key] + share * self.states[key + 1]


def pose(x=0.0, y=0.0, **fields):
    """One state [8]. Fields that are not given are 0, except for an opacity of 1."""
    values = dict.fromkeys(FIELDS, 0.0) | {'x': x, 'y': y, 'opacity': 1.0} | fields
    return np.array([values[name] for name in FIELDS], np.float64)


def keys(*states, times=None):
    """The program through `states`, each a pose or a tuple of poses (one per object), at `times`,
    equally spaced by default."""
    states = np.stack([np.stack(s) if isinstance(s, tuple) else s[None] for s in states])
    times = np.linspace(0, 1, len(states)) if times is None else np.array(times, np.float64)
    return Program(times, states)


def reverse(program):
    """The program played backwards."""
    return Program(1 - program.times[::-1], program.states[::-1])


def join(*programs):
    """The programs one after the other, in equal shares of the time. Each must start where the one
    before ends."""
    times, states = [np.zeros(1)], [programs[0].states[:1]]
    for i, program in enumerate(programs):
        if not np.allclose(program.states[0], states[-1][-1]):
            raise ValueError(f'program {i} does not start where the one before it ends')
        times.append((i + program.times[1:]) / len(programs))
        states.append(program.states[1:])
    times = np.concatenate(times)
    times[-1] = 1.0
    return Program(times, np.concatenate(states))


def there_and_back(program):
    """The program, then its reversal: "pretending to" do it."""
    return join(program, reverse(program))


def excursions(*poses):
    """From the rest pose to each pose in turn and back."""
    return join(*(there_and_back(keys(pose(), p)) for p in poses))


def closed_path(corners):
    """Program of one object through `corners` (x, y) and back to the first, at constant speed."""
    corners = np.array([*corners, corners[0]], np.float64)
    lengths = np.hypot(*np.diff(corners, axis=0).T)
    return keys(
        *(pose(x, y) for x, y in corners), times=np.append(0, np.cumsum(lengths)) / lengths.sum()
    )


def arc(start, stop, radius=0.8, points=17):
    """Points (x, y) on a circle; angles in turns, 0 is the top and 0.25 the right (clockwise on
    screen)."""
    angles = 2 * np.pi * np.linspace(start, stop, points)
    return np.stack([radius * np.sin(angles), -radius * np.cos(angles)], 1)


def _sizes(start, stop):
    return keys(pose(log_size=start), pose(log_size=stop))


def _cover(x):
    # The lid (actor) is larger than what it covers, so that nothing of it is seen at the end.
    return keys(
        (pose(x, 0, log_size=0.4, depth=1), pose(0, 0, log_size=-0.4)),
        (pose(0, 0, log_size=0.4, depth=1), pose(0, 0, log_size=-0.4)),
    )


def _pass(depth):
    return keys(
        (pose(-1, 0, log_size=-0.2, depth=depth), pose(0, 0, log_size=0.3)),
        (pose(1, 0, log_size=-0.2, depth=depth), pose(0, 0, log_size=0.3)),
    )


def _push(side):
    """The actor comes from side (-1 left, 1 right), touches the other object and pushes it on."""
    return keys(
        (pose(side), pose(0.1 * side, contact_x=-0.5 * side)),
        (pose(0.1 * side, contact_x=0.5 * side), pose(0.1 * side, contact_x=-0.5 * side)),
        (pose(-0.7 * side, contact_x=0.5 * side), pose(-0.7 * side, contact_x=-0.5 * side)),
    )


def _stack(height):
    lower = pose(0, 0.8)
    return keys((pose(0, height), lower), (pose(0, 0.8, contact_y=-0.95), lower))


def _around(start, stop):
    """The actor runs around a resting object."""
    return keys(*((pose(x, y, log_size=-0.3, depth=1), pose()) for x, y in arc(start, stop, 0.95)))


_swap = keys(*((pose(*a), pose(*b)) for a, b in zip(arc(-0.25, 0.25), arc(0.25, 0.75))))
_strike = keys(
    (pose(-1.1), pose(0, contact_x=0.5)),
    (pose(0, contact_x=-0.5), pose(0, contact_x=0.5)),
    (pose(0, contact_x=-0.5), pose(1.1, contact_x=0)),
)
_meet = keys((pose(-1.1), pose(1.1)), (pose(contact_x=-0.5), pose(contact_x=0.5)))
_hit = keys(
    (pose(-1, -0.7), pose(0.3, contact_x=0.5)),
    (pose(0.3, contact_x=-0.5), pose(0.3, contact_x=0.5)),
)
_hops = keys(*(pose(x, 0.5 - abs(np.sin(1.5 * np.pi * (x + 1)))) for x in np.linspace(-1, 1, 25)))
_zigzag = keys(pose(-0.6, -1), pose(0.6, -0.5), pose(-0.6, 0), pose(0.6, 0.5), pose(-0.6, 1))
_chase_right = keys((pose(-1.2), pose(-0.4, contact_x=0.3)), (pose(0.4, contact_x=-0.3), pose(1.2)))
_chase_down = keys(
    (pose(0, -1.2), pose(0, -0.4, contact_y=0.3)), (pose(0, 0.4, contact_y=-0.3), pose(0, 1.2))
)
_across = keys(pose(-0.9), pose(0.9))
_down = keys(pose(0, -0.9), pose(0, 0.9))
_quarter = keys(pose(turn=0), pose(turn=2.4))
_fade = keys(pose(opacity=0), pose(opacity=1))
_nearer = _sizes(-0.9, 0.6)
_eight = keys(
    *(pose(0.9 * np.sin(a), 0.6 * np.sin(2 * a)) for a in 2 * np.pi * np.linspace(0, 1, 25))
)


def _corner(x, y, first):
    """Along both sides of a corner from (-x, -y) to (x, y), the side named `first` ('x' or 'y')
    first."""
    middle = pose(x, -y) if first == 'x' else pose(-x, y)
    return keys(pose(-x, -y), middle, pose(x, y))


def _resize_and_move(x, y, growth, first):
    """Change size by 2**growth and move to (x, y), what is named `first` ('size' or 'move')
    first."""
    middle = pose(log_size=growth) if first == 'size' else pose(x, y)
    return keys(pose(), middle, pose(x, y, log_size=growth))


# (forward, backward, forward program): the second class is the first one reversed in time.
_PAIRS = {
    'train': (
        ('moving something from left to right', 'moving something from right to left', _across),
        ('something approaching the camera', 'something moving away from the camera', _nearer),
        ('covering something with something', 'uncovering something', _cover(-1)),
        ('something appearing', 'something disappearing', _fade),
        (
            'moving something right then up',
            'moving something down then left',
            _corner(0.7, -0.7, 'x'),
        ),
        (
            'moving something up then right',
            'moving something left then down',
            _corner(0.7, -0.7, 'y'),
        ),
        (
            'moving something along a circle clockwise',
            'moving something along a circle counter-clockwise',
            closed_path(arc(0, 1)[:-1]),
        ),
        (
            'moving something along a triangle clockwise',
            'moving something along a triangle counter-clockwise',
            closed_path(((-0.8, 0.6), (0, -0.8), (0.8, 0.6))),
        ),
        (
            'moving something right and back, then left and back',
            'moving something left and back, then right and back',
            excursions(pose(1), pose(-1)),
        ),
        (
            'moving something up and back, then right and back',
            'moving something right and back, then up and back',
            excursions(pose(0, -1), pose(1)),
        ),
        ('moving two things towards each other', 'moving two things apart', _meet),
        (
            'something passing behind something from left to right',
            'something passing behind something from right to left',
            _pass(-1),
        ),
        (
            'something passing in front of something from left to right',
            'something passing in front of something from right to left',
            _pass(1),
        ),
        (
            'pushing something from left to right',
            'pulling something from right to left, then letting go',
            _push(-1),
        ),
        (
            'pushing something from right to left',
            'pulling something from left to right, then letting go',
            _push(1),
        ),
        ('turning something clockwise', 'turning something counter-clockwise', _quarter),
        (
            'something growing then moving right',
            'something moving left then shrinking',
            _resize_and_move(1, 0, 0.8, 'size'),
        ),
        (
            'something moving right then growing',
            'something shrinking then moving left',
            _resize_and_move(1, 0, 0.8, 'move'),
        ),
        ('something zigzagging down', 'something zigzagging up', _zigzag),
        ('something hopping to the right', 'something hopping to the left', _hops),
        (
            'something knocking something away to the right',
            'something knocked to the left knocking something on',
            _strike,
        ),
        (
            'something hitting something and stopping',
            'something leaving something that it touched',
            _hit,
        ),
        (
            'something chasing something to the right',
            'something fleeing from something to the left',
            _chase_right,
        ),
        (
            'something chasing something downwards',
            'something fleeing from something upwards',
            _chase_down,
        ),
        ('swapping two things clockwise', 'swapping two things counter-clockwise', _swap),
        (
            'something orbiting something clockwise',
            'something orbiting something counter-clockwise',
            _around(0, 1),
        ),
    ),
    'val': (
        (
            'moving something left and back, then down and back',
            'moving something down and back, then left and back',
            excursions(pose(-1), pose(0, 1)),
        ),
        (
            'moving something up and back, then left and back',
            'moving something left and back, then up and back',
            excursions(pose(0, -1), pose(-1)),
        ),
        (
            'moving something along a square clockwise',
            'moving something along a square counter-clockwise',
            closed_path(((-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7))),
        ),
        (
            'moving something along a figure eight, right side first',
            'moving something along a figure eight, left side first',
            _eight,
        ),
        (
            'something growing then moving down',
            'something moving up then shrinking',
            _resize_and_move(0, 1, 0.8, 'size'),
        ),
        (
            'something moving down then growing',
            'something shrinking then moving up',
            _resize_and_move(0, 1, 0.8, 'move'),
        ),
    ),
    'test': (
        ('dropping something', 'lifting something', _down),
        (
            'moving something up and back, then down and back',
            'moving something down and back, then up and back',
            excursions(pose(0, -1), pose(0, 1)),
        ),
        (
            'moving something right and back, then down and back',
            'moving something down and back, then right and back',
            excursions(pose(1), pose(0, 1)),
        ),
        (
            'something growing and back, then shrinking and back',
            'something shrinking and back, then growing and back',
            excursions(pose(log_size=0.8), pose(log_size=-0.9)),
        ),
        (
            'moving something left then up',
            'moving something down then right',
            _corner(-0.7, -0.7, 'x'),
        ),
        (
            'moving something up then left',
            'moving something right then down',
            _corner(-0.7, -0.7, 'y'),
        ),
        (
            'moving something along a diamond clockwise',
            'moving something along a diamond counter-clockwise',
            closed_path(((0, 0.9), (-0.9, 0), (0, -0.9), (0.9, 0))),
        ),
        ('stacking something on something', 'lifting something off something', _stack(-1)),
        (
            'something moving right and back, then growing and back',
            'something growing and back, then moving right and back',
            excursions(pose(1), pose(log_size=0.8)),
        ),
        (
            'something moving down and back, then shrinking and back',
            'something shrinking and back, then moving down and back',
            excursions(pose(0, 1), pose(log_size=-0.9)),
        ),
    ),
}

# Classes that are their own reversal: they start like another class and then undo it.
_RETURNS = {
    'train': (
        ('moving something from left to right and back', _across),
        ('moving something from right to left and back', reverse(_across)),
        ('something approaching the camera, then moving away', _nearer),
        ('something moving away from the camera, then approaching', reverse(_nearer)),
        ('covering something and uncovering it again', _cover(-1)),
        ('uncovering something and covering it again', reverse(_cover(-1))),
        ('something appearing, then disappearing', _fade),
        ('something disappearing, then appearing', reverse(_fade)),
        ('moving two things towards each other and apart again', _meet),
        ('moving two things apart and together again', reverse(_meet)),
        ('turning something clockwise and back', _quarter),
        ('turning something counter-clockwise and back', reverse(_quarter)),
    ),
    'val': (),
    'test': (
        ('pretending to drop something', _down),
        ('pretending to lift something', reverse(_down)),
        ('pretending to stack something on something', _stack(-1)),
        ('pretending to lift something off something', reverse(_stack(-1))),
    ),
}


def _tables():
    programs, reversals, splits = {}, {}, {}
    for split in ('train', 'val', 'test'):
        names = []
        for forward, backward, program in _PAIRS[split]:
            programs |= {forward: program, backward: reverse(program)}
            reversals |= {forward: backward, backward: forward}
            names += [forward, backward]
        for name, program in _RETURNS[split]:
            programs[name] = there_and_back(program)
            reversals[name] = name
            names.append(name)
        splits[split] = tuple(names)
    return programs, reversals, splits


# PROGRAMS: class name -> Program.  REVERSALS: class name -> the class that is its time reversal
# (itself for palindromes). SPLITS: 'train' | 'val' | 'test' -> names of its 64 | 12 | 24 classes.
# CLASSES: all names; a label is a place in it.
PROGRAMS, REVERSALS, SPLITS = _tables()
CLASSES = SPLITS['train'] + SPLITS['val'] + SPLITS['test']
