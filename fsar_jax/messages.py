"""Makes text safe for messages, which are always one line.

File names, keys of checkpoints and class names may contain anything. No such text may break the
line of a message or control the terminal.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any


def printable(text: object, limit: int = 200) -> str:
    """Text from outside, made safe for a message. Control characters, line breaks, lone surrogates
    and marks that change the direction of writing become Python escapes. Text beyond `limit`
    characters becomes '…'."""
    text = str(text)
    shown = ''.join(
        c if c.isprintable() else c.encode('unicode_escape').decode() for c in text[:limit]
    )
    return shown + '…' * (len(text) > limit)


def listed(names: Iterable[object], limit: int = 10) -> str:
    """'a, b, c', and of more than `limit` names 'a, b, …, j and 29,990 more', each made
    printable."""
    names = list(names)
    rest = f' and {len(names) - limit:,} more' if len(names) > limit else ''
    return ', '.join(printable(name) for name in names[:limit]) + rest


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """['seed=0 there, 7 here', …]: where two flat dictionaries differ, by key. A key that one of
    them lacks counts as None."""
    shown = lambda value: printable(repr(value))
    return [
        f'{printable(key)}={shown(there.get(key))} there, {shown(here.get(key))} here'
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def decimal_size(count: float) -> str:
    """A number of bytes as '1.5 GB'."""
    if not math.isfinite(count):
        return 'unknown'
    units = ('bytes', 'kB', 'MB', 'GB', 'TB')
    power = min(len(units) - 1, max(0, len(f'{count:.0f}') - 1) // 3)
    return f'{count / 1000**power:.{1 if power else 0}f} {units[power]}'


def first_line(error: BaseException) -> str:
    """Of the words of an exception, of which XLA may have hundreds of lines."""
    return printable(str(error).strip().partition('\n')[0])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had too little memory. JAX raises a RuntimeError at the first call of a
    program, and a ValueError at later ones."""
    words = str(error)
    if isinstance(error, ValueError):
        return words.startswith('RESOURCE_EXHAUSTED')
    named = 'RESOURCE_EXHAUSTED' in words or 'ut of memory' in words
    return isinstance(error, RuntimeError) and named


def is_lost_process(error: BaseException) -> bool:
    """Whether another process of a run on several was gone, in the words of those that connect
    them: Gloo on CPUs, NCCL on GPUs, and JAX's own service."""
    words = ('Gloo ', 'ncclRemoteError', 'heartbeat', 'oordination service', 'Barrier ')
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def one_line(error: BaseException) -> str:
    """The message of an exception, on one line. Of an OSError: the path and the system's words,
    without the number. Of a device without enough memory: that, and what it was asked for."""
    if is_out_of_memory(error):
        return f'a device has too little memory, or other processes use it ({first_line(error)})'
    if isinstance(error, OSError) and error.errno is not None:
        words = error.strerror or os.strerror(error.errno)
        paths = [
            os.fsdecode(path)
            for path in (error.filename, error.filename2)
            if isinstance(path, (str, bytes, os.PathLike))
        ]
        return printable(': '.join([' -> '.join(paths), words] if paths else [words]), limit=2000)
    return ' '.join(str(error).split()) or type(error).__name__
