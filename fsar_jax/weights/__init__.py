"""Published PyTorch weights → Flax variables, without torch and without running a pickle's code.

`load`, `load_backbone` and `load_scan_network` start from a file, `from_torch`,
`backbone_from_torch` and `scan_network_from_torch` from a state dict in memory, `read_torch` only
reads. checkpoint_file.py holds the file formats, pickle_file.py the pickles in them, state_dicts.py
what wraps a state dict, published.py the tables of names.
"""

from typing import Any

from fsar_jax.messages import printable
from fsar_jax.weights.checkpoint_file import read_torch
from fsar_jax.weights.published import (
    backbone_from,
    backbone_from_torch,
    from_torch,
    learner_from,
    sampler_from_torch,
    scan_network_from,
    scan_network_from_torch,
)
from fsar_jax.weights.state_dicts import pick_state_dict, state_dicts


def load(path, model) -> dict[str, Any]:
    """Variables of the learner of `model` (config.model) from a checkpoint of the published STRM,
    TRX, TRM, OTAM, TA2N, HyRSM or MASTAF.

    Args:
      path: .pth (zip or legacy) or .safetensors. The state dict may lie under any key, beside
        anything, and all its names may begin with anything ('module.', 'model.'): what fits counts
        (state_dicts.py), and the log says what was done.
      model: config.model.

    Returns:
      {'params': …, 'batch_stats': …}, as `from_torch`.

    Raises:
      OSError, ValueError: one line that names the file; or that no published file has the sampler
        of the model (VIM).
    """
    if model.sampler.name == 'task_adaptive':
        raise ValueError(
            f"{printable(path, 1000)}: no published checkpoint has the learned sampler of "
            "config.model.sampler.name='task_adaptive' beside its method's own weights: set "
            "--config.model.sampler.name=uniform, or motion_guided, which has none"
        )
    return _naming(path, learner_from, model)


def load_backbone(path, config) -> dict[str, Any]:
    """Variables of the backbone of `config` (config.model.backbone), from a file with torchvision's
    names.

    Files and errors as in `load`; what is returned as in `backbone_from_torch`.
    """
    return _naming(path, backbone_from, config)


def load_scan_network(path, name: str) -> dict[str, Any]:
    """Variables of the scan network `name` (config.model.sampler.scan_network), from a file with
    torchvision's names.

    Files and errors as in `load`; what is returned as in `scan_network_from_torch`.
    """
    return _naming(path, scan_network_from, name)


def _naming(path, convert, config):
    candidates = state_dicts(read_torch(path), path)
    try:
        return convert(candidates, config)
    except ValueError as error:
        raise ValueError(f'{printable(path, 1000)}: {error}') from None
