"""A setting is a field of the module that reads it: default, type, range and help on one line.

    class OrderedAlignment(nn.Module):
        smoothness: float = setting(0.1, above=0, affects='model', help='lambda of softmin')

`config.model.matcher.smoothness`, its check, its flag and its row in docs/settings.md all come from
that line (fsar_jax.config), and `build` fills the field from the config. A field without a setting
is filled from what all stages share.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fsar_jax.messages import printable

Path = typing.NewType('Path', str)  # the annotation of a setting that is a path

AFFECTS = (
    'model',  # what the classifier is, so the same in training and evaluation
    'result',  # numbers of both, but an evaluation may take another value
    'training',  # what is trained; a finished checkpoint no longer depends on it
    'length',  # likewise, but a run may go on with more where nothing before depends on it
    'evaluation',  # what is evaluated, and no parameter
    'list',  # likewise, but what counts is what the file holds, wherever it lies
    'start',  # the parameters that a new run starts from
    'cost',  # memory, speed, where things lie, what is printed: no number
)
# Where no smaller limit is given: of the int32 and float32 that JAX computes with.
LARGEST: dict[Any, float] = {int: 2**31 - 1, float: 3.4028234663852886e38}
SMALLEST = 1.1754943508222875e-38  # a smaller float32 is 0 to a CPU


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one line says of a setting; `setting` makes it, `settings_of` adds the field's type.

    Attributes:
      default: None where `optional`; a tuple where the value is a list of any length, or of
        `length`.
      kind: bool, int, float or str, of a list that of its elements; 'path' of a file or folder.
      optional: whether None is a value.
      at_least, above, at_most, below: the range of a number, of each where there is a list.
      choices: all values there are; () for any.
      affects: one of AFFECTS.
      same_as: a key; both have one value, whichever is set.
      unless: a key; while that has a value, an evaluation does not depend on this one.
      factor: the letter under which docs/paper_vs_code.md discusses it; '' where it does not.
      formerly: the key that meant this in runs from before this setting existed.
      why: added to the error of a value outside the range.
      help: what it is.
    """

    default: Any
    kind: type | str | None = None
    optional: bool = False
    length: int | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    affects: str = 'result'
    same_as: str = ''
    unless: str = ''
    factor: str = ''
    formerly: str = ''
    why: str = ''
    help: str = ''


def setting(default: Any, kw_only: bool = False, **line: Any) -> Any:
    """A dataclass field that is a setting: its default, and the attributes of `Setting` but for
    those that the annotation gives (kind, optional, length). kw_only: as of a dataclass field."""
    return dataclasses.field(
        default=default, metadata={'setting': Setting(default, **line)}, kw_only=kw_only
    )


def settings_of(module: Callable) -> dict[str, Setting]:
    """{name: Setting} of the fields of a dataclass or Linen module, or of a functools.partial of
    one, in order.

    Raises:
      TypeError: an annotation that is none of bool, int, float, str, Path, tuples of these, each
        perhaps with `| None`.
    """
    return {
        field.name: _with_type(field, _class_of(module))
        for field in _free_fields(module)
        if 'setting' in field.metadata
    }


def union(modules: Iterable[Callable]) -> dict[str, Setting]:
    """The settings of all `modules`, which share a section of the config.

    Raises:
      ValueError: one name with two different lines.
    """
    found: dict[str, Setting] = {}
    owner: dict[str, str] = {}
    for module in modules:
        for name, known in settings_of(module).items():
            if found.setdefault(name, known) != known:
                differ = ', '.join(
                    f'{part.name} {getattr(found[name], part.name)!r} and '
                    f'{getattr(known, part.name)!r}'
                    for part in dataclasses.fields(Setting)
                    if getattr(found[name], part.name) != getattr(known, part.name)
                )
                raise ValueError(
                    f'{owner[name]} and {_class_of(module).__name__} both have a setting '
                    f"'{name}', with different lines ({differ}): make them equal, or rename one"
                )
            owner.setdefault(name, _class_of(module).__name__)
    return found


def build(module: Callable | None, section: Mapping, shared: Mapping) -> Any:
    """An instance of a Linen module: its settings from `section` of the config, its other fields
    from what all stages share or, where that has no such name, from `section` too.

    Args:
      module: a class, a functools.partial of one, or None for a stage that is left out.
      section: such as config.model.matcher.
      shared: {field: value}.

    Returns:
      The instance, or None.
    """
    if module is None:
        return None
    values = {}
    for field in _free_fields(module):
        for source in (section,) if 'setting' in field.metadata else (shared, section):
            if field.name in source:
                value = source[field.name]
                values[field.name] = tuple(value) if isinstance(value, list) else value
                break
    return module(**values)


def has_field(module: Callable, name: str) -> bool:
    """Whether a setting of that name changes anything for the module."""
    return any(field.name == name for field in _free_fields(module))


def check_section(section: Mapping, known: Mapping[str, Setting], name: str) -> None:
    """Checks type, range and choices of what is there in a section such as 'model.matcher'.

    Raises:
      ValueError: one line that names the key, what is wrong with its value and what it may be.
    """
    for key, line in known.items():
        if key in section and (wrong := complaint(line, section[key])):
            full = f'config.{name}.{key}' if name else f'config.{key}'
            raise ValueError(f'{full}={printable(repr(section[key]))} {wrong}')


def complaint(known: Setting, value: Any) -> str:
    """What is wrong with a value of this setting, and what it may be; '' where nothing is."""
    if value is None and known.optional:
        return ''
    if isinstance(known.default, tuple):
        each = dataclasses.replace(known, default=None)
        fits = isinstance(value, (tuple, list)) and known.length in (None, len(value))
        return (
            ''
            if fits and not any(complaint(each, x) for x in value)
            else f'must be {described(known)}'
        )
    if known.choices:
        return '' if value in known.choices else f'is not one of {", ".join(known.choices)}'
    allowed: Any = {'path': str, float: (int, float)}.get(known.kind, known.kind)
    if not isinstance(value, allowed) or isinstance(value, bool) != (known.kind is bool):
        return f'must be {described(known)}'
    if known.kind in (str, 'path'):
        return '' if value or known.optional else 'must not be empty'
    if known.kind is bool:
        return ''
    most = LARGEST[known.kind] if known.at_most is None else known.at_most
    enough = (
        value - known.above >= SMALLEST
        if known.above is not None
        else known.at_least is None or value >= known.at_least
    )
    # None of these is true of NaN.
    if enough and value <= most and (known.below is None or value < known.below):
        return ''
    if value > most:
        known = dataclasses.replace(known, at_most=most)
    too = '' if known.kind is float else 'is too large, it ' if enough else 'is too small, it '
    why = f': {known.why}' if known.why else ''
    return f'{too}must be {limits(known)}{why}'


def limits(known: Setting) -> str:
    """'at least 0 and less than 1'; '' where there is none."""
    named = (
        ('at least', known.at_least),
        ('greater than', known.above),
        ('at most', known.at_most),
        ('less than', known.below),
    )
    return ' and '.join(f'{words} {limit}' for words, limit in named if limit is not None)


def described(known: Setting) -> str:
    """'a whole number, at least 1', or of a list '2 numbers, each at least 0'."""
    one, many = {
        bool: ('True or False', ''),
        int: ('a whole number', 'whole numbers'),
        float: ('a number', 'numbers'),
        str: ('text', ''),
        'path': ('a path', ''),
    }[known.kind]
    if isinstance(known.default, tuple):
        each = limits(known) and f', each {limits(known)}'
        return f'{known.length} {many}{each}' if known.length else f'a list of {many}{each}'
    return f'{one}, {limits(known)}' if limits(known) else one


def _class_of(module):
    return getattr(module, 'func', module)


def _free_fields(module):
    """The fields that its maker leaves open; not those that every Linen module has."""
    fixed = {'parent', 'name'} if hasattr(_class_of(module), 'setup') else set()
    fixed |= getattr(module, 'keywords', {}).keys()
    return [
        field
        for field in dataclasses.fields(_class_of(module))
        if field.init and field.name not in fixed
    ]


def _with_type(field, owner) -> Setting:
    """The setting of a field, with what its annotation says."""
    hint = field.type
    if isinstance(hint, str):  # from __future__ import annotations
        hint = eval(hint, vars(sys.modules[owner.__module__]))
    known, optional, length = field.metadata['setting'], False, None
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        optional = type(None) in typing.get_args(hint)
        hint = next(x for x in typing.get_args(hint) if x is not type(None))
    if typing.get_origin(hint) is tuple:
        elements = typing.get_args(hint)
        length = None if elements[-1] is ... else len(elements)
        hint = elements[0]
    kind = 'path' if hint is Path else hint
    if kind not in (bool, int, float, str, 'path'):
        raise TypeError(
            f'{owner.__name__}.{field.name} is a setting of type {field.type}: give it one of '
            'bool, int, float, str, Path, or a tuple of these, with "| None" where it may be None'
        )
    return dataclasses.replace(known, kind=kind, optional=optional, length=length)
