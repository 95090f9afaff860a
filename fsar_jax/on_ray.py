"""Runs the parts of a command as tasks on a Ray cluster that exists already (`--ray`).

A part is a call of the command's own function, as a Slurm array would start the command: with
--shards=i/n or --rows=i/n, in the same folder, which all nodes must share. Ray runs a part again
when its worker or its node was lost. As a command goes on where it was stopped, only what was not
finished is done again.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pathlib
import re
import socket
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fsar_jax.messages import one_line, printable

LOOK_SECONDS = 2.0  # between looks at how far the parts are
LOST = 10  # times that a part may lose its worker
CONNECT_SECONDS = 10.0
STARTED_HERE = pathlib.Path('/tmp/ray/ray_current_cluster')  # where `ray start` notes its address
PARTS_PER_SLOT = 4  # so that nodes which are fast, or were lost, make little difference


class Failure(NamedTuple):
    """What a part returns for an error of one line."""

    line: str


class Room(NamedTuple):
    """What a task asks Ray for.

    Attributes:
      options: of `ray.remote`.
      slots: how many such tasks the cluster can run at once, at least 1.
    """

    options: dict[str, Any]
    slots: int


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """A command line with --ray=auto in the place of --ray, so that the word behind it is not taken
    for its address."""
    return ['--ray=auto' if word == '--ray' else word for word in arguments]


def without_ray(arguments: Sequence[str]) -> list[str]:
    """A command line as a part gets it."""
    return [word for word in spelled_out(arguments) if not word.startswith('--ray=')]


def room_for(nodes: Sequence[dict[str, float]], cpus: int = 0) -> Room:
    """What each task of a command takes of a cluster.

    Args:
      nodes: resources of each node, as Ray names them: {'CPU': 16, 'GPU': 8}.
      cpus: cores of a task that only decodes. 0: a task that runs a network takes a GPU with its
        share of the cores, or all TPU chips of a node, or, where no node has either, a whole node.
    """
    if cpus:
        options: dict[str, Any] = {'num_cpus': cpus}
        per_node = [node.get('CPU', 0) // cpus for node in nodes]
    elif gpus := [node for node in nodes if node.get('GPU', 0) >= 1]:
        share = min(node.get('CPU', 0) // node['GPU'] for node in gpus)
        options = {'num_gpus': 1, 'num_cpus': int(share)}
        per_node = [node['GPU'] for node in gpus]
    elif tpus := [node for node in nodes if node.get('TPU', 0) >= 1]:
        chips = min(node['TPU'] for node in tpus)
        options = {'resources': {'TPU': int(chips)}}
        per_node = [node['TPU'] // chips for node in tpus]
    else:
        smallest = min((node['CPU'] for node in nodes if node.get('CPU', 0) >= 1), default=1)
        options = {'num_cpus': int(smallest)}
        per_node = [node.get('CPU', 0) // smallest for node in nodes]
    return Room(options, max(1, int(sum(per_node))))


def knock(address: str) -> None:
    """OSError unless something listens at an address HOST:PORT, of which Ray itself would be sure
    only after minutes. Addresses of other forms are left to Ray."""
    if address == 'auto':
        address = os.environ.get('RAY_ADDRESS', '')
        with contextlib.suppress(OSError):
            address = address or STARTED_HERE.read_text().strip()
    if found := re.fullmatch(r'\[?([\w.:-]+?)\]?:(\d+)', address):
        socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()


class Cluster:
    """A connection to a Ray cluster. Use it as a context manager, whose end ends all parts.

    Args:
      address: of the cluster; 'auto' for that of RAY_ADDRESS or of this machine.

    Raises:
      ValueError: Ray is not installed, or there is no such cluster; one line.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError(
                "--ray needs Ray, which is not installed: pip install 'fsar_jax[ray]'"
            ) from None
        package = os.fspath(pathlib.Path(__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get('PYTHONPATH')])]
        try:
            knock(address)
            ray.init(
                address,
                log_to_driver=False,
                logging_level='ERROR',
                runtime_env={'env_vars': {'PYTHONPATH': os.pathsep.join(paths)}},
            )
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            why = printable(one_line(error)).rstrip('.')
            raise ValueError(
                f'--ray={printable(address)}: there is no Ray cluster to connect to ({why}): start '
                'one with `ray start --head`, or name its address: --ray=HOST:6379'
            ) from None
        self._ray = ray

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def room_for(self, cpus: int = 0) -> Room:
        """`room_for` of the nodes that are alive."""
        return room_for([n['Resources'] for n in self._ray.nodes() if n['Alive']], cpus)

    def run(
        self, function: str, parts: Sequence[Any], options: dict[str, Any]
    ) -> Iterator[list[tuple[int, Any]]]:
        """Runs `function(part)` for every part, in tasks.

        Args:
          function: 'fsar_jax.build:build', found again by this name on the node.
          parts: what can be pickled.
          options: of a `Room`.

        Yields:
          Every LOOK_SECONDS, and at the end: [(number of a part, what it returned)] of those that
          have ended since.

        Raises:
          ValueError: a part failed, or has lost its worker LOST times; one line.
        """
        task = self._ray.remote(max_retries=LOST, **options)(call)
        waiting = {
            task.remote(function, part, os.getcwd()): number for number, part in enumerate(parts)
        }
        while waiting:
            ready, _ = self._ray.wait(list(waiting), num_returns=1, timeout=LOOK_SECONDS)
            ended = []
            for reference in ready:
                number = waiting.pop(reference)
                name = f'part {number + 1} of {len(parts)}'
                try:
                    found = self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as error:
                    if not isinstance(error.cause, ImportError):
                        raise  # a bug, to be seen as one
                    raise ValueError(
                        f'a node of the Ray cluster cannot import fsar_jax '
                        f'({printable(one_line(error.cause))}): install it on every node'
                    ) from None
                except self._ray.exceptions.RayError as error:
                    raise ValueError(
                        f'{name} was lost with its worker {LOST + 1} times '
                        f'({printable(one_line(error))}): it may need more memory than a node has; '
                        'what was finished is kept, the same command goes on from there'
                    ) from None
                if isinstance(found, Failure):
                    raise ValueError(found.line)
                ended.append((number, found))
            yield ended


def call(function: str, part: Any, folder: str) -> Any:
    """On a node: what the function returns for a part, called in this folder."""
    module, _, name = function.partition(':')
    if not os.path.isdir(folder):
        return Failure(
            f'{printable(folder, 1000)} is not on every node of the Ray cluster: give the command '
            'in a folder that all nodes share'
        )
    try:
        with contextlib.chdir(folder):
            return getattr(importlib.import_module(module), name)(part)
    except (ValueError, OSError, MemoryError) as error:
        return Failure(one_line(error))
    except SystemExit as error:
        return Failure(str(error.code).removeprefix('error: '))
