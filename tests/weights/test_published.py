"""Published state dicts of STRM, TRX and torchvision: places, transforms, and errors that list
everything."""

import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config
from torch_files import Tensor, write_legacy, write_zip

import fsar_jax
from fsar_jax import backbones
from fsar_jax.matchers import CrossTransformer, Prototypes
from fsar_jax.torch_names import TorchNames
from fsar_jax.weights import backbone_from_torch, from_torch, load, load_backbone, published, trx

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'


def model_config(method, backbone='features', **changes):
    config = fsar_jax.default_config()
    model = config.model
    model.backbone.name = backbone
    model.matcher.update(name='cross_transformer', dim=24, cardinalities=(2,))
    if method == 'strm':
        model.enrichment.update(patch='self_attention', frame='mlp_mixer')
        model.query_similarity.weight = 0.1
    elif method == 'trx':
        model.matcher.cardinalities = (2, 3)
    elif method == 'protonet':
        model.matcher.name = 'prototypes'
    model.update(changes)
    return model


def fixture_weights(name):
    with np.load(FIXTURES / f'{name}.npz') as z:
        return {key[2:]: z[key] for key in z.files if key.startswith('w/')}


def batch_norm_shapes(name, channels):
    return {
        **{
            f'{name}.{leaf}': (channels,)
            for leaf in ('weight', 'bias', 'running_mean', 'running_var')
        },
        f'{name}.num_batches_tracked': (),
    }


def torchvision_shapes(blocks, bottleneck, width=64):
    """Names and shapes of torchvision's ResNets without fc, written down here apart from the code
    under test."""
    shapes, inputs = {'conv1.weight': (width, 3, 7, 7), **batch_norm_shapes('bn1', width)}, width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        outputs = inner * (4 if bottleneck else 1)
        for b in range(count):
            convs = [(inner, inputs, 3), (inner, inner, 3)]
            if bottleneck:
                convs = [(inner, inputs, 1), (inner, inner, 3), (outputs, inner, 1)]
            for i, (out, into, size) in enumerate(convs):
                shapes[f'layer{stage + 1}.{b}.conv{i + 1}.weight'] = (out, into, size, size)
                shapes.update(batch_norm_shapes(f'layer{stage + 1}.{b}.bn{i + 1}', out))
            if b == 0 and (stage > 0 or bottleneck):
                shapes[f'layer{stage + 1}.{b}.downsample.0.weight'] = (outputs, inputs, 1, 1)
                shapes.update(batch_norm_shapes(f'layer{stage + 1}.{b}.downsample.1', outputs))
            inputs = outputs
    return shapes


ARCHITECTURES = {
    'resnet18': ((2, 2, 2, 2), False),
    'resnet34': ((3, 4, 6, 3), False),
    'resnet50': ((3, 4, 6, 3), True),
}


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda name, shape: (
        np.array(7, np.int64) if name.endswith('tracked') else rng.random(shape, np.float32)
    )
    return {name: draw(name, shape) for name, shape in shapes.items()}


def sequential(weights):
    """As TRX and STRM name the backbone: children of a sequence conv1, bn1, relu, max pool, layer1,
    …."""
    places = {'conv1': '0', 'bn1': '1', 'layer1': '4', 'layer2': '5', 'layer3': '6', 'layer4': '7'}
    return {
        f'resnet.{places[name.split(".")[0]]}.{name.split(".", 1)[1]}': value
        for name, value in weights.items()
    }


def head_shapes(method, dim, out, frames=8):
    """Names and shapes of the heads of STRM and TRX at any size, apart from the code under test."""
    shapes = {}

    def linear(name, outputs, inputs):
        shapes.update({f'{name}.weight': (outputs, inputs), f'{name}.bias': (outputs,)})

    for i, cardinality in enumerate((2,) if method == 'strm' else (2, 3)):
        linear(f'transformers.{i}.k_linear', out, cardinality * dim)
        linear(f'transformers.{i}.v_linear', out, cardinality * dim)
        for name in ('norm_k', 'norm_v'):
            shapes.update(
                {f'transformers.{i}.{name}.weight': (out,), f'transformers.{i}.{name}.bias': (out,)}
            )
        shapes[f'transformers.{i}.pe.pe'] = (1, 12, dim)
    if method == 'strm':
        for name in ('key_proj', 'query_proj', 'value_conv'):
            linear(f'attn_pat.{name}', dim, dim)
        linear('attn_pat.Bot_MLP.inp_fc', dim // 2, dim)
        linear('attn_pat.Bot_MLP.hid_fc', dim // 2, dim // 2)
        linear('attn_pat.Bot_MLP.out_fc', dim, dim // 2)
        shapes.update(
            {
                'attn_pat.gamma': (1,),
                'attn_pat.pe.pe': (1, 24, dim),
                'fr_enrich.pe.pe': (1, 12, dim),
            }
        )
        for name, size in (('Tok_MLP', frames), ('Bot_MLP', dim)):
            linear(f'fr_enrich.{name}.inp_fc', size, size)
            linear(f'fr_enrich.{name}.out_fc', size, size)
    return shapes


def learner_shapes(model, frames=8, dim=16):
    clip = (frames, 64, 64, 3) if model.backbone.name != 'features' else (frames, 4, 4, dim)
    learner = fsar_jax.create_learner(model)
    support, query = jnp.zeros((2, 1, *clip)), jnp.zeros((1, *clip))
    return jax.eval_shape(lambda: learner.init(jax.random.key(0), support, query, train=False))


def assert_same_tree(variables, expected):
    shape = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
    assert shape(variables) == shape(expected)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('method, fixture', [('strm', 'strm_head_a'), ('trx', 'trx_head_23_a')])
def test_head_files_fill_the_learner(method, fixture):
    model = model_config(method)
    variables = from_torch(fixture_weights(fixture), model)
    assert_same_tree(variables, learner_shapes(model))


@pytest.mark.parametrize(
    'method, backbone',
    [
        ('strm', 'resnet18'),
        ('trx', 'resnet18'),
        ('protonet', 'resnet18'),
        pytest.param('strm', 'resnet50', marks=pytest.mark.slow),
    ],
)
def test_full_dicts_fill_the_learner(method, backbone):
    model = model_config(method, backbone)
    shapes = (
        {}
        if method == 'protonet'
        else head_shapes(method, 2048 if backbone == 'resnet50' else 512, 24)
    )
    weights = sequential(drawn(torchvision_shapes(*ARCHITECTURES[backbone]))) | drawn(shapes)
    variables = from_torch(weights, model)
    assert_same_tree(variables, learner_shapes(model))


def alignment_shapes(method, dim, classes=12):
    """Names and shapes of the heads of TA2N, HyRSM and MASTAF, with what of them has no use here,
    apart from the code under test."""
    shapes = {}

    def layer(name, *shape, bias=True):
        shapes.update({f'{name}.weight': shape, **({f'{name}.bias': shape[:1]} if bias else {})})

    if method == 'ta2n':
        for stage, inputs, features in (
            ('firststage.locnet', (dim, 64), (64, 128)),
            ('secondstage.mvnet', (2 * dim, 128), (128, 128)),
        ):
            for place, i, o in zip((0, 4), inputs, features):
                layer(f'align.{stage}.{place}', o, i, 3, 3, 3)
                shapes.update(batch_norm_shapes(f'align.{stage}.{place + 1}', o))
        layer('align.firststage.locnet.10', 32, 128)
        layer('align.firststage.locnet.12', 2, 32)
        layer('align.secondstage.mvnet.10', 64, 128, 1)
        layer('align.secondstage.mvnet.12', 2, 64, 1)
        for name in ('key', 'query', 'value'):
            layer(f'align.secondstage.{name}net', dim, dim, 1, bias=False)
            layer(f'align.{name}net_multi', dim, dim, 1, bias=False)
        layer('protypicalNet.norm_layer', 5)
    if method == 'hyrsm':
        shapes['pe.pe'] = (1, 20, dim)
        layer('temporal_atte_before.norm', dim)
        layer('temporal_atte_before.fn.to_qkv', 3 * dim, dim, bias=False)
        layer('temporal_atte_before.fn.to_out.0', dim, dim)
        for name in ('w_qs', 'w_ks', 'w_vs'):
            layer(f'temporal_atte.{name}', dim, dim, bias=False)
        layer('temporal_atte.fc', dim, dim)
        layer('temporal_atte.layer_norm', dim)
        layer('layer2.0', dim, 2 * dim, 1)
        layer('classification_layer', classes, dim)
    if method == 'mastaf':
        layer('cam.conv1.conv', 6, 49, 1, 1)
        shapes.update(batch_norm_shapes('cam.conv1.bn', 6))
        layer('cam.conv2', 49, 6, 1, 1)
        layer('classifier', classes, dim, 1, 1, 1)
        layer('base.fc', 11, dim)  # of the pretraining
    return shapes


@pytest.mark.parametrize(
    'method, backbone, classes',
    [
        ('otam', 'resnet18', None),
        ('ta2n', 'resnet18', None),
        pytest.param('hyrsm', 'resnet18', None, marks=pytest.mark.slow),
        ('hyrsm', 'resnet18', 12),
        pytest.param('mastaf', 'resnet3d50', None, marks=pytest.mark.slow),
        ('mastaf', 'resnet3d50', 12),
    ],
)
@pytest.mark.parametrize('wrapped', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_full_dicts_of_the_alignment_methods_fill_the_learner(method, backbone, classes, wrapped):
    """Backbone and head as published, thinner; and under the names of multi-GPU training."""
    model, width, clips = tiny_config(method).model, 4, backbone == 'resnet3d50'
    with model.unlocked():
        model.backbone.update(name=backbone, width=width)
    model.matcher.heads, model.classifier.classes = 4, classes
    base = torchvision_shapes(*ARCHITECTURES['resnet50' if clips else backbone], width=width)
    if clips:  # the kernels are cubes
        base = {
            name: (*shape, shape[-1]) if len(shape) == 4 else shape for name, shape in base.items()
        }
    dim = width * (32 if clips else 8)
    base = drawn(base)
    base = (
        {f'base.{name}': value for name, value in base.items()}
        if clips
        else (
            {f'resnet.{name}': value for name, value in base.items()}
            if method == 'ta2n'
            else {
                name.replace('resnet.', 'backbone.', 1): value
                for name, value in sequential(base).items()
            }
        )
    )
    weights = base | drawn(alignment_shapes(method, dim))
    if wrapped:
        weights = {name.replace('.', '.module.', 1): value for name, value in weights.items()}
    variables = from_torch(weights, model)
    # 16 frames of 224 pixels are the 49 positions of MASTAF's kernel.
    frames = (16, 224, 224, 3) if clips else (8, 64, 64, 3)
    learner, support, query = (
        fsar_jax.create_learner(model),
        jnp.zeros((2, 1, *frames)),
        jnp.zeros((1, *frames)),
    )
    expected = jax.eval_shape(lambda: learner.init(jax.random.key(0), support, query, train=False))
    assert_same_tree(variables, expected)
    plain = {name.replace('.module.', '.', 1): value for name, value in weights.items()}
    place = {
        'otam': ('backbone.0.weight', 'backbone/conv1/kernel', (2, 3, 1, 0)),
        'ta2n': (
            'align.secondstage.mvnet.4.weight',
            'matcher/offsets/conv2/kernel',
            (2, 3, 4, 1, 0),
        ),
        'hyrsm': ('temporal_atte.w_ks.weight', 'matcher/across/key/kernel', (1, 0)),
        'mastaf': ('base.layer2.0.conv2.weight', 'backbone/layer2_0/conv2/kernel', (2, 3, 4, 1, 0)),
    }[method]
    found = variables['params']
    for key in place[1].split('/'):
        found = found[key]
    np.testing.assert_array_equal(found, plain[place[0]].transpose(place[2]))


@pytest.mark.parametrize(
    'method',
    ['hyrsm', 'mastaf', *(pytest.param(x, marks=pytest.mark.slow) for x in ('otam', 'ta2n'))],
)
def test_any_published_stages_together_fill_the_learner(method):
    """A matcher of one code with the enrichments of others, each from its own names."""
    model = tiny_config(method).model
    with model.unlocked():
        model.backbone.name = 'features'
    model.matcher.heads, model.enrichment.temporal_transform = 4, True
    model.enrichment.update(patch='self_attention', frame='mlp_mixer')
    enriched = {
        name: shape
        for name, shape in head_shapes('strm', 16, 24).items()
        if not name.startswith('transformers')
    }
    transform = {
        name: shape
        for name, shape in alignment_shapes('ta2n', 16).items()
        if name.startswith('align.firststage')
    }
    weights = drawn(alignment_shapes(method, 16) | transform | enriched)
    variables = from_torch(weights, model)
    expected = learner_shapes(model)
    if method == 'mastaf':  # 49 positions of a kernel are not those of a small map
        expected['params']['matcher'] = variables['params']['matcher']
    assert_same_tree(variables, expected)
    np.testing.assert_array_equal(
        variables['params']['patch_enrichment']['key']['kernel'],
        weights['attn_pat.key_proj.weight'].T,
    )


def test_a_parameter_without_a_published_name_is_an_error():
    model = model_config('protonet')
    model.matcher.name = 'cross_transformer'
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(published.METHODS, CrossTransformer, published.METHODS[Prototypes])
        with pytest.raises(ValueError) as error:
            from_torch({}, model)
    assert str(error.value) == (
        'no published state dict is known for the model that config.model describes, because of '
        'its params/matcher/cardinality_2/key/bias, params/matcher/cardinality_2/key/kernel, '
        'params/matcher/cardinality_2/key_norm/bias, params/matcher/cardinality_2/key_norm/scale, '
        'params/matcher/cardinality_2/value/bias, params/matcher/cardinality_2/value/kernel'
    )


def test_a_matcher_brings_its_own_published_names(monkeypatch):
    """One file is enough for a new matcher: the class attribute `published` is its table."""
    table = {f'own.{name}': ours for name, ours in trx.CROSS_TRANSFORMER.table.items()}
    monkeypatch.delitem(published.METHODS, CrossTransformer)
    monkeypatch.setattr(CrossTransformer, 'published', TorchNames(table=table), raising=False)
    weights = drawn(head_shapes('trx', 16, 24))
    own = {
        f'own.{name}': value
        for name, value in weights.items()
        if '.pe.' not in name and '.norm_v.' not in name
    }
    params = from_torch(own, model_config('trx'))['params']
    np.testing.assert_array_equal(
        params['matcher']['cardinality_3']['key']['kernel'],
        weights['transformers.1.k_linear.weight'].T,
    )


def test_protonet_on_features_has_nothing_to_load():
    assert from_torch({}, model_config('protonet')) == {'params': {}}


def test_each_kind_of_entry_lands_in_its_place():
    weights = fixture_weights('strm_head_a')
    params = from_torch(weights, model_config('strm'))['params']
    equal = np.testing.assert_array_equal
    equal(params['patch_enrichment']['key']['kernel'], weights['attn_pat.key_proj.weight'].T)
    equal(params['patch_enrichment']['query']['kernel'], weights['attn_pat.query_proj.weight'].T)
    equal(params['patch_enrichment']['value']['bias'], weights['attn_pat.value_conv.bias'])
    equal(
        params['patch_enrichment']['mlp_hidden']['kernel'],
        weights['attn_pat.Bot_MLP.hid_fc.weight'].T,
    )
    equal(params['patch_enrichment']['gamma'], weights['attn_pat.gamma'])
    equal(
        params['frame_enrichment']['token_in']['kernel'],
        weights['fr_enrich.Tok_MLP.inp_fc.weight'].T,
    )
    equal(
        params['frame_enrichment']['channel_out']['bias'], weights['fr_enrich.Bot_MLP.out_fc.bias']
    )
    equal(
        params['matcher']['cardinality_2']['value']['kernel'],
        weights['transformers.0.v_linear.weight'].T,
    )
    equal(
        params['matcher']['cardinality_2']['key_norm']['scale'],
        weights['transformers.0.norm_k.weight'],
    )
    projection = params['query_similarity']['cardinality_2']['projection']
    equal(projection['kernel'], weights['new_dist_loss_post_pat.0.clsW.weight'].T)


def test_transformers_follow_the_order_of_the_cardinalities():
    weights, model = fixture_weights('trx_head_23_a'), model_config('trx')
    swap = {'transformers.0.': 'transformers.1.', 'transformers.1.': 'transformers.0.'}
    swapped = {swap[name[:15]] + name[15:]: value for name, value in weights.items()}
    model.matcher.cardinalities = (3, 2)
    params = from_torch(swapped, model)['params']['matcher']
    assert params['cardinality_2']['key']['kernel'].shape == (32, 24)
    np.testing.assert_array_equal(
        params['cardinality_3']['key']['kernel'], weights['transformers.1.k_linear.weight'].T
    )


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_torchvision_dict_fills_the_backbone(name, caplog):
    config = model_config('protonet', name).backbone
    weights = drawn(torchvision_shapes(*ARCHITECTURES[name]))
    weights |= drawn({'fc.weight': (1000, 8), 'fc.bias': (1000,)})
    with caplog.at_level(logging.INFO):
        variables = backbone_from_torch(weights, config)
    assert 'left out the classifier of the backbone: fc.weight, fc.bias' in caplog.text
    module = backbones.create(config)
    assert_same_tree(
        variables, jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    )
    np.testing.assert_array_equal(
        variables['params']['conv1']['kernel'][1, 2, 0], weights['conv1.weight'][:, 0, 1, 2]
    )
    stats, last = variables['batch_stats']['layer2_0'], 'bn3' if name == 'resnet50' else 'bn2'
    np.testing.assert_array_equal(
        stats['downsample_bn']['var'], weights['layer2.0.downsample.1.running_var']
    )
    np.testing.assert_array_equal(stats[last]['mean'], weights[f'layer2.0.{last}.running_mean'])
    wrapped = backbone_from_torch(
        {f'module.{key}': value for key, value in weights.items()}, config
    )
    assert_equal(wrapped, variables)


def test_names_of_multi_gpu_training_are_the_same_weights(caplog):
    model = model_config('strm', 'resnet18')
    weights = sequential(drawn(torchvision_shapes(*ARCHITECTURES['resnet18']))) | drawn(
        head_shapes('strm', 512, 24)
    )
    wrapped = {
        key.replace('.', '.module.', 1)
        if key.startswith(('resnet', 'attn_pat', 'fr_enrich'))
        else key: value
        for key, value in weights.items()
    }
    with caplog.at_level(logging.INFO):
        assert_equal(from_torch(wrapped, model), from_torch(weights, model))
    changed = sum(a != b for a, b in zip(wrapped, weights))
    assert (
        f"removed 'module.' of multi-GPU training from {changed} of {len(weights)} names"
        in caplog.text
    )
    with pytest.raises(ValueError, match="'attn_pat.gamma' twice, with and without 'module.'"):
        from_torch(weights | {'attn_pat.module.gamma': weights['attn_pat.gamma']}, model)


def notes(caplog):
    """What was logged here, and not by a thread that another test has left to its retries."""
    return [record.getMessage() for record in caplog.records if record.name == 'absl']


def test_missing_query_class_projection_is_drawn_once_and_for_all(caplog):
    model, weights = model_config('strm'), drawn(head_shapes('strm', 64, 24))
    with caplog.at_level(logging.WARNING):
        first, second = from_torch(weights, model), from_torch(weights, model)
    assert caplog.text.count('no query-class projection') == 2
    assert 'drawn from the fixed seed 0' in notes(caplog)[0] and '\n' not in notes(caplog)[0]
    assert_equal(first, second)
    assert_same_tree(first, learner_shapes(model, dim=64))
    projection = first['params']['query_similarity']['cardinality_2']['projection']
    bound = 1 / np.sqrt(128)  # torch.nn.Linear: uniform in ±1/√inputs, weight and bias
    for leaf in projection.values():
        assert np.abs(leaf).max() <= bound
    kernel = np.asarray(projection['kernel'])
    assert abs(kernel).max() > 0.99 * bound
    assert abs(kernel.std() * np.sqrt(3) / bound - 1) < 0.05
    # Pinned, so that accuracies of released checkpoints stay comparable between versions.
    np.testing.assert_allclose(kernel[0, :3] / bound, [-0.971866, -0.079385, -0.789357], atol=1e-6)


def test_without_query_similarity_nothing_is_drawn(caplog):
    model, weights = model_config('strm'), fixture_weights('strm_head_a')
    model.query_similarity.weight = 0.0
    with caplog.at_level(logging.WARNING):
        variables = from_torch(weights, model)
    assert 'query_similarity' not in variables['params']
    assert not notes(caplog)
    assert_same_tree(variables, learner_shapes(model))


def test_all_that_does_not_fit_is_in_one_error():
    model, weights = model_config('strm', 'resnet18'), drawn(head_shapes('strm', 512, 24))
    weights |= sequential(drawn(torchvision_shapes(*ARCHITECTURES['resnet18'])))
    del weights['resnet.5.0.bn1.running_var'], weights['attn_pat.gamma']
    weights['transformers.1.k_linear.weight'] = np.zeros((24, 3 * 512))
    weights['discriminator.weight'] = np.zeros((2, 2))
    weights['resnet.0.weight'] = np.zeros((64, 3, 3, 3))
    weights['transformers.0.k_linear.bias'] = 'no array'
    weights['attn_pat.key_proj.weight'] = np.zeros((512, 256))
    with pytest.raises(ValueError) as error:
        from_torch(weights, model)
    assert str(error.value) == (
        'the state dict is not one of the model that config.model describes: '
        '2 missing: resnet.5.0.bn1.running_var [128], attn_pat.gamma [1]; '
        '2 unknown: transformers.1.k_linear.weight [24, 1536], discriminator.weight [2, 2]; '
        '3 mis-shaped: resnet.0.weight expected [64, 3, 7, 7] found [64, 3, 3, 3], '
        'attn_pat.key_proj.weight expected [512, 512] found [512, 256], '
        'transformers.0.k_linear.bias expected [24] found str'
    )


@pytest.mark.parametrize(
    'name, found',
    [
        ('transformers.0.k_linear.weight', (24, 30)),
        ('attn_pat.Bot_MLP.inp_fc.weight', (8, 15)),
        ('fr_enrich.Bot_MLP.out_fc.bias', (12,)),
        ('fr_enrich.Tok_MLP.inp_fc.weight', (6, 6)),
        ('fr_enrich.Tok_MLP.out_fc.bias', (9,)),
        ('attn_pat.gamma', ()),
        ('new_dist_loss_post_pat.0.clsW.weight', (8, 48)),
    ],
)
def test_one_mis_shaped_array_does_not_spoil_the_inferred_sizes(name, found):
    weights = fixture_weights('strm_head_a')
    expected = list(weights[name].shape)
    weights[name] = np.zeros(found, np.float32)
    with pytest.raises(ValueError) as error:
        from_torch(weights, model_config('strm'))
    assert str(error.value).endswith(
        f': 1 mis-shaped: {name} expected {expected} found {list(found)}'
    )


def test_empty_dict_lists_every_entry_with_unknown_sizes():
    with pytest.raises(ValueError) as error:
        from_torch({}, model_config('trx'))
    assert (
        '12 missing: transformers.0.k_linear.weight [24, ?], transformers.0.k_linear.bias [24]'
        in str(error.value)
    )


def test_half_a_projection_is_an_error_not_a_draw():
    weights = fixture_weights('strm_head_a')
    del weights['new_dist_loss_post_pat.0.clsW.bias']
    with pytest.raises(ValueError, match=r'1 missing: new_dist_loss_post_pat.0.clsW.bias \[8\]$'):
        from_torch(weights, model_config('strm'))


@pytest.mark.parametrize(
    'method, change, message',
    [
        ('strm', dict(variant='paper'), "belong to config.model.variant='code'"),
        (
            'trx',
            dict(matcher=dict(name='matching_net')),
            "no published state dict is known for config.model.matcher.name='matching_net'",
        ),
    ],
)
def test_models_without_published_weights_are_one_line_errors(method, change, message):
    with pytest.raises(ValueError, match=message):
        from_torch({}, model_config(method, **change))


def test_features_backbone_has_nothing_to_load():
    with pytest.raises(ValueError, match="the backbone 'features' has no weights to load"):
        backbone_from_torch({}, model_config('trx').backbone)


def test_from_a_file_to_variables(tmp_path):
    model, weights = model_config('trx'), fixture_weights('trx_head_23_a')
    path = tmp_path / 'checkpoint.pt'
    write_zip(
        path,
        {
            'iteration': 10,
            'model_state_dict': {name: Tensor(value) for name, value in weights.items()},
        },
    )
    assert_equal(load(path, model), from_torch(weights, model))
    with pytest.raises(
        ValueError, match=rf'^{path}: the state dict is not one of the model .* 12 unknown: '
    ):
        load(path, model_config('protonet'))


def test_backbone_from_a_file_in_half_precision(tmp_path):
    with np.load(FIXTURES / 'resnet18_a.npz') as z:
        weights = {key[2:]: z[key] for key in z.files if key.startswith('w/')}
    config = model_config('protonet', 'resnet18').backbone.copy_and_resolve_references().unlock()
    config.width = 8
    half = {
        name: value.astype(np.float16) if value.dtype == np.float32 else value
        for name, value in weights.items()
    }
    path = tmp_path / 'resnet18.pth'
    counters = {
        name: value.astype(np.int64) for name, value in half.items() if name.endswith('tracked')
    }
    write_legacy(path, {name: Tensor(value) for name, value in (half | counters).items()})
    assert_equal(load_backbone(path, config), backbone_from_torch(half, config))
    assert {leaf.dtype for leaf in jax.tree.leaves(load_backbone(path, config))} == {
        jnp.dtype('float32')
    }


@pytest.mark.parametrize('other', ['resnet34', 'resnet50'])
def test_the_file_of_a_larger_network_of_the_family_lists_what_is_too_much(other):
    """It has all names of the smaller one, and more blocks."""
    config = model_config('protonet', 'resnet18').backbone
    with config.unlocked():
        config.width = 4
    weights = drawn(torchvision_shapes(*ARCHITECTURES[other], width=4))
    with pytest.raises(ValueError, match=r'\d+ unknown: .*layer1') as error:
        backbone_from_torch(weights, config)
    assert 'times, after' not in str(error.value)
    classifier = {'fc.weight': np.zeros((10, 32), np.float32), 'fc.bias': np.zeros(10, np.float32)}
    with pytest.raises(ValueError, match='unknown: .*layer1'):  # its features are others
        published.classifier_from({(): weights | classifier}, config)
    right = drawn(torchvision_shapes(*ARCHITECTURES['resnet18'], width=4)) | classifier
    assert published.classifier_from({(): right}, config)['kernel'].shape == (32, 10)
