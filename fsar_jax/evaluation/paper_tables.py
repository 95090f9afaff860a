"""Reads rows of experiments, each with its command: those of docs/tables.md, or of a file like it.

docs/tables.md has one row for every accuracy in the papers' tables and figures. A Markdown table
of rows has the columns 'row' (its name), 'paper', 'measured here' and 'command', in any order; a
heading that begins with the table's name, such as '### vim-t4, …', stands above it. A file may also
have one command on each line.
"""

import hashlib
import io
import os
import pathlib
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fsar_jax.files import local_path
from fsar_jax.messages import listed, printable

# fsar_jax/tables.md is a link to docs/tables.md, and a copy of it in the installed package.
TABLES = pathlib.Path(__file__).parents[1] / 'tables.md'
NAME = re.compile(r'[A-Za-z0-9][\w.+=-]{0,119}', re.ASCII)  # of a row, and so of its folder
HEADING = re.compile(r'#+ +((?:[a-z0-9]+-[a-z0-9]+, )*[a-z0-9]+-[a-z0-9]+)[:,](.*)')
# What may stand before the flags of a training or an evaluation.
STARTS = (
    (['fsar-jax', 'train'], 'train'),
    (['fsar-jax', 'evaluate'], 'evaluate'),
    (['python', 'main.py'], 'train'),
    (['python', '-m', 'fsar_jax.train'], 'train'),
    (['./run.sh'], 'train'),
)


class Row(NamedTuple):
    """One experiment.

    Attributes:
      name: of the row, and of the folder of its runs.
      paper: the number in the paper, as text.
      here: what was measured with this code, as text.
      command: as it stands in the table; '' for a row that cannot be run.
      mode: 'train', 'evaluate', or '' if the command does something else.
      flags: of the training or evaluation, ('--config=strm:ssv2', …); without --workdir, --mode.
      evaluates: the row whose runs an evaluation is of; '' for published weights.
    """

    name: str
    paper: str
    here: str
    command: str
    mode: str
    flags: tuple[str, ...]
    evaluates: str


class Table(NamedTuple):
    """The rows under one heading.

    Attributes:
      names: ('strm-t3', 'strm-a1').
      title: the rest of the heading.
      rows: in order.
    """

    names: tuple[str, ...]
    title: str
    rows: list[Row]


def read_tables(path: str | os.PathLike[str] = TABLES) -> list[Table]:
    """The tables of a Markdown file; of a file with one command on each line, one table.

    Raises:
      OSError: the file cannot be read.
      ValueError: it has no rows, a command that cannot be split into words, two commands under one
        name, or as a file of commands one that neither trains nor evaluates; one line.
    """
    path = local_path(path, 'the file of rows')
    shown = printable(path, 1000)
    try:
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError:
        raise ValueError(f'{shown} is no text in UTF-8: it should hold rows or commands') from None
    lines = text.splitlines()
    in_markdown = any('command' in cells_of(line) for line in lines)
    tables = _of_markdown(lines, shown) if in_markdown else [_of_commands(lines, shown)]
    tables = [table for table in tables if table.rows]
    if not tables:
        raise ValueError(
            f'{shown} has no rows: it should hold one command on each line, or a Markdown table '
            "with the columns 'row' and 'command'"
        )
    unique((row for table in tables for row in table.rows), shown)
    return tables


def rows_of(names: Sequence[str]) -> list[Row]:
    """The rows of all that is named: tables of docs/tables.md, or files of rows. An evaluation
    brings the row that it evaluates with it.

    Raises:
      OSError, ValueError: as `read_tables`, or there is no such table; one line.
    """
    published = read_tables()
    known = {name: table for table in published for name in table.names}
    everywhere = [row for table in published for row in table.rows]
    found: list[Row] = []
    for name in names:
        if name in known:
            found += known[name].rows
        elif pathlib.Path(name).is_file():
            rows = [row for table in read_tables(name) for row in table.rows]
            found += rows
            everywhere = rows + everywhere
        else:
            raise ValueError(
                f"'{printable(name)}' is neither a file nor a table: the tables are "
                f'{listed(known, 100)}'
            )
    rows = unique(found, 'the tables')
    by_name = {row.name: row for row in reversed(everywhere)}
    needed = []
    for row in rows:
        if row.evaluates and row.evaluates not in by_name:
            raise ValueError(
                f"row '{row.name}' evaluates '{printable(row.evaluates)}', and no row has this "
                'name: let --workdir name the row that trains'
            )
        if row.evaluates and by_name[row.evaluates].mode != 'train':
            raise ValueError(
                f"row '{row.name}' evaluates '{row.evaluates}', which does not train: let "
                '--workdir name the row that trains'
            )
        needed += [by_name[row.evaluates]] if row.evaluates else []
    # Trainings first, so that whoever has trained a row comes to its evaluations later.
    together = unique([*needed, *rows], 'the tables')
    return sorted(together, key=lambda row: row.mode == 'evaluate')


def unique(rows: Iterable[Row], where: str) -> list[Row]:
    """The rows, each name once. ValueError where one name has two commands."""
    found: dict[str, Row] = {}
    for row in rows:
        other = found.setdefault(row.name, row)
        if (other.mode, other.flags, other.command) != (row.mode, row.flags, row.command):
            raise ValueError(f"{where}: row '{row.name}' has two commands: give each its own name")
    return list(found.values())


def _of_markdown(lines: Sequence[str], shown: str) -> list[Table]:
    tables, columns = [Table((), '', [])], list[str]()
    for number, line in enumerate(lines, 1):
        heading = HEADING.fullmatch(line.strip())
        cells = cells_of(line)
        if heading:
            tables.append(Table(tuple(heading[1].split(', ')), heading[2].strip(), []))
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        elif 'command' in columns and set(line.strip()) - set('|-: '):
            by_column = dict(zip(columns, cells))
            command = by_column.get('command', '').strip('`')
            tables[-1].rows.append(
                row(
                    command if re.search(r'\w', command) else '',
                    f'{shown} line {number}',
                    by_column.get('row', '').strip('`'),
                    by_column.get('paper', ''),
                    by_column.get('measured here', ''),
                )
            )
    return tables


def _of_commands(lines: Sequence[str], shown: str) -> Table:
    table = Table((), '', [])
    number, begun = 0, ''
    for at, line in enumerate(lines, 1):
        number = number if begun else at
        comment = line.strip().startswith('#') and not begun
        if line.rstrip().endswith('\\') and not comment and at < len(lines):
            begun += line.strip()[:-1].rstrip() + ' '
            continue
        command, begun = begun + line.strip().removesuffix('\\'), ''
        if command.strip() and not comment:
            table.rows.append(_training_or_evaluation(command.strip(), f'{shown} line {number}'))
    return table


def _training_or_evaluation(command: str, where: str) -> Row:
    found = row(command, where)
    if not found.mode:
        raise ValueError(
            f'{where}: {printable(command)} neither trains nor evaluates: begin it with '
            'python -m fsar_jax.train'
        )
    return found


def row(command: str, where: str, name: str = '', paper: str = '', here: str = '') -> Row:
    """One row.

    Args:
      command: '' for a row that cannot be run.
      where: for errors.
      name: '' makes one: the last folder of --workdir, or the method, its preset and its settings.

    Raises:
      ValueError: no words, or a name that no folder should have; one line.
    """
    try:
        words = _words(command)
    except ValueError as error:
        raise ValueError(f'{where}: {printable(command)}: {error}') from None
    mode, flags = _flags_of(words)
    given = given_by(flags)
    mode = given.get('mode', mode)
    rest = tuple(flag for flag in flags if _key(flag) not in ('workdir', 'mode'))
    folder = pathlib.Path(given.get('workdir', '')).name
    evaluates = ''
    if mode == 'evaluate' and 'weights' not in given:  # of the run in the folder that it names, or
        evaluates = folder or _method(given.get('config', ''))  # would take by default
    name = name or ('' if evaluates else folder) or _name(mode, rest, command)
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{where}: '{printable(name)}' cannot be the name of a row: use letters, digits and "
            '. _ + = -, at most 120'
        )
    return Row(name, paper, here, command, mode, rest, evaluates)


def _words(command: str) -> list[str]:
    """The words of a command as a shell splits them, up to a word that begins with '#'. (The
    comments of `shlex.split` begin inside words, too.)"""
    text = io.StringIO(command)
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ''
    words: list[str] = []
    while (rest := command[text.tell() :].lstrip()) and not rest.startswith('#'):
        words.append(lexer.get_token() or '')
    return words


def _flags_of(words: list[str]) -> tuple[str, list[str]]:
    """('train', ['--config=strm:ssv2', …]) of a command; ('', []) if it does something else."""
    words = [word.replace('python3', 'python') if i == 0 else word for i, word in enumerate(words)]
    if words and words[0].startswith('-'):
        mode, flags = 'train', words
    else:
        starts = [start for start in STARTS if words[: len(start[0])] == start[0]]
        if not starts:
            return '', []
        (start, mode) = starts[0]
        flags = words[len(start) :]
    joined: list[str] = []
    for word in flags:  # '--config strm' is '--config=strm'
        if joined and '=' not in joined[-1] and not word.startswith('-'):
            joined[-1] += f'={word}'
        else:
            joined.append(word)
    return mode, joined


def _key(flag: str) -> str:
    """'workdir' of '--workdir=runs/strm'."""
    return flag.lstrip('-').partition('=')[0]


def given_by(flags: Iterable[str]) -> dict[str, str]:
    """{'config': 'strm:ssv2', 'config.seed': '1', …} of flags ('--config=strm:ssv2', …)."""
    return {_key(flag): flag.partition('=')[2] for flag in flags}


def method_and_preset(config: str) -> tuple[str, str]:
    """('strm', 'ssv2') of 'strm:ssv2' or 'configs/strm.py:ssv2'."""
    method, _, preset = config.rpartition('/')[2].replace('.py', '').partition(':')
    return method, preset


def _method(config: str) -> str:
    """'strm-ssv2' of 'strm:ssv2', as a run's folder is called by default."""
    return '-'.join(method_and_preset(config)).rstrip('-')


def _name(mode: str, flags: Sequence[str], command: str) -> str:
    """'strm-ssv2-episode.shot=1' from the flags, with a hash in the place of what is too long."""
    parts = [
        _method(flag.partition('=')[2])
        if _key(flag) == 'config'
        else flag.lstrip('-').removeprefix('config.')
        for flag in flags
    ]
    text = '-'.join([*parts, *(['evaluated'] if mode == 'evaluate' else [])]) or command
    name = re.sub(r'[^\w.+=-]+', '-', text, flags=re.ASCII).strip('-.')
    if len(name) > 100:
        name = f'{name[:90]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'
    return name


def cells_of(line: str) -> list[str]:
    """The cells of one line of a Markdown table; [] for another line."""
    line = line.strip()
    if not line.startswith('|'):
        return []
    cells = re.split(r'(?<!\\)\|', line.removeprefix('|').removesuffix('|'))
    return [cell.strip().replace(r'\|', '|') for cell in cells]
