"""From a published state dict to the variables of a learner, a backbone, a sampler, a scan network.

The names are in one table per method (trx.py, strm.py, otam.py, ta2n.py, hyrsm.py, mastaf.py,
vim.py); those of a backbone are torchvision's, or in a file of their own (efficientnet_lite.py,
scan_networks.py).
What must be there, and in what shape, is read off our own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from fsar_jax import backbones
from fsar_jax.backbones.efficientnet_lite import EfficientNetLite, ScanningEfficientNetLite
from fsar_jax.backbones.mobilenet_v1 import MobileNetV1
from fsar_jax.backbones.mvit import MViT
from fsar_jax.backbones.resnet_small import ResNetSmall
from fsar_jax.backbones.scan import create_scan_network
from fsar_jax.backbones.shufflenet_v1 import ShuffleNetV1
from fsar_jax.backbones.vit import ViT
from fsar_jax.config import check_values
from fsar_jax.learner import create_learner
from fsar_jax.matchers.action_coordination import ActionCoordination
from fsar_jax.matchers.attention_fusion import AttentionFusion
from fsar_jax.matchers.cross_transformer import CrossTransformer
from fsar_jax.matchers.matcher import Matcher
from fsar_jax.matchers.otam import OrderedAlignment
from fsar_jax.matchers.prototypes import Prototypes
from fsar_jax.matchers.set_matching import SetMatching
from fsar_jax.messages import listed
from fsar_jax.stage import Stage
from fsar_jax.stages import build_stages, choice
from fsar_jax.torch_names import TorchNames
from fsar_jax.weights import (
    efficientnet_lite,
    hyrsm,
    mastaf,
    mvit,
    otam,
    scan_networks,
    strm,
    ta2n,
    trx,
    vim,
    vit,
)
from fsar_jax.weights.convert import check_names, convert, name_matches
from fsar_jax.weights.entries import Entry, Shape, entries_of, network_entries, torchvision_layer
from fsar_jax.weights.parameters import head_entries, shapes_of
from fsar_jax.weights.state_dicts import Names, StateDicts, find_names

# Matcher → the names of the code that published it. A matcher's own `published` counts as well.
METHODS: dict[type[Matcher], TorchNames] = {
    Prototypes: trx.PROTONET,
    CrossTransformer: trx.CROSS_TRANSFORMER,
    OrderedAlignment: otam.OTAM,
    ActionCoordination: ta2n.ACTION_COORDINATION,
    SetMatching: hyrsm.SET_MATCHING,
    AttentionFusion: mastaf.ATTENTION_FUSION,
}
# The place of a backbone's parts in a torch.nn.Sequential; relu and max pool are 2 and 3.
SEQUENCE = {'conv1': '0', 'bn1': '1', 'layer1': '4', 'layer2': '5', 'layer3': '6', 'layer4': '7'}
COUNTER = r'.*\.num_batches_tracked'  # in every file, and of no use here
# of ResNets and ShuffleNetV2, of MobileNets and ShuffleNetV1, of EfficientNet-Lite
CLASSIFIER = rf'(fc|classifier(\.\d+)?)\.(weight|bias)|{efficientnet_lite.CLASSIFIER}'

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
    check_values(model, 'model')
    names = _names_of(model)
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


def _names_of(model: ConfigDict) -> TorchNames:
    matcher = build_stages(model)['matcher']
    names = METHODS.get(type(matcher), matcher.published)
    if names is None:
        raise ValueError(f'no published state dict is known for {choice(model, "matcher")}')
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
    if build_stages(model)['backbone'].takes_maps:
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
    learner = create_learner(model, backbone=ResNetSmall())  # any that takes frames: it is not run
    learner.sampler.check_published()
    clip = (learner.sampler.frames_read(1), 64, 64, 3)
    shapes, _ = shapes_of(learner, (2, 1, *clip), (1, *clip), method='sample')
    scan = network_entries(
        {path.replace(vim.SCAN, '/'): x for path, x in shapes.items() if vim.SCAN in path},
        torchvision_layer,
        'backbone.',
        vim.SCAN.removeprefix('/'),
    )
    chosen = entries_of(vim.SAMPLER, shapes)
    entries = scan | chosen
    rest = vim.UNUSED if chosen else vim.UNUSED_CHOICE
    if chosen and not any('generator' in entry for entry in chosen):
        rest = rf'{rest}|{vim.UNUSED_GENERATOR}'
    unused = rf'{COUNTER}|{rest}|backbone\.({CLASSIFIER})'
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
    backbone = backbones.create(config)
    if backbone.takes_maps:
        raise ValueError(f"the backbone '{config.name}' has no weights to load")
    return network_from(candidates, backbone, 'backbone')


def classifier_from(candidates: StateDicts, config: ConfigDict) -> dict[str, jax.Array]:
    """The classifier beside the backbone in the one of several state dicts whose names fit:
    {'kernel': [C, classes], 'bias': [classes]}."""
    table, channels = backbone_table(config)
    unused = f'{COUNTER}|{CLASSIFIER}'
    found = find_names(candidates, _expected(table, unused))
    check_names(found.arrays, table, unused, found.place)
    names = sorted(name for name in found.arrays if name_matches(CLASSIFIER, name))
    shapes = [np.shape(found.arrays[name]) for name in names]
    if len(names) != 2 or len(shapes[1]) != 2 or shapes[1] != (*shapes[0], channels):
        raise ValueError(
            f'no classifier of {channels} features beside the backbone'
            f'{found.place}: its weights are {listed(names) or "not there"}'
        )
    bias, weight = names
    entries = {
        bias: Entry('params/bias', 'copy', shapes[0]),
        weight: Entry('params/kernel', 'linear', shapes[1]),
    }
    return convert({name: found.arrays[name] for name in names}, entries, '')['params']


def scan_network_from_torch(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Variables of the scan network alone, from torchvision's state dict of ShuffleNetV2 or
    MobileNetV2, megvii's of ShuffleNetV1, or timm's of MobileNetV1.

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


def network_from(candidates: StateDicts, network: Stage, what: str) -> dict[str, Any]:
    """Variables of a backbone or scan network from the one of several state dicts with its
    published names that fits, without the ImageNet classifier; `what` is its name in the log."""
    shapes, _ = shapes_of(network, _frames(network))
    if isinstance(network, ViT):
        return _vit_from(candidates, network, shapes, what)
    if isinstance(network, MViT):
        entries, classifier = entries_of(mvit.table(sum(network.blocks)), shapes), mvit.CLASSIFIER
    else:
        entries, classifier = network_entries(shapes, _layer_name(network)), CLASSIFIER
    unused = f'{COUNTER}|{classifier}'
    found = find_names(candidates, _expected(entries, unused))
    notes = [*found.notes, *_left_out(found.arrays, classifier, what)]
    return convert(found.arrays, entries, unused, notes, found.place)


def _vit_from(
    candidates: StateDicts, network: ViT, shapes: Mapping[str, Shape], what: str
) -> dict[str, Any]:
    """Variables of a ViT from the state dicts of any of its sources (vit.py)."""
    source, candidates = vit.source_of(candidates)
    entries = entries_of(source.table, shapes)
    found = find_names(candidates, _expected(entries, source.classifier))
    vit.check_size(found.arrays, source, network)
    arrays, notes = vit.with_our_positions(found.arrays, source, network)
    notes = [*found.notes, *notes, *_left_out(arrays, source.classifier, what)]
    notes += vit.notes_on_scaling(source, network, what)
    return convert(arrays, entries, source.classifier, notes, found.place)


def _left_out(arrays: Mapping[str, Any], classifier: str, what: str) -> list[str]:
    """A line for the log about the classifier in the file; none where it has none."""
    names = [name for name in arrays if name_matches(classifier, name)]
    return [f'left out the classifier of the {what}: {listed(names)}'] if names else []


def scan_network_table(network: Stage) -> dict[str, Entry]:
    """{published name: entry} of a scan network."""
    return network_entries(shapes_of(network, _frames(network))[0], _layer_name(network))


def backbone_table(config: ConfigDict) -> tuple[dict[str, Entry], int]:
    """{published name: entry} of a backbone, and its output channels.

    config: config.model.backbone.
    """
    module = backbones.create(config)
    if isinstance(module, (ViT, MViT)):
        raise ValueError(
            f"no published checkpoint of a method has the backbone '{config.name}': start the "
            'backbone alone from its own public weights'
        )
    shapes, maps = shapes_of(module, _frames(module))
    return network_entries(shapes, _layer_name(module)), maps.shape[-1]


def _layer_name(network: Stage) -> Callable[[str], str]:
    """Our name of a layer of this network → the published one."""
    own: dict[type, Callable[[str], str]] = {
        EfficientNetLite: efficientnet_lite.published_layer,
        ScanningEfficientNetLite: efficientnet_lite.published_layer,
        ShuffleNetV1: scan_networks.shufflenet_v1_layer,
        MobileNetV1: scan_networks.mobilenet_v1_layer,
    }
    return own.get(type(network), torchvision_layer)


def _frames(network: Stage) -> tuple[int, ...]:
    """Shape of frames, or of a clip, that the network takes."""
    side = network.patch if isinstance(network, ViT) else 64  # it takes multiples of its patch
    return (1, 16, 64, 64, 3) if network.takes_clips else (1, side, side, 3)
