"""The 56 actions of `synthetic_actions/small`: a small object does two things in its place, one
after the other ("something turning clockwise, then growing").

As in motions.py, the time reversal of a class is a class of the same split. What tells the classes
apart is within one or two diameters of the object.
"""

import numpy as np

from tfds_builders.synthetic_actions.motions import FIELDS, Program, pose

_REST = np.stack([pose(), pose(opacity=0)])  # the object, and what it changes into


def _change(**fields):
    """What is added to the states of both objects [2, 8]: a field of the first, or `other_FIELD` of
    the second."""
    change = np.zeros_like(_REST)
    for name, value in fields.items():
        change[int(name.startswith('other_')), FIELDS.index(name.removeprefix('other_'))] = value
    return change


_BACK = np.zeros_like(_REST)

# What the object passes through, relative to how it is before. What ends elsewhere has a partner
# that undoes it; what ends as it began is its own partner.
_MOVES = {
    'turning clockwise': (_change(turn=2.4),),
    'turning counter-clockwise': (_change(turn=-2.4),),
    'growing': (_change(log_size=0.8),),
    'shrinking': (_change(log_size=-0.8),),
    'fading and coming back': (_change(opacity=-0.9), _BACK),
    'changing and changing back': (_change(opacity=-1, other_opacity=1), _BACK),
    'hopping': (_change(contact_y=-0.7), _BACK),
    'shaking': (_change(contact_x=0.5), _change(contact_x=-0.5), _change(contact_x=0.5), _BACK),
}
_UNDONE_BY = {
    'turning clockwise': 'turning counter-clockwise',
    'turning counter-clockwise': 'turning clockwise',
    'growing': 'shrinking',
    'shrinking': 'growing',
}


def _program(*moves):
    """The moves one after the other, in equal shares of the time."""
    times, states = [0.0], [_REST]
    for i, move in enumerate(moves):
        before = states[-1]
        for k, change in enumerate(_MOVES[move], 1):
            times.append((i + k / len(_MOVES[move])) / len(moves))
            states.append(before + change)
    return Program(np.array(times), np.stack(states))


def _name(first, second):
    return f'something {first}, then {second}'


def _tables():
    programs, reversals, families = {}, {}, []
    for first in _MOVES:
        for second in _MOVES:
            if first == second:
                continue
            name = _name(first, second)
            partner = _name(_UNDONE_BY.get(second, second), _UNDONE_BY.get(first, first))
            programs[name], reversals[name] = _program(first, second), partner
            if partner not in programs or partner == name:
                families.append(tuple(dict.fromkeys((name, partner))))
    held_out = {'test': families[1::5], 'val': families[3::10]}
    splits = {
        split: tuple(name for f in chosen for name in f) for split, chosen in held_out.items()
    }
    taken = {name for names in splits.values() for name in names}
    return programs, reversals, {'train': tuple(n for n in programs if n not in taken)} | splits


# As in motions.py.
PROGRAMS, REVERSALS, SPLITS = _tables()
CLASSES = SPLITS['train'] + SPLITS['val'] + SPLITS['test']
