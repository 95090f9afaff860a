"""Orbax, which writes and reads the arrays of a checkpoint. The only module that knows it."""

import functools
import json
import logging as std_logging
import os
import pathlib
import re
import sys
from typing import Any

import jax
import numpy as np
from absl import logging

from fsar_jax.messages import printable
from fsar_jax.named_arrays import by_name
from fsar_jax.stage import ArrayTree

try:
    from orbax.checkpoint import v1 as ocp
except ImportError:  # releases in which V1 has no public name yet
    from orbax.checkpoint.experimental import v1 as ocp

UNFINISHED = '.orbax-checkpoint-tmp'  # a save that was killed, of releases without checksums
_METADATA = '_CHECKPOINT_METADATA'  # Orbax's own file, in each checkpoint
_LONGEST_PATH = 3800  # of Linux' 4,095 bytes, less what Orbax appends
# Where directories cannot be made, the threads that are to write into them would wait for minutes.
_DIRECTORIES_FIRST = ocp.options.AsyncOptions(create_directories_asynchronously=False)


def check_directory(directory: str | os.PathLike[str], read_only: bool = False) -> None:
    """Refuses a directory whose name Orbax cannot write checkpoints to and read them again; with
    `read_only`, one that it cannot read from. To be called at the start of a run.

    Raises:
      ValueError: one line.
    """
    path = os.path.abspath(directory)
    shown = printable(path, 1000)
    advice = 'use another --workdir (a symbolic link to this one will do)'
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise ValueError(f'{shown} is no UTF-8, checkpoints cannot lie there: {advice}') from None
    if not read_only and os.path.lexists(path) and not os.path.isdir(path):
        raise ValueError(
            f'{shown} is a file, or a link to nothing: move it away, or use another --workdir'
        )
    odd = sorted(set(path) & set('\\' if read_only else '*?[\\'))
    if odd or re.search(r'[A-Za-z]\w*:/', path):
        what = ' and '.join(map(repr, odd)) or "':/'"
        raise ValueError(
            f'{shown} has {what} in it, which Orbax takes for a pattern or an address: {advice}'
        )
    if size > _LONGEST_PATH:
        raise ValueError(
            f'{shown} has {size:,} bytes, checkpoints can lie in paths of {_LONGEST_PATH:,}: '
            f'{advice}'
        )


def save_async(path: str | os.PathLike[str], state: ArrayTree, **noted: Any) -> Any:
    """Starts writing a state and returns. `.result()` of what is returned waits for the files and
    raises what went wrong with them.

    Args:
      state: pytree of arrays, without typed PRNG keys.
      noted: kept beside it, for `noted_in`.
    """
    with ocp.Context(async_options=_DIRECTORIES_FIRST):
        return ocp.save_checkpointables_async(path, {'state': state}, custom_metadata=noted)


def noted_in(path: pathlib.Path) -> dict | None:
    """What `save_async` was given to note; None where the file that holds it is missing.

    Raises:
      OSError, ValueError: the file is damaged. Orbax itself would ignore it.
    """
    metadata = path / _METADATA
    if not metadata.is_file():  # reading a pipe would wait for ever
        return None
    return json.loads(metadata.read_bytes()).get('custom_metadata') or {}


def description(path: str | os.PathLike[str]) -> ArrayTree:
    """The state's tree, with Orbax's description of each array as its leaves. None where it is
    missing or damaged."""
    return ocp.checkpointables_metadata(path).metadata.get('state')


def load(path: str | os.PathLike[str], tree: ArrayTree) -> dict[str, np.ndarray]:
    """{name: array} of a state, of which `tree` is the `description`."""
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), tree)
    return by_name(ocp.load_checkpointables(path, {'state': like})['state'])


@functools.cache
def quieten_orbax() -> None:
    """Silences Orbax and TensorStore, for the rest of the process.

    Orbax logs a traceback in each thread in which something went wrong, and TensorStore calls an
    event loop that is closed by then. What went wrong is also raised, and reported in one line.
    With --verbosity=1 everything is shown.
    """

    def is_shown(record):
        return logging.level_debug() or not (
            'orbax' in pathlib.Path(record.pathname).parts
            or record.name == 'asyncio'
            and 'tensorstore' in record.getMessage()
        )

    def hook(unraisable, before=sys.unraisablehook):
        late = (
            isinstance(unraisable.exc_value, RuntimeError)
            and str(unraisable.exc_value) == 'Event loop is closed'
        )
        if logging.level_debug() or not late:
            before(unraisable)

    for logger in (logging.get_absl_logger(), std_logging.getLogger('asyncio')):
        logger.addFilter(is_shown)
    sys.unraisablehook = hook
