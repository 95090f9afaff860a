"""The flags of a command, with errors of one line."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from fsar_jax.messages import printable


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes flags by their whole names (`parse`). A wrong flag ends the
    process with one line and status 2, in place of the usage of the command: for an unknown flag it
    gives the nearest name."""

    def __init__(self, **options: Any) -> None:
        self.flags: list[str] = []
        super().__init__(allow_abbrev=False, **options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        self.flags += [name for name in names if name.startswith('-')]
        return super().add_argument(*names, **options)

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The values of the flags; of sys.argv for None."""
        given = sys.argv[1:] if arguments is None else list(arguments)
        # Before a flag that is missing is asked for, which may be this one.
        for argument in given[: given.index('--')] if '--' in given else given:
            if argument.startswith('--') and argument.partition('=')[0] not in self.flags:
                self.error(self._unknown(argument.partition('=')[0]))
        found, rest = self.parse_known_args(given)
        if rest:
            wrong = rest[0]
            self.error(
                self._unknown(wrong)
                if wrong.startswith('-')
                else f"unexpected argument '{printable(wrong)}'"
            )
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'error: {printable(message, 500)} ({self.prog} --help lists the flags)\n')

    def _unknown(self, flag: str) -> str:
        near = difflib.get_close_matches(flag, self.flags, 1)
        return f'unknown flag {printable(flag)}' + (f': did you mean {near[0]}?' if near else '')


def slice_of(text: str | None, flag: str = '--shards') -> tuple[int, int] | None:
    """(i, n) of --shards=i/n, or of another flag; None without it.

    Raises:
      ValueError: it is no such pair.
    """
    if text is None:
        return None
    found = re.fullmatch(r'(\d+)/(\d+)', text)
    i, n = (int(found[1]), int(found[2])) if found else (0, 0)
    if i >= n:
        raise ValueError(
            f'{flag}={printable(text)} should be I/N with I from 0 to N - 1: {flag}=0/16 to '
            f'{flag}=15/16'
        )
    return i, n
