"""Names of the published heads of TA2N, HyRSM and MASTAF: tables of `Entry`, and what of their
dicts has no use here."""

from fsar_jax.weights.entries import Entry, batch_norm, layer_norm, linear

COUNTER = r'.*\.num_batches_tracked'
CUBE = (3, 3, 3)


def coordination_table(model, dim) -> dict[str, Entry]:
    """TA2N's second stage: pair projections, those between shots, and the offset predictor."""
    matcher, table = model.matcher, {}
    if matcher.temporal:
        for name in ('key', 'query', 'value'):
            square = lambda published, ours: linear(
                published, f'matcher/{ours}', dim, dim, 'conv1d', bias=False, window=(1,)
            )
            table.update(square(f'align.secondstage.{name}net', name))
            if model.variant == 'code' and matcher.prototype == 'aligned':
                table.update(square(f'align.{name}net_multi', f'{name}_multi'))
    if matcher.spatial in ('mask', 'grid'):
        theirs, ours = 'align.secondstage.mvnet', 'matcher/offsets'
        inputs = None if dim is None else 2 * dim
        table[f'{theirs}.0.weight'] = Entry(
            f'params/{ours}/conv1_kernel', 'conv3d', (128, inputs, *CUBE)
        )
        table[f'{theirs}.0.bias'] = Entry(f'params/{ours}/conv1_bias', 'copy', (128,))
        table.update(batch_norm(f'{theirs}.1', f'{ours}/bn1', 128))
        table.update(linear(f'{theirs}.4', f'{ours}/conv2', 128, 128, 'conv3d', window=CUBE))
        table.update(batch_norm(f'{theirs}.5', f'{ours}/bn2', 128))
        table.update(linear(f'{theirs}.10', f'{ours}/linear', 64, 128, 'conv1d', window=(1,)))
        table.update(linear(f'{theirs}.12', f'{ours}/offset', 2, 64, 'conv1d', window=(1,)))
    if matcher.distance_norm:
        table.update(layer_norm('protypicalNet.norm_layer', 'matcher/norm', None))
    return table


def temporal_transform_table(dim) -> dict[str, Entry]:
    """TA2N's first stage."""
    theirs, ours = 'align.firststage.locnet', 'temporal_transform'
    return {
        **linear(f'{theirs}.0', f'{ours}/conv1', 64, dim, 'conv3d', window=CUBE),
        **batch_norm(f'{theirs}.1', f'{ours}/bn1', 64),
        **linear(f'{theirs}.4', f'{ours}/conv2', 128, 64, 'conv3d', window=CUBE),
        **batch_norm(f'{theirs}.5', f'{ours}/bn2', 128),
        **linear(f'{theirs}.10', f'{ours}/linear', 32, 128),
        **linear(f'{theirs}.12', f'{ours}/window', 2, 32),
    }


def set_matching_table(model, dim) -> dict[str, Entry]:
    """HyRSM: relation within a video, across videos, their fusion, and the classifier of the
    training classes if there is one."""
    within, across = 'temporal_atte_before', 'temporal_atte'
    table = {
        **layer_norm(f'{within}.norm', 'matcher/within/norm', dim),
        **linear(
            f'{within}.fn.to_qkv',
            'matcher/within/qkv',
            None if dim is None else 3 * dim,
            dim,
            bias=False,
        ),
        **linear(f'{within}.fn.to_out.0', 'matcher/within/out', dim, dim),
        **linear(f'{across}.fc', 'matcher/across/out', dim, dim),
        **layer_norm(f'{across}.layer_norm', 'matcher/across/norm', dim),
        **linear(
            'layer2.0', 'matcher/fuse', dim, None if dim is None else 2 * dim, 'conv1d', window=(1,)
        ),
    }
    for theirs, ours in (('w_qs', 'query'), ('w_ks', 'key'), ('w_vs', 'value')):
        table.update(linear(f'{across}.{theirs}', f'matcher/across/{ours}', dim, dim, bias=False))
    if model.classifier.classes:
        table.update(
            linear('classification_layer', 'matcher/classifier', model.classifier.classes, dim)
        )
    return table


def attention_fusion_table(model, dim) -> dict[str, Entry]:
    """MASTAF: the meta-learner of the attention kernels, and the classifier of the training classes
    if there is one."""
    table = {}
    if model.matcher.kernel == 'meta_learner':
        table.update(
            linear('cam.conv1.conv', 'matcher/kernel/squeeze', 6, None, 'conv2d', window=(1, 1))
        )
        table.update(batch_norm('cam.conv1.bn', 'matcher/kernel/bn', 6))
        table.update(linear('cam.conv2', 'matcher/kernel/expand', None, 6, 'conv2d', window=(1, 1)))
    if model.classifier.classes:
        table.update(
            linear(
                'classifier',
                'matcher/classifier',
                model.classifier.classes,
                dim,
                'points',
                window=(1, 1, 1),
            )
        )
    return table


# matcher → (table of its head, what of its dict may stay unused, arrays whose last named axis is
# the feature dimension)
HEADS = {
    'action_coordination': (
        coordination_table,
        r'protypicalNet\.norm_layer\.(weight|bias)|align\.secondstage\.(mv|key|query|value)net\..*|'
        r'align\.(key|query|value)net_multi\.weight|align\.firststage\..*',
        (
            ('align.valuenet_multi.weight', 1),
            ('align.secondstage.valuenet.weight', 1),
            ('align.firststage.locnet.0.weight', 1),
        ),
    ),
    'set_matching': (
        set_matching_table,
        r'pe\.pe|classification_layer\.(weight|bias)',
        (
            ('temporal_atte.fc.weight', 1),
            ('temporal_atte.w_qs.weight', 1),
            ('temporal_atte_before.norm.weight', 0),
        ),
    ),
    'attention_fusion': (
        attention_fusion_table,
        r'(classifier|base\.fc)\.(weight|bias)|cam\..*',
        (('classifier.weight', 1),),
    ),
}


def head_dimension(arrays, places):
    """The feature dimension, from the first of `places` (name, axis) that is there; None without
    any."""
    for name, axis in places:
        if getattr(arrays.get(name), 'ndim', 0) > axis:
            return arrays[name].shape[axis]
    return None
