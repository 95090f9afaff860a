"""Names and shapes of the published state dicts, and where each entry goes in ours.

Every expected entry has one row: published name → (our path, named transform, published shape). The
rows of a backbone come from its own parameter tree, those of the heads from the tables below. What
is neither expected nor known to be unused is an error, and so is anything missing or of another
shape; one error lists all of them.
"""

import collections
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from fsar_jax import backbones
from fsar_jax.backbones.scan import create_scan_network
from fsar_jax.messages import listed, printable
from fsar_jax.weights.entries import TRANSFORMS, Entry, layer_norm, linear, torchvision_rows
from fsar_jax.weights.pickle_file import Opaque
from fsar_jax.weights.published_heads import (
    COUNTER,
    HEADS,
    head_dimension,
    temporal_transform_table,
)
from fsar_jax.weights.published_sampler import UNUSED as SAMPLER_UNUSED
from fsar_jax.weights.published_sampler import sampler_table
from fsar_jax.weights.state_dicts import MAX_NAME, Names, find_names

# Where a method's published code keeps the backbone: prefix, and whether as a sequence conv1, bn1,
# relu, max pool, layer1, ….
BACKBONE_PLACES = {
    'prototypes': ('resnet', True),
    'cross_transformer': ('resnet', True),
    'otam': ('backbone', True),
    'set_matching': ('backbone', True),
    'action_coordination': ('resnet', False),
    'attention_fusion': ('base', False),
}
SEQUENCE = {'conv1': '0', 'bn1': '1', 'layer1': '4', 'layer2': '5', 'layer3': '6', 'layer4': '7'}

# Linear maps of an enrichment: published name, our name, output and input size.
# D: features; D/2: half of them; N: tokens, which are the patches of a frame or the frames of a
# video.
ENRICHMENT_MAPS = {
    'self_attention': (
        ('key_proj', 'key', 'D', 'D'),
        ('query_proj', 'query', 'D', 'D'),
        ('value_conv', 'value', 'D', 'D'),
        ('Bot_MLP.inp_fc', 'mlp_in', 'D/2', 'D'),
        ('Bot_MLP.hid_fc', 'mlp_hidden', 'D/2', 'D/2'),
        ('Bot_MLP.out_fc', 'mlp_out', 'D', 'D/2'),
    ),
    'mlp_mixer': (
        ('Tok_MLP.inp_fc', 'token_in', 'N', 'N'),
        ('Tok_MLP.out_fc', 'token_out', 'N', 'N'),
        ('Bot_MLP.inp_fc', 'channel_in', 'D', 'D'),
        ('Bot_MLP.out_fc', 'channel_out', 'D', 'D'),
    ),
    'none': (),
}
ENRICHMENTS = {
    'patch': ('attn_pat', 'patch_enrichment'),
    'frame': ('fr_enrich', 'frame_enrichment'),
}
PROJECTION = 'new_dist_loss_post_pat'

# In the files, without a use here: counters; position codes, which are computed; a LayerNorm that
# TRX never calls.
UNUSED = (
    COUNTER
    + r'|(attn_pat|fr_enrich|transformers\.\d+)\.pe\.pe|transformers\.\d+\.norm_v\.(weight|bias)'
)
CLASSIFIER = r'fc\.(weight|bias)'
SCAN_CLASSIFIER = r'(fc|classifier\.\d+)\.(weight|bias)'  # of ShuffleNetV2, MobileNetV2

PROJECTION_SEED = 0


def from_torch(state_dict: dict[str, Any], model) -> dict[str, Any]:
    """Variables of the learner of `model` from a state dict of the published STRM, TRX, Baseline
    TRM, OTAM, TA2N, HyRSM or MASTAF.

    The names may carry the `module.` of multi-GPU training (row S22 of docs/paper_vs_code.md), or
    anything else before all of them (state_dicts.py). STRM's released dicts lack the query-class
    projection, because its code never saves it (S11): where `model.query_similarity.weight` is not
    0 it is drawn from a fixed seed in torch's range, and a warning says so.

    Args:
      state_dict: {published name: array}.
      model: config.model. With backbone 'features' there are no backbone entries. The feature
        dimension (there) and the number of frames follow from the arrays; all other sizes from the
        config.

    Returns:
      {'params': …, 'batch_stats': …}, float32, for `learner.apply`; no 'batch_stats' where there
      are none.

    Raises:
      ValueError: unknown, missing or mis-shaped entries, or values that no weight has, all in one
        line; or variant='paper', whose enrichments have no place for the published gate and biases.
    """
    return learner_from({(): state_dict}, model)


def learner_from(candidates: dict[tuple[str, ...], dict], model) -> dict[str, Any]:
    """`from_torch` of the one of several state dicts, by where each lies, whose names fit."""
    if model.matcher.name not in BACKBONE_PLACES:
        raise ValueError(
            'no published state dict is known for '
            f"config.model.matcher.name='{model.matcher.name}'"
        )
    enriched = model.enrichment.patch != 'none' or model.enrichment.frame != 'none'
    if model.variant != 'code' and (enriched or model.query_similarity.weight):
        raise ValueError(
            "published STRM weights belong to config.model.variant='code': the 'paper' equations "
            'have no place for its gate and biases'
        )
    rows, dim = ({}, None) if model.backbone.name == 'features' else _backbone_rows(model)
    table, optional, unused = _learner_table(model, rows, dim, {})
    found = find_names(candidates, _names(table, optional, unused))
    table, optional, unused = _learner_table(model, rows, dim, found.arrays)
    arrays, notes = found.arrays, [(logging.WARNING, note) for note in found.notes]
    if optional and not any(name in arrays for name in optional):
        if None not in [size for name in optional for size in table[name].shape]:
            arrays = arrays | _draw_projection({name: table[name] for name in optional})
            notes.append(
                (
                    logging.WARNING,
                    (
                        'the state dict has no query-class projection, which the published STRM '
                        'neither trains nor saves: drawn '
                        f'from the fixed seed {PROJECTION_SEED} as torch starts a linear map, so '
                        'that evaluation is deterministic'
                    ),
                )
            )
    return _convert(arrays, table, unused, notes, found.place)


def _backbone_rows(model):
    """Rows of the backbone under the names of the method's published code; and its output
    channels."""
    rows, dim = backbone_table(model.backbone)
    prefix, sequence = BACKBONE_PLACES[model.matcher.name]
    table = {}
    for name, entry in rows.items():
        stem, _, rest = name.partition('.')
        collection, _, path = entry.path.partition('/')
        table[f'{prefix}.{SEQUENCE[stem] if sequence else stem}.{rest}'] = entry._replace(
            path=f'{collection}/backbone/{path}'
        )
    return table, dim


def _learner_table(model, rows, dim, arrays):
    """All rows of the learner; those among them that published files may lack; what may stay
    unused. Unknown sizes are those of the arrays."""
    table = dict(rows)
    if model.matcher.name in HEADS:
        head, unused, places = HEADS[model.matcher.name]
        dim = dim or head_dimension(arrays, places)
        table.update(head(model, dim))
        if model.enrichment.temporal_transform:
            table.update(temporal_transform_table(dim))
        return table, {}, f'{COUNTER}|{unused}'
    cardinalities = tuple(model.matcher.cardinalities)
    dim = dim or _feature_dimension(arrays, cardinalities)
    table.update(_enrichment_table(model, dim, _frames(arrays)))
    if model.matcher.name == 'cross_transformer':
        table.update(_matcher_table(cardinalities, dim, model.matcher.dim or _half(dim)))
    if not model.query_similarity.weight:
        return table, {}, UNUSED + '|' + PROJECTION + r'\.\d+\.clsW\.(weight|bias)'
    projection = _projection_table(cardinalities, dim, model.query_similarity.dim or _half(dim))
    return table | projection, projection, UNUSED


def _names(table, optional, unused):
    known = lambda name: name in table or _matches(unused, name)
    return Names([name for name in table if name not in optional], known)


def _matches(unused, name):
    return len(name) < MAX_NAME and re.fullmatch(unused, name) is not None


def sampler_from_torch(state_dict: dict[str, Any], model) -> dict[str, Any]:
    """Variables of the sampler of `model` (config.model) from a state dict of VIM's released
    sampler, its scan network included.

    Returns:
      {'params': {'sampler': …}, 'batch_stats': {'sampler': …}}, to be put into those of the
      learner.

    Raises:
      ValueError: as `from_torch`; or sampler.variant='paper', whose generator the released code
        does not have.
    """
    sampler = model.sampler
    if sampler.name != 'task_adaptive' or sampler.variant != 'code':
        raise ValueError(
            "the published sampler belongs to config.model.sampler.name='task_adaptive' with "
            "variant='code'"
        )
    network = create_scan_network(sampler.scan_network)
    table = scan_network_table(network, 'backbone.', 'sampler/scan_network/')
    table |= sampler_table(None, sampler.hidden, sampler.task_dim, sampler.adaptive)
    return _found_and_converted(
        {(): state_dict}, table, rf'{COUNTER}|{SAMPLER_UNUSED}|backbone\.({SCAN_CLASSIFIER})'
    )


def backbone_from_torch(state_dict: dict[str, Any], config) -> dict[str, Any]:
    """Variables of the backbone alone, from a state dict with torchvision's names, which timm's
    ResNets share.

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


def backbone_from(candidates: dict[tuple[str, ...], dict], config) -> dict[str, Any]:
    """`backbone_from_torch` of the one of several state dicts, by where each lies, whose names
    fit."""
    if config.name == 'features':
        raise ValueError("config.model.backbone.name='features' has no weights to load")
    return _found_and_converted(
        candidates, backbone_table(config)[0], f'{COUNTER}|{CLASSIFIER}', CLASSIFIER, 'backbone'
    )


def scan_network_from_torch(state_dict: dict[str, Any], name: str) -> dict[str, Any]:
    """Variables of the scan network alone, from torchvision's state dict of ShuffleNetV2 or
    MobileNetV2 (or the sampler's of VIM).

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


def scan_network_from(candidates: dict[tuple[str, ...], dict], name: str) -> dict[str, Any]:
    """`scan_network_from_torch` of the one of several state dicts, by where each lies, whose names
    fit."""
    table = scan_network_table(create_scan_network(name))
    return _found_and_converted(
        candidates, table, f'{COUNTER}|{SCAN_CLASSIFIER}', SCAN_CLASSIFIER, 'scan network'
    )


def scan_network_table(network, published: str = '', ours: str = '') -> dict[str, Entry]:
    """Rows of a scan network (module) under torchvision's names; `published` and `ours` before
    them, as in `torchvision_rows`.

    VIM's sampler keeps it under 'backbone.'; there too, entries that match SCAN_CLASSIFIER after it
    have no use.
    """
    variables = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), False)
    )
    return torchvision_rows(variables, published, ours)


def backbone_table(config) -> tuple[dict[str, Entry], int]:
    """Rows of a backbone under torchvision's names, read off its parameter tree; and its output
    channels."""
    module = backbones.create(config)
    clips = getattr(module, 'takes_clips', False)
    start = lambda: module.init_with_output(
        jax.random.key(0), jnp.zeros((1, 16, 64, 64, 3) if clips else (1, 64, 64, 3)), False
    )
    maps, variables = jax.eval_shape(start)
    return torchvision_rows(variables), maps.shape[-1]


def _enrichment_table(model, dim, frames):
    table = {}
    for level, tokens in (('patch', model.enrichment.patches**2), ('frame', frames)):
        theirs, ours = ENRICHMENTS[level]
        sizes = {'D': dim, 'D/2': _half(dim), 'N': tokens}
        kind = model.enrichment[level]
        for published, name, outputs, inputs in ENRICHMENT_MAPS[kind]:
            table.update(
                linear(f'{theirs}.{published}', f'{ours}/{name}', sizes[outputs], sizes[inputs])
            )
        if kind == 'self_attention':
            table[f'{theirs}.gamma'] = Entry(f'params/{ours}/gamma', 'copy', (1,))
    return table


def _matcher_table(cardinalities, dim, outputs):
    table = {}
    for i, cardinality in enumerate(cardinalities):
        theirs, ours = f'transformers.{i}', f'matcher/cardinality_{cardinality}'
        for published, name in (('k_linear', 'key'), ('v_linear', 'value')):
            inputs = _times(cardinality, dim)
            table.update(linear(f'{theirs}.{published}', f'{ours}/{name}', outputs, inputs))
        table.update(layer_norm(f'{theirs}.norm_k', f'{ours}/key_norm', outputs))
    return table


def _projection_table(cardinalities, dim, outputs):
    table = {}
    for i, cardinality in enumerate(cardinalities):
        ours = f'query_similarity/cardinality_{cardinality}/projection'
        table.update(linear(f'{PROJECTION}.{i}.clsW', ours, outputs, _times(cardinality, dim)))
    return table


def _draw_projection(table):
    """Weights and biases uniform in ±1/√inputs, as torch.nn.Linear starts them."""
    generator = np.random.Generator(np.random.Philox(PROJECTION_SEED))
    arrays = {}
    for name, entry in table.items():
        inputs = table[name.rpartition('.')[0] + '.weight'].shape[1]
        arrays[name] = ((2 * generator.random(entry.shape) - 1) / np.sqrt(inputs)).astype(
            np.float32
        )
    return arrays


def _feature_dimension(arrays, cardinalities):
    """D from the arrays that depend on it; None without any."""
    places = [
        (f'{root}.{name}', 1)
        for root, _ in ENRICHMENTS.values()
        for name in ('Bot_MLP.inp_fc.weight', 'Bot_MLP.out_fc.bias')
    ]
    for i, cardinality in enumerate(cardinalities):
        names = f'transformers.{i}.k_linear', f'transformers.{i}.v_linear', f'{PROJECTION}.{i}.clsW'
        places += [(f'{name}.weight', cardinality) for name in names]
    return _most_common(arrays, places)


def _frames(arrays):
    """L from the arrays of the frame mixer; None without any."""
    leaves = 'inp_fc.weight', 'inp_fc.bias', 'out_fc.weight', 'out_fc.bias'
    return _most_common(arrays, [(f'fr_enrich.Tok_MLP.{leaf}', 1) for leaf in leaves])


def _most_common(arrays, places):
    """The size that most of the places agree on (last axis / factor), so that one mis-shaped array
    is found out."""
    shapes = (
        (arrays[name].shape, factor) for name, factor in places if _is_array(arrays.get(name))
    )
    sizes = collections.Counter(shape[-1] // factor for shape, factor in shapes if shape)
    return sizes.most_common(1)[0][0] if sizes else None


def _half(size):
    return None if size is None else size // 2


def _times(factor, size):
    return None if size is None else factor * size


def _found_and_converted(candidates, table, unused, classifier=None, what=None):
    found = find_names(candidates, _names(table, {}, unused))
    notes = [(logging.WARNING, note) for note in found.notes]
    left_out = [name for name in found.arrays if classifier and _matches(classifier, name)]
    if left_out:
        notes.append(
            (logging.WARNING, f'left out the classifier of the {what}: {listed(left_out)}')
        )
    return _convert(found.arrays, table, unused, notes, found.place)


def _convert(arrays, table, unused, notes, place=''):
    _check_names(arrays, table, unused, place)
    _check_values(arrays, table, place)
    for level, note in notes:
        logging.log(level, 'fsar_jax.weights: %s', note)
    variables = {}
    for name, entry in table.items():
        *parents, leaf = entry.path.split('/')
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.asarray(
            TRANSFORMS[entry.transform](np.asarray(arrays[name]).astype(np.float32, copy=False))
        )
    variables.setdefault('params', {})
    return variables


def _check_names(arrays, table, unused, place):
    unknown = [name for name in arrays if name not in table and not _matches(unused, name)]
    missing = [name for name in table if name not in arrays]
    wrong = [
        name
        for name, entry in table.items()
        if name in arrays and not _fits(arrays[name], entry.shape)
    ]
    expected = lambda name: _written(table[name].shape)
    found = lambda name: _found(arrays[name])
    problems = {
        'missing': [f'{name} {expected(name)}' for name in missing],
        'unknown': [f'{name} {found(name)}' for name in unknown],
        'mis-shaped': [f'{name} expected {expected(name)} found {found(name)}' for name in wrong],
    }
    lines = [
        f'{len(entries)} {kind}: {listed(entries)}' for kind, entries in problems.items() if entries
    ]
    if lines:
        raise ValueError(
            'the state dict is not one of the model that config.model describes: '
            + '; '.join(lines)
            + place
        )


def _check_values(arrays, table, place):
    """Refuses what no training leaves behind, before it becomes silent wrong numbers."""
    problems = {
        'of a type that no weight has': [],
        'with NaN or infinite values': [],
        'beyond the range of float32': [],
        'with a negative running variance': [],
    }
    types, broken, large, negative = problems.values()
    for name, entry in table.items():
        array = np.asarray(arrays[name])
        if not jnp.issubdtype(array.dtype, jnp.floating):
            types.append(f'{name} ({array.dtype.name})')
            continue
        with np.errstate(over='ignore'):
            values = array.astype(np.float32, copy=False)
        count = values.size - np.count_nonzero(np.isfinite(values))
        if count:
            beyond = array.dtype.itemsize > 4 and np.isfinite(array).all()
            (large if beyond else broken).append(f'{name} ({count:,} of {values.size:,} values)')
        elif (
            entry.path.startswith('batch_stats/')
            and entry.path.endswith('/var')
            and values.size
            and values.min() < 0
        ):
            negative.append(f'{name} ({values.min():.3g})')
    lines = [
        f'{len(entries)} {kind}: {listed(entries)}' for kind, entries in problems.items() if entries
    ]
    if lines:
        raise ValueError(
            f'the state dict has weights that no model can use: {"; ".join(lines)}: its training '
            'failed, or the '
            f'file is damaged or converted wrongly: take another checkpoint{place}'
        )


def _is_array(value):
    return (
        isinstance(value, (np.ndarray, np.generic, jax.Array)) and value.dtype.kind not in 'OSUMm'
    )


def _fits(value, shape):
    return (
        _is_array(value)
        and value.ndim == len(shape)
        and all(size in (None, found) for size, found in zip(shape, value.shape))
    )


def _written(shape):
    return '[' + ', '.join('?' if size is None else str(size) for size in shape) + ']'


def _found(value):
    if isinstance(value, Opaque):
        return printable(value.name)
    return _written(value.shape) if _is_array(value) else type(value).__name__
