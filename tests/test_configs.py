"""Every preset of every method, traced at paper size, and one step of a shrunk copy; `validate`;
the plan. The values of the presets are in test_presets.py."""

import contextlib
import functools
import json
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tiny_run import (
    HEADS,
    REPOSITORY,
    TinyScan,
    error_of,
    get_config,
    largest_difference,
    random_batch,
    shallow_networks,
    tiny_config,
    unchanged,
)

from fsar_jax import config as configuration
from fsar_jax import fields, matchers, samplers
from fsar_jax.backbones import BACKBONES
from fsar_jax.backbones.scan import SCAN_NETWORKS
from fsar_jax.data.frame_sampling import RULES
from fsar_jax.enrichment import PATCH_ENRICHMENTS, TOKEN_ENRICHMENTS
from fsar_jax.evaluation import embeddings
from fsar_jax.learner import create_learner
from fsar_jax.matchers import action_coordination, attention_fusion
from fsar_jax.matchers.alignments import ALIGNMENTS
from fsar_jax.matchers.attentive_relation import COMPARISONS
from fsar_jax.mesh import episode_mesh, replicate, shard
from fsar_jax.samplers import task_adaptive
from fsar_jax.stages import frames_read
from fsar_jax.training import train
from fsar_jax.training.inputs import with_features
from fsar_jax.training.losses import episode_loss
from fsar_jax.training.state import (
    TrainState,
    create_optimizer,
    create_train_state,
    example_episode,
    make_train_step,
)

METHODS = sorted(path.stem for path in (REPOSITORY / 'configs').glob('*.py'))
ISSUE_METHODS = ('protonet', 'strm', 'trm', 'trx')
PRESETS = ('', 'ssv2', 'kinetics', 'hmdb51', 'ucf101')
BEHIND_VIM = ('otam', 'trx', 'hyrsm', 'strm')
ALL = [(method, preset) for method in METHODS for preset in PRESETS] + [
    ('vim', f'{method}-ssv2') for method in BEHIND_VIM
]
ALL += [('strm', 'joint1-ssv2'), ('strm', 'joint2-ssv2')]
# Several shots are traced above; another dataset changes values alone (test_presets.py).
WITH_SHOTS = [
    *((method, 'ssv2-1shot') for method in METHODS),
    ('protonet', 'ssv2-1shot-dense'),
    ('protonet', 'ssv2-1shot-both'),
]
SHRUNK = {
    'model.backbone.name': 'resnet_small',
    'model.matcher.dim': 16,
    'model.enrichment.patches': 2,
    'episode.way': 2,
    'episode.shot': 1,
    'episode.query': 1,
    'episode.frames': 4,
    'episode.image_size': 32,
    'data.resize': 32,
    'train.num_steps': 1,
    'train.episodes_per_step': 2,
    'train.accumulation_steps': 1,
    'train.learning_rate': 1e-3,
    'model.sampler.scan_network': 'shufflenet_v2_small',
    'model.sampler.scan_size': 32,
    'model.sampler.dense_frames': 5,
    'model.sampler.num_samples': 8,
    'model.sampler.samples_per_chunk': 4,
    'model.sampler.hidden': 8,
    'model.sampler.task_dim': 4,
}


def same(text):
    """The part of the config that a trace depends on, as JSON, with one query per class: more of
    them only make an axis longer. So the presets of a method share one trace."""
    config = json.loads(text.to_json())
    config['episode']['query'] = 1
    if config['model']['matcher']['name'] != 'prototypes':  # a third of the time; one shows it
        config['model']['backbone']['remat'] = False
    data = {'feature_shape': config['data']['feature_shape']}
    return json.dumps([config['model'], config['episode'], config['train']['loss_reduction'], data])


# Traced with the whole networks. The others have fewer blocks: from the backbone on, the shapes are
# the same.
WHOLE = {same(get_config(*preset)) for preset in (('protonet', 'ssv2'), ('vim', 'ssv2'))}


@functools.cache
def traced(settings):
    """Shapes of (loss, gradients, batch statistics, parameters) of one training episode; settings
    from `same`."""
    model, episode, reduction, data = json.loads(settings)
    model['matcher']['cardinalities'] = tuple(model['matcher']['cardinalities'])
    config = ml_collections.ConfigDict(
        {
            'model': model,
            'episode': episode,
            'train': {'loss_reduction': reduction},
            'data': {'feature_shape': tuple(data['feature_shape'])},
        }
    )
    with contextlib.nullcontext() if settings in WHOLE else shallow_networks():
        learner = create_learner(config.model)
    e, shape = config.episode, tuple(data['feature_shape'])
    asked = e.query_classes or e.way
    clip = frames_read(config), *(shape or (e.image_size, e.image_size, 3))
    dtype = jnp.float32 if shape else jnp.uint8
    support, query = (
        jax.ShapeDtypeStruct((*lead, *clip), dtype)
        for lead in ((e.way, e.shot), (asked * e.query,))
    )
    variables = jax.eval_shape(
        functools.partial(learner.init, train=False), jax.random.key(0), *example_episode(config)
    )
    labels = jax.ShapeDtypeStruct((asked * e.query,), jnp.int32)

    def loss(params, batch_stats, support, query, labels, key):
        prediction, new = learner.apply(
            {'params': params, 'batch_stats': batch_stats},
            support,
            query,
            train=True,
            rngs={'dropout': key, 'sampler': key},
            mutable=['batch_stats'],
        )
        return episode_loss(prediction, labels, config), (prediction.logits, new)

    variables = {'params': {}, 'batch_stats': {}, **variables}
    (value, (logits, new)), gradients = jax.eval_shape(
        jax.value_and_grad(loss, has_aux=True),
        variables['params'],
        variables['batch_stats'],
        support,
        query,
        labels,
        jax.random.key(0),
    )
    return value, logits, gradients, new.get('batch_stats', {}), variables


def parameters(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_the_methods_of_this_version_are_there():
    assert set(ISSUE_METHODS) <= set(METHODS)


@pytest.mark.slow
@pytest.mark.parametrize('method, preset', ALL)
def test_preset_is_traced_at_full_size(method, preset):
    config = get_config(method, preset)
    assert config.is_locked
    configuration.validate(config)
    value, logits, gradients, batch_stats, variables = traced(same(config))
    way = config.episode.way
    assert value.shape == () and value.dtype == jnp.float32
    assert logits.shape == (way, way) and logits.dtype == jnp.float32
    shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
    assert shapes(gradients) == shapes(variables['params']) and shapes(batch_stats) == shapes(
        variables['batch_stats']
    )


@pytest.mark.slow
@pytest.mark.parametrize('method, preset', WITH_SHOTS)
def test_a_preset_with_shots_is_traced_behind_maps(method, preset):
    """What other shots change comes after the backbone, so it sees the maps of one: 7 × 7 of 2048
    channels. A sampler that looks at frames has small networks in their place."""
    config = get_config(method, preset)
    configuration.validate(config)
    if config.model.sampler.name == 'uniform':
        config.update_from_flattened_dict(
            {'model.backbone.name': 'features', 'data.feature_shape': (7, 7, 2048)}
        )
    else:
        config.model.backbone.name = 'resnet_small'
        config.model.sampler.update(scan_network='shufflenet_v2_small', num_samples=8)
    value, logits, *_ = traced(same(config))
    asked = config.episode.query_classes or config.episode.way
    assert value.shape == () and logits.shape == (asked, config.episode.way)


@pytest.mark.slow
def test_parameter_counts():
    """Fig. 22 of VIM: TRX with Ω = {2, 3} has 47.1 M, HyRSM 65.6 M, and VIM 32.4 M more than
    ProtoNet."""
    counts, backbone = {}, None
    for method in (*ISSUE_METHODS, 'hyrsm', 'vim'):
        config = get_config(method, 'ssv2')
        assert config.model.backbone.name == 'resnet50'
        params = traced(same(config))[-1]['params']
        backbone = backbone or params['backbone']  # of ProtoNet, which comes first, the whole one
        counts[method] = parameters({**params, 'backbone': backbone}) / 1e6
    print({method: f'{count:.2f} M' for method, count in counts.items()})
    assert abs(counts['trx'] - 47.1) < 0.05 and abs(counts['hyrsm'] - 65.6) < 0.2
    assert abs(counts['vim'] - counts['protonet'] - 32.4) < 0.4
    # By hand: ResNet-50 without its classifier; keys and values of pairs of 2048 channels with bias
    # and one LayerNorm.
    assert counts['protonet'] == pytest.approx(23.508032)
    assert counts['trm'] - counts['protonet'] == pytest.approx(
        (2 * (4096 * 1152 + 1152) + 2 * 1152) / 1e6
    )
    d = 2048
    attention = (
        3 * (d * d + d) + (d * d // 2 + d // 2) + (d * d // 4 + d // 2) + (d * d // 2 + d) + 1
    )
    mixer = 2 * (8 * 8 + 8) + 2 * (d * d + d)
    assert counts['strm'] - counts['trm'] == pytest.approx(
        (attention + mixer + 2 * d * d // 2 + d // 2) / 1e6
    )


@functools.cache
def start(model, episode):
    """Initial variables, as numpy, of the model that a config describes; model and episode as
    JSON."""
    config = as_config({'model': json.loads(model), 'episode': json.loads(episode)})
    return jax.tree.map(
        np.array, create_train_state(config, create_learner(config.model)).variables
    )


def as_config(changes):
    """The default config with changes that went through JSON."""
    config = configuration.default_config()
    changes['model']['matcher']['cardinalities'] = tuple(
        changes['model']['matcher']['cardinalities']
    )
    with config.unlocked():
        config.update(changes)
    return config


@functools.cache
def one_step(settings):
    """(parameters before, after, metrics) of one step of a config given as JSON."""
    changes = json.loads(settings)
    config = as_config(changes)
    before = start(json.dumps(changes['model']), json.dumps(changes['episode']))
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        **jax.tree.map(jnp.array, before),
        opt_state=create_optimizer(config.train).init(before['params']),
    )
    learner, mesh = create_learner(config.model), episode_mesh()
    batch = shard(mesh, random_batch(config), axis=1)
    state, metrics = make_train_step(learner, config, mesh)(replicate(mesh, state), batch)
    return (
        before['params'],
        jax.tree.map(np.asarray, state.params),
        jax.tree.map(np.asarray, metrics),
    )


# Compiling takes long, and once shrunk, the presets of a method differ by optimiser, remat and
# groups: one method shows that, on a residual network. The others are traced above, and their
# values are in test_presets.py. The HEADS train in training/test_devices.py.
# What is behind VIM's sampler is tried in tests/learner/test_samplers.py.
@pytest.mark.slow
@pytest.mark.parametrize(
    'method, preset',
    [*((method, '') for method in METHODS if method not in HEADS), ('otam', 'ssv2')],
)
def test_a_shrunk_copy_trains(method, preset, monkeypatch):
    monkeypatch.setattr(samplers, 'create_scan_network', lambda name, **_: TinyScan())
    config = get_config(method, preset)
    config.update_from_flattened_dict(SHRUNK)
    configuration.validate(config)
    changes = json.loads(config.to_json())
    del changes['data'], changes['eval']  # a step does not read them, so some presets share one
    with contextlib.nullcontext() if method == 'otam' else shallow_networks():
        before, after, metrics = one_step(json.dumps(changes))
    assert np.isfinite(metrics['losses']).all() and metrics['finite'] and metrics['loss'] > 0
    rate = config.train.learning_rate
    assert (
        0
        < largest_difference(before, after)
        < (1e4 if config.train.optimizer == 'sgd' else 2) * rate
    )
    # A gate that starts at 0 keeps what lies behind it from learning in the first step; a bias of
    # keys cancels in a softmax.
    assert len(unchanged(before, after)) < len(jax.tree.leaves(before)) / 2


@pytest.mark.slow
def test_every_value_is_read(tiny_data, tmp_path, monkeypatch, shallow):
    """Records which leaves fsar_jax asks for, outside of its checks, in runs that take every
    branch."""
    package, read = str(pathlib.Path(configuration.__file__).parent), set()
    original = {
        name: getattr(ml_collections.ConfigDict, name)
        for name in ('__getattr__', '__getitem__', 'get')
    }

    def recording(name):
        def get(self, key, *default):
            frame = sys._getframe(1)
            asked_by = pathlib.Path(frame.f_code.co_filename)
            if (
                asked_by.is_relative_to(package)
                and frame.f_code.co_name != 'setting_of'
                and not frame.f_code.co_name.startswith('check_')
            ):
                read.add((frozenset(self.keys()), key))
            return original[name](self, key, *default)

        return get

    config = tiny_config(
        'strm',
        {
            'data.dir': str(tiny_data),
            'train.num_steps': 2,
            'episode.query': 1,
            'eval.num_episodes': 5,
            'eval.val_episodes': 5,
            'data.flip': False,
        },
    )
    for name in original:
        monkeypatch.setattr(ml_collections.ConfigDict, name, recording(name))
    train.train_and_evaluate(config, tmp_path, 'strm')
    for changes in (
        {'train.optimizer': 'sgd', 'train.schedule': 'steps', 'train.schedule_steps': (1,)},
        {'train.schedule': 'periodic'},
    ):
        other = tiny_config('strm', changes)
        train.make_train_step(create_learner(other.model), other, episode_mesh())
    vim = tiny_config('vim', {'model.sampler.sigma_schedule': 'steps'})
    make_train_step(create_learner(vim.model), vim, episode_mesh())
    example_episode(vim)
    chosen = tiny_config('vim', {'model.sampler.spatial': 'none'})
    learner = create_learner(chosen.model)
    start = jax.eval_shape(learner.init, jax.random.key(0), *example_episode(chosen))
    clips = jax.ShapeDtypeStruct((1, frames_read(chosen), 32, 32, 3), 'uint8')
    embeddings.storage(embeddings.TrainedModel(learner, start, chosen, episode_mesh()), clips, 1)
    for method, changes in (
        *((method, {}) for method in METHODS),
        ('vim', {'model.sampler.name': 'motion_guided'}),
        ('trm', {'model.enrichment.patch': 'joint_self_attention'}),
        *(
            ('trm', {'model.backbone.name': name})
            for name in ('efficientnet_lite0', 'vit_s16', 'resnet3d50')
        ),
    ):
        create_learner(tiny_config(method, changes).model)
    on_features = {'model.backbone.name': 'features', 'data.feature_shape': (1, 1, 8)}
    example_episode(tiny_config('trm', on_features))
    with pytest.raises(FileNotFoundError):
        with_features(tiny_config('trm', {**on_features, 'data.features': str(tmp_path)}))
    error_of('--config=configs/strm.py', '--config.data.dir=/nowhere')  # what main.py reads itself
    monkeypatch.undo()

    def leaves(section, prefix=''):
        for key, value in section.items():
            if isinstance(value, ml_collections.ConfigDict):
                yield from leaves(value, f'{prefix}{key}.')
            elif (frozenset(section.keys()), key) in read:
                continue
            elif not configuration.SETTINGS[prefix + key].starts:  # read by that property
                yield prefix + key

    assert not (unread := sorted(leaves(config))), unread


def test_a_wrong_key_is_refused():
    config = get_config('strm')
    with pytest.raises(AttributeError, match='sho'):
        config.episode.sho = 1
    with pytest.raises(KeyError, match='sho'):
        config.episode.update(sho=1)
    with pytest.raises(TypeError):
        config.episode.shot = 'one'
    with pytest.raises(
        ValueError,
        match="unknown preset 'ssv1': choose one of ssv2, ssv2_full, ssv2_small, kinetics, hmdb51, "
        "ucf101, activitynet, with or without a number of shots as in ssv2-1shot, or none for",
    ):
        get_config('strm', 'ssv1')
    for preset in ('ssv2-0shot', 'ssv2-1shots', 'ssv2-shot', 'ssv2-1shot-1shot', '-1shot'):
        with pytest.raises(ValueError, match=f"unknown preset '{preset}': choose one of ssv2, "):
            get_config('strm', preset)
    for preset in ('ssv1', 'trx-ssv1', 'tsm', 'tsm-ssv2', 'trx-ssv2-ssv2', '-ssv2', 'trx-1shot'):
        with pytest.raises(
            ValueError,
            match=f"unknown preset '{preset}': choose one of ssv2, .*, otam, trx, hyrsm, strm, two "
            "as in trx-ssv2",
        ):
            get_config('vim', preset)


CHOICES = (
    'model.variant',
    'model.dtype',
    'model.backbone.batch_norm',
    'model.backbone.normalize',
    'model.enrichment.patch',
    'model.enrichment.frame',
    'model.matcher.cardinality_reduction',
    'data.crop',
    'data.sampling',
    'data.short_videos',
    'train.loss_reduction',
    'train.optimizer',
    'train.schedule',
    'eval.split',
)
AT_LEAST = {
    'episode.way': 2,
    **dict.fromkeys(
        (
            'episode.shot',
            'episode.query',
            'episode.frames',
            'episode.image_size',
            'eval.query',
            'train.num_steps',
            'train.episodes_per_step',
            'train.accumulation_steps',
            'train.checkpoint_steps',
            'train.log_steps',
            'train.keep_checkpoints',
            'eval.num_episodes',
            'eval.episodes_per_chunk',
            'eval.videos_per_batch',
            'model.enrichment.patches',
            'model.backbone.batch_norm_groups',
        ),
        1,
    ),
    **dict.fromkeys(
        (
            'eval.val_episodes',
            'data.num_threads',
            'data.num_workers',
            'seed',
            'eval.seed',
            'train.warmup_steps',
        ),
        0,
    ),
}


def message_of(changes):
    config = get_config('trx')
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError) as error:
        configuration.validate(config)
    assert '\n' not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize('key', CHOICES)
def test_an_unknown_choice_is_named(key):
    assert re.match(rf"config\.{re.escape(key)}='best' is not one of \S", message_of({key: 'best'}))


@pytest.mark.parametrize('key', AT_LEAST)
def test_a_value_that_is_too_small_is_named(key):
    least = AT_LEAST[key]
    assert message_of({key: least - 1}).startswith(
        f'config.{key}={least - 1} is too small, it must be at least {least}'
    )


@pytest.mark.parametrize(
    'key',
    [
        'matcher.loss_weight',
        'matcher.inter_weight',
        'classifier.weight',
        'query_similarity.weight',
        'sampler.intra_weight',
        'sampler.sigma',
        'sampler.sigma_end',
    ],
)
def test_a_weight_below_0_is_named(key):
    for value in (-1.0, math.nan):
        assert (
            message_of({f'model.{key}': value}) == f'config.model.{key}={value} must be at least 0'
        )


NUMBERS = [key for key, known in configuration.SETTINGS.items() if known.kind in (int, float)]
SMALLER, LARGER = (
    {int: lambda x: x - 1, float: lambda x: math.nextafter(x, -math.inf)},
    {int: lambda x: x + 1, float: lambda x: math.nextafter(x, math.inf)},
)


def ends(known):
    """The smallest and the largest value that a setting takes, of a list for each element."""
    least, most = known.at_least, known.at_most
    if known.above is not None:
        least = known.above + fields.SMALLEST
    if known.below is not None:
        most = math.nextafter(known.below, -math.inf)
    return least, fields.LARGEST[known.kind] if most is None else most


def placed(key, value):
    """The value as its setting takes it: alone, or in a list."""
    known = configuration.SETTINGS[key]
    return (value,) * (known.length or 1) if isinstance(known.default, tuple) else value


def refused(key, value):
    """What is said of a value that is wrong by itself."""
    wrong = fields.complaint(configuration.SETTINGS[key], value)
    assert wrong and '\n' not in wrong, (key, value)
    return wrong


@pytest.mark.parametrize('key', NUMBERS)
def test_every_number_has_a_range_and_takes_both_ends_of_it(key):
    known = configuration.SETTINGS[key]
    least, most = ends(known)
    if key == 'model.matcher.cardinalities':  # 1 to episode.frames, which another test tries
        least = 1
    else:
        refused(
            key,
            placed(
                key,
                SMALLER[known.kind](known.kind(known.above if known.above is not None else least)),
            ),
        )
    refused(key, placed(key, LARGER[known.kind](known.kind(most))))
    for value in (least, most):
        assert not fields.complaint(known, placed(key, known.kind(value))), value
    for value in (math.nan, math.inf, -math.inf):
        refused(key, placed(key, value))


@pytest.mark.parametrize('key', configuration.SETTINGS)
def test_every_setting_has_one_type(key):
    known = configuration.SETTINGS[key]
    a_value = {bool: True, int: 1, float: 0.5, str: 'a', 'path': 'a'}
    of_another = {
        bool: (int, float, str),
        int: (bool, float, str),
        float: (bool, str),
        str: (int, bool, float),
        'path': (int, bool, float),
    }
    for kind in of_another[known.kind]:
        refused(key, placed(key, a_value[kind]))
    refused(key, {'a': 1})
    if isinstance(known.default, tuple):
        refused(key, a_value[known.kind])
    else:
        refused(key, (known.default,))
    assert known.optional == (not fields.complaint(known, None))
    assert not fields.complaint(known, known.default)
    assert known.affects in fields.AFFECTS and known.help
    if known.length:
        refused(key, known.default[:-1])
        refused(key, (*known.default, known.default[0]))
    if known.choices:
        assert known.kind is str and not any(
            fields.complaint(known, choice) for choice in known.choices
        )
        refused(key, 'another')
    elif known.kind in (str, 'path') and not known.optional:
        refused(key, '')


def test_the_choices_are_those_of_the_stages():
    choices = {
        'sampler.name': samplers.SAMPLERS,
        'sampler.spatial': task_adaptive.SPATIAL,
        'sampler.scan_network': SCAN_NETWORKS,
        'backbone.name': BACKBONES,
        'enrichment.patch': PATCH_ENRICHMENTS,
        'enrichment.frame': TOKEN_ENRICHMENTS,
        'matcher.name': matchers.MATCHERS,
        'matcher.alignment': ALIGNMENTS,
        'matcher.comparison': COMPARISONS,
        'matcher.spatial': action_coordination.SPATIAL,
        'matcher.kernel': attention_fusion.KERNELS,
    }
    for key, known in choices.items():
        assert set(configuration.SETTINGS[f'model.{key}'].choices) == set(known), key
    assert configuration.SETTINGS['data.sampling'].choices == RULES


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('train.learning_rate', -1e-3, 'config.train.learning_rate=-0.001 must be at least 0'),
        (
            'model.sampler.smoothing',
            math.nan,
            'config.model.sampler.smoothing=nan must be at least 0 and at most 10',
        ),  # of no effect here
        ('train.clip_norm', math.nan, 'config.train.clip_norm=nan must be at least 0'),
        (
            'train.clip_norm',
            math.inf,
            'config.train.clip_norm=inf must be at least 0 and at most 3.4028234663852886e+38',
        ),
        (
            'model.matcher.dropout',
            1.0,
            'config.model.matcher.dropout=1.0 must be at least 0 and less than 1',
        ),
        (
            'model.matcher.smoothness',
            1e-300,
            'config.model.matcher.smoothness=1e-300 must be greater than 0',
        ),
        ('model.matcher.dim', 0, 'config.model.matcher.dim=0 is too small, it must be at least 1'),
        (
            'model.matcher.dim',
            True,
            'config.model.matcher.dim=True must be a whole number, at least 1',
        ),
        (
            'seed',
            2**32,
            'config.seed=4294967296 is too large, it must be at least 0 and at most 4294967295',
        ),
        (
            'seed',
            2**63,
            'config.seed=9223372036854775808 is too large, it must be at least 0 and at most '
            '4294967295',
        ),
        (
            'train.num_steps',
            2**31,
            'config.train.num_steps=2147483648 is too large, it must be at least 1 and at most '
            '2147483647',
        ),
        (
            'train.schedule_steps',
            ('abc',),
            "config.train.schedule_steps=('abc',) must be a list of whole numbers, each at least 1",
        ),
        (
            'model.matcher.cardinalities',
            ('abc',),
            "config.model.matcher.cardinalities=('abc',) must be a list of whole numbers",
        ),
        (
            'model.matcher.position',
            (1.0,),
            'config.model.matcher.position=(1.0,) must be 2 numbers, each at least 0',
        ),
        ('data.dir', '', "config.data.dir='' must not be empty"),
        (
            'model.matcher.name',
            'a\nb',
            f"config.model.matcher.name='a\\nb' is not one of {', '.join(matchers.MATCHERS)}",
        ),
    ],
)
def test_a_refused_value_is_one_line_that_says_what_it_may_be(key, value, message):
    assert message_of({key: value}) == message


def test_a_learner_is_not_made_of_values_outside_their_range():
    config = get_config('trx')
    config.model.matcher.dim = 0
    with pytest.raises(
        ValueError, match='config.model.matcher.dim=0 is too small, it must be at least 1'
    ):
        create_learner(config.model)
    for cardinalities in ((), (2, 2), (0, 2)):
        config.model.matcher.update(dim=8, cardinalities=cardinalities)
        with pytest.raises(
            ValueError,
            match=r'cardinalities=\(.*\) must be distinct and at least 1, and there must be one',
        ):
            create_learner(config.model)


def test_a_home_is_expanded_in_every_path_and_an_address_refused(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    config = get_config('trx')
    paths = [key for key, known in configuration.SETTINGS.items() if known.kind == 'path']
    assert paths == [
        'model.sampler.scan_weights',
        'model.backbone.weights',
        'data.dir',
        'data.features',
        'eval.episodes_file',
    ]
    assert configuration.resolve_paths(config).to_json() == config.to_json()
    config.update_from_flattened_dict({key: f'~/{key}' for key in paths})
    resolved = configuration.resolve_paths(config)
    for key in paths:
        assert (
            functools.reduce(lambda tree, part: tree[part], key.split('.'), resolved)
            == f'/home/someone/{key}'
        )
    for key in paths:
        config = get_config('trx')
        config.update_from_flattened_dict({key: 'gs://bucket/runs'})
        with pytest.raises(
            ValueError,
            match=f'config.{key}=gs://bucket/runs: gs:// addresses are not read or written here',
        ):
            configuration.resolve_paths(config)


def test_values_that_do_not_fit_together():
    assert message_of({'episode.frames': 2}) == (
        'config.model.matcher.cardinalities=(2, 3) must be distinct and lie between 1 and '
        'config.episode.frames=2, '
        'and there must be one'
    )
    for cardinalities in ((), (2, 2), (0, 2)):
        assert message_of({'model.matcher.cardinalities': cardinalities}).startswith(
            f'config.model.matcher.cardinalities={cardinalities} must be distinct and lie'
        )
    assert message_of(
        {'model.matcher.name': 'set_matching', 'model.matcher.position': (0.0, 0.0)}
    ) == (
        'config.model.matcher.position=(0.0, 0.0): the first, by which features are divided, must '
        'be greater than 0'
    )
    assert message_of({'model.backbone.name': 'features'}).startswith(
        "config.model.backbone.name='features' reads features: set --config.data.features to"
    )
    assert message_of({'data.features': 'a/folder'}).startswith(
        "config.data.features is set, and config.model.backbone.name='resnet_small' reads frames"
    )
    assert message_of({'episode.image_size': 80}).startswith(
        'config.episode.image_size=80 cannot be cropped from a short side of config.data.resize=64'
    )
    assert message_of({'episode.query_classes': 6}) == (
        'config.episode.query_classes=6 is more than config.episode.way=5: lower it, or leave it '
        'out for all classes'
    )
    assert message_of({'data.train_clips_per_class': 3}) == (
        'config.data.train_clips_per_class=3 is fewer than config.episode.shot=1 + '
        'config.episode.query=3: raise it, or lower these'
    )
    for steps in ((2, 2), (3, 2), (1, 5)):
        assert message_of(
            {'train.schedule': 'steps', 'train.schedule_steps': steps, 'train.warmup_steps': 1}
        ) == (
            f'config.train.schedule_steps={steps} must ascend, from above '
            'config.train.warmup_steps=1'
        )
    assert message_of({'train.schedule': 'periodic', 'train.schedule_factor': 0.0}) == (
        "config.train.schedule_factor=0.0 must be greater than 0 for config.train.schedule="
        "'periodic': nothing would be learned after the first drop"
    )
    for schedule in ('constant', 'cosine', 'steps', 'periodic'):
        assert message_of({'train.schedule': schedule, 'train.warmup_steps': 240}) == (
            'config.train.warmup_steps=240 must be smaller than config.train.num_steps=240: the '
            'learning rate would never be reached'
        )
