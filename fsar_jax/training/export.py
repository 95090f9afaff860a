"""Exports a trained model to NAME.safetensors, which `--weights` reads, with NAME.json beside it.

The arrays keep their names ('params/backbone/conv1/kernel'), shapes and types, so that any library
that reads safetensors can load them. The JSON tells a program in another framework all it needs:
the whole config, how frames are chosen, resized, cropped and scaled, the layout of every kind of
array, and where the weights come from. The header of the .safetensors file has the same text, so
this file alone is enough to evaluate.
"""

import contextlib
import json
import os
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
from safetensors.numpy import save

from fsar_jax.checksums import sha256_of
from fsar_jax.config import default_config, flatten, with_newer_settings
from fsar_jax.data.dataset import content_hash, described, version_directory
from fsar_jax.data.features import Header, read_header
from fsar_jax.data.loader import usable
from fsar_jax.evaluation.results import FILE, versions
from fsar_jax.files import check_output, read_json, write_whole
from fsar_jax.learner import create_learner
from fsar_jax.messages import differences, listed, one_line, printable
from fsar_jax.named_arrays import by_name, params_hash
from fsar_jax.stages import build_stages, frames_read
from fsar_jax.training.inputs import open_videos
from fsar_jax.training.run_settings import must_agree, run_config
from fsar_jax.training.selected import best_of_run
from fsar_jax.training.state import train_state_shapes
from fsar_jax.training.workdir import (
    METHOD,
    TESTED_ON,
    TRAINED_ON,
    config_name,
    read_method,
    read_note,
)
from fsar_jax.weights.checkpoint_file import read_torch
from fsar_jax.weights.safetensors_file import read_metadata

FORMAT = 'fsar_jax'  # the key of the metadata in the header
SUFFIX = '.safetensors'
SAMPLING = {  # config.data.sampling: which of the n frames of a clip are used outside training
    'trx': 'L positions evenly spaced from 1 to n - 2, truncated to integers; from 0 to n - 1 '
    'where n = L or that span is shorter than L',
    'uniform': 'L positions evenly spaced from 0 to n - 1, truncated to integers',
    'segment': 'the centre frame of each of L equal segments',
}
LAYOUTS = {
    'frames': '[..., frame, height, width, RGB]; support has [way, shot] before it, query [query]',
    'kernel of 2 axes': '[input, output]: y = x @ kernel + bias',
    'kernel of 3 axes': '[time, input, output] (WIO)',
    'kernel of 4 axes': '[height, width, input, output] (HWIO); cross-correlation, as in PyTorch, '
    'whose layout OIHW is the transpose (3, 2, 0, 1)',
    'kernel of 5 axes': '[time, height, width, input, output] (DHWIO)',
    'batch norm': 'params/…/scale and bias, batch_stats/…/mean and var: '
    'y = (x - mean) / sqrt(var + e) * scale + bias, e = 1e-5, in an EfficientNet-Lite 1e-3',
}


def export_run(
    workdir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    overwrite: bool,
    mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
    """Writes the parameters and batch statistics of the best checkpoint of the run in `workdir`.

    Args:
      out: path of the .safetensors file; the .json file has the same name otherwise.
      overwrite: replace files that are there.
      mesh: as from `fsar_jax.mesh.episode_mesh`.

    Returns:
      The content of the JSON file.

    Raises:
      FileNotFoundError: `workdir` holds no checkpoint.
      OSError, ValueError: one line about the run, or about a file that cannot be written.
    """
    workdir, out = pathlib.Path(workdir), pathlib.Path(out)
    if out.suffix != SUFFIX:
        raise ValueError(f'--out={printable(out, 1000)} does not end in {SUFFIX}')
    for path in (out, out.with_suffix('.json')):
        if path.is_dir():
            raise ValueError(f'{printable(path, 1000)} is a folder: name a file with --out')
        if os.path.lexists(path) and not overwrite:
            raise ValueError(
                f'{printable(path, 1000)} exists: name another file with --out, or give --overwrite'
            )
        if workdir.is_dir():  # else there is no such run, which is said below
            check_output(path, '--out')
    config, selected = run_config(workdir), best_of_run(workdir, mesh)
    arrays = {
        # not np.ascontiguousarray, which turns a scalar into an array of one axis
        name: np.asarray(leaf, order='C')
        for name, leaf in by_name(selected.state.variables).items()
    }
    trained_on = read_note(workdir / TRAINED_ON)
    about = {
        'format': FORMAT,
        'method': read_method(workdir) if (workdir / METHOD).exists() else None,
        'selected_on': selected.how,
        'step': selected.step,
        'val_accuracy': selected.metrics.get('val_accuracy'),
        'damaged_checkpoints': selected.damaged,
        'params_hash': params_hash(selected.state.params),
        'config': json.loads(config.to_json()),
        'records': records_of_run(workdir, config),
        'input': input_of(config),
        'layouts': LAYOUTS,
        'arrays': {
            name: {'shape': array.shape, 'dtype': array.dtype.name}
            for name, array in arrays.items()
        },
        'training_classes': training_classes(config, trained_on),
        'trained_on': trained_on,
        'tested_on': read_note(workdir / TESTED_ON),
        'versions': versions(),
    }
    header = json.dumps({key: value for key, value in about.items() if key != 'arrays'})
    # One key, because safetensors writes several in no fixed order.
    write_whole(out, save(arrays, {FORMAT: header}))
    about |= {'file': out.name, 'sha256': sha256_of(out)}
    write_whole(out.with_suffix('.json'), json.dumps(about, indent=2, ensure_ascii=False) + '\n')
    return about


def input_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """From the frames of a clip to what the model takes, outside training."""
    data, size = config.data, config.episode.image_size
    backbone = build_stages(config.model)['backbone']
    if backbone.takes_maps:
        return {'feature_maps': '[..., frame, height, width, channel], floats as they are'}
    return {
        'frames': frames_read(config),
        'frames_after_the_sampler': config.episode.frames,
        'sampling': {'rule': data.sampling, 'frames': SAMPLING[data.sampling]},
        'clips_of_fewer_frames': {
            'rule': data.short_videos,
            'frames': 'frame floor(i * n / L) for i = 0 … L - 1; with the rule "drop" such clips '
            'are left out',
        },
        'resize': {
            'short_side': data.resize,
            'filter': 'bilinear, averaging over the covered area where it shrinks (PIL BILINEAR)',
            'long_side': 'truncated to an integer',
        },
        'crop': {'height': size, 'width': size, 'where': 'centre; half pixels round to even'},
        'pixels': 'RGB, 0 … 255, divided by 255',
        'scaling': {'rule': '(x / 255 - mean) / std, per channel', **backbone.input_scaling()},
        'compute_dtype': config.model.dtype,
    }


def records_of_run(
    workdir: str | os.PathLike[str], config: ml_collections.ConfigDict
) -> dict[str, Any] | None:
    """How the clips were stored on which a run was trained: short side, frames kept, JPEG quality,
    … trained_on.json says it, but not that of earlier releases: then see `records_there`, or else
    results.json. None where nothing says it."""
    for note in read_note(pathlib.Path(workdir) / TRAINED_ON).values():
        if 'records' in note:
            return note['records']
    tested = pathlib.Path(workdir) / FILE
    noted = read_json(tested, 'remove it').get('records') if tested.is_file() else None
    return records_there(config) or noted


def features_of(config: ml_collections.ConfigDict) -> Header | None:
    """The description of the features of a run; None where they are gone, or it is on frames."""
    with contextlib.suppress(OSError, ValueError):
        return read_header(pathlib.Path(config.data.features)) if config.data.features else None
    return None


def records_there(config: ml_collections.ConfigDict) -> dict[str, Any] | None:
    """The same of the features or the dataset that lie where the settings say now; None where they
    do not."""
    if (header := features_of(config)) is not None:
        return header.settings
    with contextlib.suppress(OSError, ValueError):
        name = config.data.dataset
        if (directory := version_directory(name, config.data.dir)) is not None:
            return described(directory, name)[1]['settings']
    return None


def training_classes(config: ml_collections.ConfigDict, trained_on: dict) -> list[str] | None:
    """Names of the training classes, in the order of a classifier's outputs; None where the dataset
    that the run was trained on is not there any more."""
    with contextlib.suppress(OSError, ValueError):
        dataset = usable(open_videos(config, 'train'), config)
        if content_hash(dataset) == trained_on.get('train', {}).get('content'):
            return [dataset.class_names[label] for label in np.unique(dataset.labels)]
    return None


def read_about(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What the header of an exported file says; None of any other file.

    Raises:
      ValueError: one line about a header that is damaged.
    """
    text = read_metadata(path).get(FORMAT)
    if text is None:
        return None
    try:
        about = json.loads(text)
        for key, kind in (('config', dict), ('selected_on', str), ('trained_on', dict)):
            if not isinstance(about[key], kind):
                raise ValueError(f"'{key}' is not a {kind.__name__}")
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f'{printable(path, 1000)}: its header is not as an export writes it '
            f'({printable(one_line(error))}): export the run again'
        ) from None
    return about


def exported_config(
    path: str | os.PathLike[str],
    about: dict,
    overrides: dict[str, Any],
    method: str,
    preset: str = '',
) -> ml_collections.ConfigDict:
    """The settings with which to evaluate an exported file: those of its run, with `overrides`.

    Args:
      path: of the file, for errors; about: as from `read_about`.
      overrides: {'episode.shot': 2}, the values of the flags.
      method, preset: which config file, and which preset of it, the command line names.

    Raises:
      ValueError: the file is of another method or preset, or an override needs another model.
    """
    shown, wanted = printable(path, 1000), config_name(method, preset)
    if about.get('method') not in (None, wanted):
        raise ValueError(
            f"{shown} holds weights of {printable(about['method'])}, not of {wanted}: evaluate it "
            'with the --config of its training'
        )
    config = default_config().unlock()
    try:
        config.update_from_flattened_dict(with_newer_settings(flatten(about['config'])))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{shown} is of a release with other settings ({printable(one_line(error))}): '
            'export the run again with this one'
        ) from None
    before = flatten(json.loads(config.to_json()))
    config.update_from_flattened_dict(overrides)
    now = flatten(json.loads(config.to_json()))
    of_model = lambda settings: {key: settings[key] for key in settings if must_agree(key)}
    changed = differences(of_model(before), of_model(now))
    if changed:
        raise ValueError(
            f'{shown} holds a model with other settings ({"; ".join(changed)}): leave these flags '
            'out'
        )
    return config.lock()


def exported_variables(
    path: str | os.PathLike[str], config: ml_collections.ConfigDict
) -> dict[str, Any]:
    """{'params': …, 'batch_stats': …} of an exported file, for the learner of `config`.

    Raises:
      OSError, ValueError: one line: a damaged file, or arrays that are not those of the model.
    """
    arrays = read_torch(path)
    like = train_state_shapes(config, create_learner(config.model))
    wanted = by_name(like.variables)
    describe = lambda x: (tuple(x.shape), np.dtype(x.dtype).name)
    wrong = [f'{name} is missing' for name in wanted.keys() - arrays.keys()]
    wrong += [f'{name} is unknown' for name in arrays.keys() - wanted.keys()]
    wrong += [
        f'{name} is {arrays[name].dtype.name} {list(arrays[name].shape)}, not '
        f'{wanted[name].dtype.name} {list(wanted[name].shape)}'
        for name in wanted.keys() & arrays.keys()
        if not isinstance(arrays[name], np.ndarray)
        or describe(arrays[name]) != describe(wanted[name])
    ]
    if wrong:
        raise ValueError(
            f'{printable(path, 1000)} is not of the model that its settings describe: '
            f'{listed(sorted(wrong))}: export the run again'
        )
    return jax.tree.unflatten(jax.tree.structure(like.variables), [arrays[name] for name in wanted])
