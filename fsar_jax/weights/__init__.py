"""Published PyTorch weights → Flax variables, without torch and without running a pickle's code.

`load`, `load_backbone` and `load_scan_network` start from a file, `from_torch`, `backbone_from_torch` and
`scan_network_from_torch` from a state dict in memory, `read_torch` only reads. published.py holds the tables of
names, checkpoint_file.py the file formats.
"""

from typing import Any

from fsar_jax.weights.checkpoint_file import pick_state_dict, read_torch
from fsar_jax.weights.published import backbone_from_torch, from_torch, sampler_from_torch, scan_network_from_torch


def load(path, model) -> dict[str, Any]:
    """Variables of the learner of `model` (config.model) from a checkpoint of the published STRM, TRX, TRM, OTAM, TA2N, HyRSM or MASTAF.

    Args:
      path: .pth (zip or legacy) or .safetensors; the state dict may lie under model_state_dict, model_state or
        state_dict.
      model: config.model.

    Returns:
      {'params': …, 'batch_stats': …}, as `from_torch`.

    Raises:
      FileNotFoundError, ValueError: one line that names the file; or that no published file has the sampler of the model (VIM).
    """
    if model.sampler.name == 'task_adaptive':
        raise ValueError(f"{path}: no published checkpoint has the learned sampler of config.model.sampler.name='task_adaptive' beside its "
                         "method's own weights: set --config.model.sampler.name=uniform, or motion_guided, which has none")
    return _naming(path, from_torch, model)


def load_backbone(path, config) -> dict[str, Any]:
    """Variables of the backbone of `config` (config.model.backbone), from a file with torchvision's names.

    Files and errors as in `load`; what is returned as in `backbone_from_torch`.
    """
    return _naming(path, backbone_from_torch, config)


def load_scan_network(path, name: str) -> dict[str, Any]:
    """Variables of the scan network `name` (config.model.sampler.scan_network), from a file with torchvision's names.

    Files and errors as in `load`; what is returned as in `scan_network_from_torch`.
    """
    return _naming(path, scan_network_from_torch, name)


def _naming(path, convert, config):
    state_dict = pick_state_dict(read_torch(path), path)
    try:
        return convert(state_dict, config)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
