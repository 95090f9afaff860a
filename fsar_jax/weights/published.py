"""From a published state dict to the variables of a learner, a backbone, a sampler, a scan network.

The names are in one table per method (trx.py, strm.py, otam.py, ta2n.py, hyrsm.py, mastaf.py,
vim.py); those of a backbone are torchvision's, or in a file of their own (efficientnet_lite.py).
What must be there, and in what shape, is read off our own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from ml_collections import ConfigDict

from fsar_jax import backbones, matchers
from fsar_jax.backbones.efficientnet_lite import EfficientNetLite
from fsar_jax.backbones.scan import create_scan_network
from fsar_jax.learner import create_learner
from fsar_jax.messages import listed, printable
from fsar_jax.samplers.task_adaptive import TaskAdaptiveSampler
from fsar_jax.torch_names import TorchNames
from fsar_jax.weights import efficientnet_lite, hyrsm, mastaf, otam, strm, ta2n, trx, vim
from fsar_jax.weights.convert import convert, name_matches
from fsar_jax.weights.entries import Entry, entries_of, network_entries, torchvision_layer
from fsar_jax.weights.parameters import head_entries, shapes_of
from fsar_jax.weights.state_dicts import Names, StateDicts, find_names

# Matcher → the names of the code that published it. A matcher's own `published` counts as well.
METHODS = {
    'prototypes': trx.PROTONET,
    'cross_transformer': trx.CROSS_TRANSFORMER,
    'otam': otam.OTAM,
    'action_coordination': ta2n.ACTION_COORDINATION,
    'set_matching': hyrsm.SET_MATCHING,
    'attention_fusion': mastaf.ATTENTION_FUSION,
}
# The place of a backbone's parts in a torch.nn.Sequential; relu and max pool are 2 and 3.
SEQUENCE = {'conv1': '0', 'bn1': '1', 'layer1': '4', 'layer2': '5', 'layer3': '6', 'layer4': '7'}
COUNTER = r'.*\.num_batches_tracked'  # in every file, and of no use here
# of ResNets and ShuffleNetV2, of MobileNetV2, of EfficientNet-Lite
CLASSIFIER = rf'(fc|classifier\.\d+)\.(weight|bias)|{efficientnet_lite.CLASSIFIER}'

PROJECTION_SEED = 0


def from_torch(state_dict: Mapping[str, Any], model: ConfigDict) -> dict[str, Any]:
    """Variables of the learner of `model` from a state dict of the published STRM, TRX, Baseline
    TRM, OTAM, TA2N, HyRSM or MASTAF.

    The names may carry the `module.` of multi-GPU training (row S22 of docs/paper_vs_code.md), or
    anything else before all of them (state_dicts.py). STRM's released dicts lack the query-class
    projection, because its code never saves it (S11): where the model has one, it is drawn from a
    fixed seed in torch's range, and a warning says so.

    Args:
      state_dict: {published name: array}.
      model: config.model. With backbone 'features' there are no backbone entries, and the feature
        dimension follows from the arrays, as the number of frames always does. All other sizes are
        the config's.

    Returns:
      {'params': …, 'batch_stats': …}, float32, for `learner.apply`; no 'batch_stats' where there
      are none. A sampler with weights of its own is not included (`sampler_from_torch`).

    Raises:
      ValueError: unknown, missing or mis-shaped entries, or values that no weight has, all in one
        line; or a model that nobody has published, such as STRM with variant='paper', whose
        enrichments have no place for the published gate and biases.
    """
    return learner_from({(): state_dict}, model)


def learner_from(candidates: StateDicts, model: ConfigDict) -> dict[str, Any]:
    """`from_torch` of the one of several state dicts whose names fit."""
    names = _names_of(model.matcher.name)
    backbone, channels = _backbone_entries(model, names)
    tables = (*strm.ENRICHMENTS, names.table, ta2n.TEMPORAL_TRANSFORM, strm.QUERY_SIMILARITY)
    head = head_entries(model, tables, channels)
    entries = backbone | head({})
    _check_variant(model, entries)
    drawn = [name for name in entries if name_matches(strm.UNUSED_PROJECTION, name)]
    unused = [COUNTER, names.unused, strm.UNUSED, '' if drawn else strm.UNUSED_PROJECTION]
    pattern = '|'.join(filter(None, unused))
    found = find_names(candidates, _expected(entries, pattern, drawn))
    arrays, notes = found.arrays, found.notes
    entries = backbone | head(arrays)
    if not any(name in arrays for name in drawn):
        projection = _draw_projection({name: entries[name] for name in drawn})
        arrays = arrays | projection
        if projection:
            notes = [
                *notes,
                'the state dict has no query-class projection, which the published STRM neither '
                f'trains nor saves: drawn from the fixed seed {PROJECTION_SEED} as torch starts a '
                'linear map, so that evaluation is deterministic',
            ]
    return convert(arrays, entries, pattern, notes, found.place)


def _names_of(matcher: str) -> TorchNames:
    names = METHODS.get(matcher) or getattr(matchers.MATCHERS.get(matcher), 'published', None)
    if names is None:
        raise ValueError(
            f"no published state dict is known for config.model.matcher.name='{printable(matcher)}'"
        )
    return names


def _check_variant(model: ConfigDict, entries: Mapping[str, Entry]) -> None:
    stages = {entry.path.split('/')[1] for entry in entries.values()}
    if model.variant != 'code' and stages.intersection(strm.CODE_ONLY):
        raise ValueError(
            "published STRM weights belong to config.model.variant='code': the 'paper' equations "
            "have no place for its gate and biases"
        )


def _expected(entries: Mapping[str, Entry], unused: str, drawn: Collection[str] = ()) -> Names:
    """The names that a state dict must have, and those that it may have."""
    return Names(
        required=[name for name in entries if name not in drawn],
        known=lambda name: name in entries or name_matches(unused, name),
    )


def _backbone_entries(model: ConfigDict, names: TorchNames) -> tuple[dict[str, Entry], int | None]:
    """Entries of the backbone under the names of the method's published code, and its output
    channels; {} and None without one."""
    if model.backbone.name == 'features':
        return {}, None
    table, channels = backbone_table(model.backbone)
    entries = {}
    for name, entry in table.items():
        part, _, rest = name.partition('.')
        collection, _, path = entry.path.partition('/')
        place = SEQUENCE.get(part, part) if names.sequence else part
        entries[f'{names.backbone}.{place}.{rest}'] = entry._replace(
            path=f'{collection}/backbone/{path}'
        )
    return entries, channels


def _draw_projection(entries: Mapping[str, Entry]) -> dict[str, np.ndarray]:
    """Weights and biases uniform in ±1/√inputs, as torch.nn.Linear starts them; {} where a size is
    unknown."""
    generator = np.random.Generator(np.random.Philox(PROJECTION_SEED))
    shapes = {name: [size for size in entry.shape if size] for name, entry in entries.items()}
    if any(len(shapes[name]) < len(entry.shape) for name, entry in entries.items()):
        return {}
    arrays = {}
    for name, shape in shapes.items():
        inputs = shapes[name.rpartition('.')[0] + '.weight'][1]
        drawn = (2 * generator.random(shape) - 1) / np.sqrt(inputs)
        arrays[name] = drawn.astype(np.float32)
    return arrays


def sampler_from_torch(state_dict: Mapping[str, Any], model: ConfigDict) -> dict[str, Any]:
    """Variables of the sampler of `model` (config.model) from a state dict of VIM's released
    sampler, its scan network included.

    Returns:
      {'params': {'sampler': …}, 'batch_stats': {'sampler': …}}, to be put into those of the
      learner.

    Raises:
      ValueError: as `from_torch`; or sampler.variant='paper', whose generator the released code
        does not have.
    """
    model = model.copy_and_resolve_references().unlock()
    model.backbone.name = 'resnet_small'  # any that takes frames: it is not run
    learner = create_learner(model)
    sampler = learner.sampler
    if not isinstance(sampler, TaskAdaptiveSampler) or sampler.variant != 'code':
        raise ValueError(
            "the published sampler belongs to config.model.sampler.name='task_adaptive' with "
            "variant='code'"
        )
    clip = (sampler.frames, 64, 64, 3)
    shapes, _ = shapes_of(learner, (2, 1, *clip), (1, *clip), method='sample')
    scan = scan_network_table(sampler.scan_network, 'backbone.', 'sampler/scan_network/')
    choice = entries_of(vim.SAMPLER, shapes)
    entries = scan | choice
    unused = rf'{COUNTER}|{vim.UNUSED if choice else vim.UNUSED_CHOICE}|backbone\.({CLASSIFIER})'
    found = find_names({(): state_dict}, _expected(entries, unused))
    return convert(found.arrays, entries, unused, found.notes, found.place)


def backbone_from_torch(state_dict: Mapping[str, Any], config: ConfigDict) -> dict[str, Any]:
    """Variables of the backbone alone, from a state dict with torchvision's names, which timm's
    ResNets share, or those of efficientnet-lite-pytorch.

    Args:
      state_dict: {'conv1.weight': array, …}. The ImageNet classifier `fc` is left out, and the log
        says so.
      config: config.model.backbone.

    Returns:
      {'params': …, 'batch_stats': …}, float32, for `backbones.create(config).apply`; in the
      learner's variables they belong under 'backbone' of each collection.

    Raises:
      ValueError: unknown, missing or mis-shaped entries, all in one line.
    """
    return backbone_from({(): state_dict}, config)


def backbone_from(candidates: StateDicts, config: ConfigDict) -> dict[str, Any]:
    """`backbone_from_torch` of the one of several state dicts whose names fit."""
    if config.name == 'features':
        raise ValueError("config.model.backbone.name='features' has no weights to load")
    return network_from(candidates, backbones.create(config), 'backbone')


def scan_network_from_torch(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Variables of the scan network alone, from torchvision's state dict of ShuffleNetV2 or
    MobileNetV2.

    Args:
      state_dict: {'conv1.0.weight': array, …}. The ImageNet classifier, `fc` or `classifier`, is
        left out, and the log says so.
      name: config.model.sampler.scan_network.

    Returns:
      {'params': …, 'batch_stats': …}, float32, for `create_scan_network(name).apply`.

    Raises:
      ValueError: an unknown name; unknown, missing or mis-shaped entries, all in one line.
    """
    return scan_network_from({(): state_dict}, name)


def scan_network_from(candidates: StateDicts, name: str) -> dict[str, Any]:
    """`scan_network_from_torch` of the one of several state dicts whose names fit."""
    return network_from(candidates, create_scan_network(name), 'scan network')


def network_from(candidates: StateDicts, network: nn.Module, what: str) -> dict[str, Any]:
    """Variables of a backbone or scan network from the one of several state dicts with its
    published names that fits, without the ImageNet classifier; `what` is its name in the log."""
    shapes, _ = shapes_of(network, _frames(network))
    entries = network_entries(shapes, _layer_name(network))
    unused = f'{COUNTER}|{CLASSIFIER}'
    found = find_names(candidates, _expected(entries, unused))
    notes, left_out = found.notes, [x for x in found.arrays if name_matches(CLASSIFIER, x)]
    if left_out:
        notes = [*notes, f'left out the classifier of the {what}: {listed(left_out)}']
    return convert(found.arrays, entries, unused, notes, found.place)


def scan_network_table(network: nn.Module, published: str = '', ours: str = '') -> dict[str, Entry]:
    """{torchvision's name: entry} of a scan network; `published` and `ours` before names and paths,
    as in `torchvision_entries`."""
    shapes, _ = shapes_of(network, (1, 64, 64, 3))
    return network_entries(shapes, torchvision_layer, published, ours)


def backbone_table(config: ConfigDict) -> tuple[dict[str, Entry], int]:
    """{published name: entry} of a backbone, and its output channels.

    config: config.model.backbone.
    """
    module = backbones.create(config)
    shapes, maps = shapes_of(module, _frames(module))
    return network_entries(shapes, _layer_name(module)), maps.shape[-1]


def _layer_name(network: nn.Module) -> Callable[[str], str]:
    """Our name of a layer of this network → the published one."""
    lite = isinstance(network, EfficientNetLite)
    return efficientnet_lite.published_layer if lite else torchvision_layer


def _frames(network: nn.Module) -> tuple[int, ...]:
    """Shape of frames, or of a clip, that the network takes."""
    return (1, 16, 64, 64, 3) if getattr(network, 'takes_clips', False) else (1, 64, 64, 3)
