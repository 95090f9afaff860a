"""Parts of a model that start from a file or from another run."""

import functools

import jax

from fsar_jax import weights
from fsar_jax.config import flatten
from fsar_jax.files import local_path
from fsar_jax.mesh import replicate
from fsar_jax.messages import one_line, printable
from fsar_jax.training.workdir import best_of_run


def with_pretrained_weights(state, config, mesh):
    """The state with parameters and statistics of a backbone, and of a sampler's scan network,
    where the config names a start: a file with torchvision's names (ImageNet), or the workdir of an
    earlier run, of which the best checkpoint counts."""
    backbone, sampler = config.model.backbone, config.model.sampler
    starts = (
        (
            ('backbone',),
            'model.backbone.weights',
            backbone.weights,
            weights.load_backbone,
            backbone,
        ),
        (
            ('sampler', 'scan_network'),
            'model.sampler.scan_weights',
            sampler.scan_weights,
            weights.load_scan_network,
            sampler.scan_network,
        ),
    )
    params, batch_stats = state.params, state.batch_stats
    for stage, key, path, read, kind in starts:
        if path and any(name.startswith('.'.join(stage) + '.') for name in flatten(params)):
            loaded = replicate(mesh, start_of(stage, key, path, params, mesh) or read(path, kind))
            params, batch_stats = (
                _placed(tree, stage, loaded[name])
                for tree, name in ((params, 'params'), (batch_stats, 'batch_stats'))
            )
    return state.replace(params=params, batch_stats=batch_stats)


def _placed(tree, stage, value):
    """The nested dict with `value` at the keys `stage`."""
    return tree | {stage[0]: _placed(tree.get(stage[0], {}), stage[1:], value)} if stage else value


def start_of(stage, key, path, params, mesh):
    """{'params', 'batch_stats'} of one stage ('sampler', 'scan_network') of the run in the workdir
    `path`; None where that is a file."""
    path = local_path(path, f'config.{key}')
    if not path.is_dir():
        return None
    try:
        selected = best_of_run(path, mesh)
    except (OSError, ValueError) as error:
        raise type(error)(
            f'config.{key}={printable(path, 1000)} is the workdir of a run that cannot be read: '
            f'{one_line(error)}'
        ) from error
    if selected.damaged and jax.process_index() == 0:
        print(f'note: config.{key} starts from {selected.how}', flush=True)
    variables = selected.state.variables
    inside = '.'.join(stage) + '.'
    there, here = (
        {name: (x.shape, x.dtype) for name, x in flatten(tree).items() if name.startswith(inside)}
        for tree in (variables['params'], params)
    )
    if there != here:
        raise ValueError(
            f'config.{key}={printable(path, 1000)} holds a run whose {" ".join(stage)} is another '
            'one: name a run with the same, or a file'
        )
    return {
        kind: functools.reduce(lambda tree, name: tree[name], stage, variables[kind])
        for kind in ('params', 'batch_stats')
    }
