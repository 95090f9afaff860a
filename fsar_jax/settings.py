"""Prints every setting of a run: key, default, range, and what it does.

    python -m fsar_jax.settings                     all of them
    python -m fsar_jax.settings model.matcher       those whose key begins with model.matcher
    python -m fsar_jax.settings --markdown          docs/settings.md

Every setting is a flag of training and evaluation: --config.episode.shot=5.
"""

import sys
import textwrap

from fsar_jax.arguments import Parser
from fsar_jax.config import SECTIONS, SETTINGS
from fsar_jax.fields import AFFECTS, Setting, described
from fsar_jax.messages import printable
from fsar_jax.stopping import errors_in_one_line

MEANING = dict(
    zip(
        AFFECTS,
        (
            'the classifier itself, so training and evaluation must use the same value',
            'training and evaluation; an evaluation may use another value than its training did',
            'training only',
            'how long training runs',
            'evaluation only',
            'evaluation only, through the content of the file',
            'the parameters that a new run starts from',
            'memory, speed, locations and printing, but no result',
        ),
        strict=True,
    )
)


def values(known: Setting) -> str:
    """Which values a setting takes: 'a whole number, at least 1, or None'."""
    choices = ', '.join(known.choices)
    return (choices or described(known)) + (', or None' if known.optional else '')


def shown(value: object) -> str:
    """A default, as a flag takes it."""
    return f'{value:g}' if isinstance(value, float) else f'{value}'


def used_by(key: str) -> str:
    """'cross_transformer, query_similarity'; '' where every choice of the section reads it."""
    section, _, name = key.rpartition('.')
    part = SECTIONS[section]
    readers = part.used_by(name)
    every = part.stages and all(choice in readers for choice in part.stages if part.stages[choice])
    return '' if every else ', '.join(readers)


def text(prefix: str = '') -> str:
    """The settings whose key begins with `prefix`, for a terminal."""
    lines = []
    for key, known in SETTINGS.items():
        if not key.startswith(prefix):
            continue
        users = used_by(key)
        about = f'{known.help}. ' + (f'Used by {users}. ' if users else '')
        about += f'Affects: {known.affects}.'
        lines += [
            f'{key} = {shown(known.default)}    ({values(known)})',
            *textwrap.wrap(about, 96, initial_indent='    ', subsequent_indent='    '),
        ]
    return '\n'.join(lines)


def markdown() -> str:
    """docs/settings.md."""
    lines = [
        '# Settings',
        '',
        'Written by `python -m fsar_jax.settings --markdown`; a test keeps it current.',
        '',
        'Every setting is a flag: `--config.episode.shot=5`, or `=None` where None is a value. A',
        'setting of a stage is a field of the module that reads it, in `fsar_jax/samplers`,',
        '`backbones`, `enrichment` or `matchers`; what all stages share is in `fsar_jax/stage.py`.',
        'The other settings are in `fsar_jax/config.py`.',
        'A letter in brackets refers to the table of hidden factors in',
        '[paper_vs_code.md](paper_vs_code.md#the-hidden-factors).',
        '',
        'What changing a setting affects:',
        '',
        *(f'- **{kind}**: {meaning}' for kind, meaning in MEANING.items()),
        '',
        'To resume a run you may change settings of the kinds *cost*, *start*, *evaluation* and',
        '*list*, and raise *length* where no schedule depends on it. An evaluation may change all',
        'kinds but *model*; if a number can change, the results go to a file of their own.',
    ]
    for section, part in SECTIONS.items():
        title = f'config.{section}' if section else 'config'
        lines += [
            '',
            f'## {title}',
            '',
            '| key | default | values | used by | affects | what it is |',
            '| --- | --- | --- | --- | --- | --- |',
        ]
        for name, known in part.settings().items():
            key = f'{section}.{name}'.removeprefix('.')
            letter = f' ({known.factor})' if known.factor else ''
            cells = (
                f'`{name}`',
                f'`{shown(known.default)}`',
                values(known),
                used_by(key),
                known.affects,
                known.help + letter,
            )
            lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """The command."""
    parser = Parser(
        prog='python -m fsar_jax.settings',
        description='Prints every setting of a run: key, default, range, and what it does.',
    )
    parser.add_argument('prefix', nargs='?', default='', help='such as model.matcher')
    parser.add_argument('--markdown', action='store_true', help='print docs/settings.md')
    args = parser.parse()
    prefix = args.prefix.removeprefix('config.')
    if args.markdown:
        print(markdown(), end='')
        return
    found = text(prefix)
    if not found:
        sections = ', '.join(filter(None, SECTIONS))
        sys.exit(f"error: no setting begins with '{printable(args.prefix)}': try one of {sections}")
    print(found)


if __name__ == '__main__':
    with errors_in_one_line():
        main()
