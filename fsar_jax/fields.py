"""Settings as fields of the module that reads them: default, type, range and help in one place.

    class OrderedAlignment(nn.Module):
        smoothness: float = setting(0.1, above=0, affects='model', help='lambda of softmin')

`config.model.matcher.smoothness`, its check, its flag and its row in docs/settings.md all come from
that field (fsar_jax.config), and `build` fills the field from the config. A field without
`setting` is filled with a value that all stages share.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from fsar_jax.messages import printable

Path = typing.NewType('Path', str)  # the annotation of a setting that is a path

AFFECTS = (
    'model',  # the classifier itself, so training and evaluation must use the same value
    'result',  # training and evaluation; an evaluation may use another value than its training
    'training',  # training only; a finished checkpoint no longer depends on it
    'length',  # training only; a run may be lengthened if no earlier step depends on it
    'evaluation',  # evaluation only; no parameter depends on it
    'list',  # evaluation only; a file whose content counts, not its path
    'start',  # the parameters that a new run starts from
    'cost',  # memory, speed, locations and printing, but no result
)
# JAX computes with int32 and float32. Their limits apply where a setting has no smaller one.
LARGEST: dict[Any, float] = {int: 2**31 - 1, float: 3.4028234663852886e38}
SMALLEST = 1.1754943508222875e-38  # CPUs treat a smaller float32 as 0


@dataclasses.dataclass(frozen=True)
class Saving:
    """How a setting can save memory of a device (fsar_jax.memory).

    Attributes:
      harm: 0 no number changes but by rounding of sums, 1 every number is rounded more, 2 results
        change.
      phases: of 'training', 'evaluation' and 'extraction'; () for all.
      value: the value that needs least; None: half of what it is.
      up_to: key of another setting, of which this one is a divisor; the next larger needs less.
      devices: with fewer than so many it saves nothing.
      where: (stages by name, config) → whether it saves anything there; None: everywhere.
    """

    harm: int
    phases: tuple[str, ...] = ()
    value: Any = None
    up_to: str = ''
    devices: int = 1
    where: Callable[[Any, Any], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """The definition of a setting. `setting` makes it; `settings_of` adds the type of the field.

    Attributes:
      default: may be None if `optional`; a tuple if the value is a list.
      kind: bool, int, float or str, or 'path' for a file or folder. For a list, the kind of its
        elements.
      optional: whether the value may be None.
      length: number of elements of a list; None for any number.
      at_least, above, at_most, below: range of a number, or of each number in a list.
      choices: all allowed values; () if any value is allowed. A table of contents, whose names they
        are, may grow.
      affects: one of AFFECTS.
      same_as: key of another setting that always has the same value, whichever of them is set.
      own_default: whether each choice of the section may have its own default. While nobody sets
        the setting, its value in the config follows `name` of the section.
      unless: key of another setting; while that has a value, an evaluation ignores this one.
      factor: the letter under which docs/paper_vs_code.md discusses the setting, or ''.
      starts: for `affects='start'`, the part of the learner that starts from this file or run:
        'sampler.scan_network'.
      names_file: whether the name of a results file begins with the value, and so does not repeat
        it.
      counted: whether a run finds the value for itself in its data, where it is None.
      formerly: key that had this meaning in runs from before this setting existed.
      saving: how another value saves memory of a device; None if it does not.
      why: reason that ends the error message about a value outside the range.
      help: what the setting is.
    """

    default: Any
    kind: type | str | None = None
    optional: bool = False
    length: int | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: Collection[str] = ()
    affects: str = 'result'
    same_as: str = ''
    own_default: bool = False
    unless: str = ''
    factor: str = ''
    starts: str = ''
    names_file: bool = False
    counted: bool = False
    formerly: str = ''
    saving: Saving | None = None
    why: str = ''
    help: str = ''


def setting(default: Any, kw_only: bool = False, **line: Any) -> Any:
    """A dataclass field that is a setting.

    Args:
      default: of the field.
      kw_only: as for `dataclasses.field`.
      line: further attributes of `Setting`. The annotation gives kind, optional and length.
    """
    known = Setting(default, **line)
    if known.affects not in AFFECTS:
        raise TypeError(f'affects={known.affects!r} is not one of {", ".join(AFFECTS)}')
    return dataclasses.field(default=default, metadata={'setting': known}, kw_only=kw_only)


def settings_of(module: Callable) -> dict[str, Setting]:
    """{name: Setting} of the fields of a dataclass or Linen module (or a functools.partial of one),
    in their order.

    Raises:
      TypeError: an annotation is not bool, int, float, str, Path or a tuple of these, with or
        without `| None`.
    """
    return {
        field.name: _with_type(field, _class_of(module))
        for field in _free_fields(module)
        if 'setting' in field.metadata
    }


def union(modules: Iterable[Callable]) -> dict[str, Setting]:
    """All settings of `modules`, which share a section of the config. Of a setting with
    `own_default`, the first module tells the default of the others.

    Raises:
      ValueError: two modules define a setting of the same name differently.
    """
    found: dict[str, Setting] = {}
    owner: dict[str, str] = {}
    for module in modules:
        for name, known in settings_of(module).items():
            if known.own_default and name in found:
                known = dataclasses.replace(known, default=found[name].default)
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
    """Builds a Linen module. Its settings come from `section` of the config; its other fields come
    from `shared` or, if that lacks the name, from `section` too.

    Args:
      module: a class, a functools.partial of one, or None for a stage that is left out.
      section: a section of the config, such as config.model.matcher.
      shared: {field: value} that all stages share.

    Returns:
      The instance; None if `module` is None.
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
    """Whether the module has a field of that name that its caller may set."""
    return any(field.name == name for field in _free_fields(module))


def check_section(section: Mapping, known: Mapping[str, Setting], name: str) -> None:
    """Checks type, range and choices of the values in a section such as 'model.matcher'.

    Raises:
      ValueError: one line that names the key, what is wrong with its value and what it may be.
    """
    for key, line in known.items():
        if key in section and (wrong := complaint(line, section[key])):
            full = f'config.{name}.{key}' if name else f'config.{key}'
            raise ValueError(f'{full}={printable(repr(section[key]))} {wrong}')


def complaint(known: Setting, value: Any) -> str:
    """What is wrong with a value of this setting, and what is allowed; '' if the value is valid."""
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
        return '' if value in list(known.choices) else f'is not one of {", ".join(known.choices)}'
    allowed: Any = {'path': str, float: (int, float)}.get(known.kind, known.kind)
    if not isinstance(value, allowed) or isinstance(value, bool) != (known.kind is bool):
        return f'must be {described(known)}'
    if known.kind in (str, 'path'):
        empty = 'must not be empty' + ('; None for none' if known.optional else '')
        return '' if value else empty
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
    """The range in words: 'at least 0 and less than 1'; '' if there is none."""
    named = (
        ('at least', known.at_least),
        ('greater than', known.above),
        ('at most', known.at_most),
        ('less than', known.below),
    )
    return ' and '.join(f'{words} {limit}' for words, limit in named if limit is not None)


def described(known: Setting) -> str:
    """What a value must be: 'a whole number, at least 1', or '2 numbers, each at least 0'."""
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
    """The fields that a caller may set, without those that every Linen module has."""
    fixed = {'parent', 'name'} if hasattr(_class_of(module), 'setup') else set()
    fixed |= getattr(module, 'keywords', {}).keys()
    return [
        field
        for field in dataclasses.fields(_class_of(module))
        if field.init and field.name not in fixed
    ]


def _with_type(field, owner) -> Setting:
    """The setting of a field, completed by what the annotation says."""
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
    default = known.default
    if kind is float:  # 0 too: ml_collections takes the kind of a flag from it
        default = _floats(default)
    return dataclasses.replace(known, default=default, kind=kind, optional=optional, length=length)


def _floats(value):
    if isinstance(value, tuple):
        return tuple(map(_floats, value))
    return float(value) if isinstance(value, int) else value
