"""What the processes of one run do together. With a single process, each function is trivial."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def print_once(text: str) -> None:
    """Prints a line on standard output, in process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def all_or_none(action: Callable[[], Any], failed_elsewhere: Exception) -> Any:
    """Runs `action` in every process and returns its result.

    Raises:
      What `action` raised in this process. Where it failed only in another one, `failed_elsewhere`.
    """
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    if multihost_utils.process_allgather(np.array(error is None)).all():
        return result
    raise error or failed_elsewhere


def from_first_process(value: Any) -> Any:
    """Process 0's value in every process. It must be what JSON can hold."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value, sort_keys=True).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    text = np.resize(text, size)  # in the other processes only the size matters
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(text)))


def smallest(value: float) -> float:
    """The smallest value of all processes, in each of them; float32."""
    if jax.process_count() == 1:
        return value
    return float(np.min(multihost_utils.process_allgather(np.float32(value))))


def wait_for_all(where: str) -> None:
    """Returns when every process has called this with the same `where`."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)
