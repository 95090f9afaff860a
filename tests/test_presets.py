"""Every value of every preset, beside its source: the paper, or the row of docs/paper_vs_code.md.

A preset holds these values and, but for memory and speed, changes nothing else.
"""

import functools

import pytest
from tiny_run import REPOSITORY, get_config

from fsar_jax.config import SETTINGS, default_config

# TRX and STRM, whose recipe all presets share: STRM Sec. 4 and supplement; rows S13 to S21.
RECIPE = {
    'seed': 0,
    'episode.way': 5,
    'episode.shot': 5,
    'episode.query': 4,  # S16
    'episode.frames': 8,  # S20
    'episode.image_size': 224,
    'model.variant': 'code',
    'model.dtype': 'float32',
    'model.align_at_test': True,
    'model.sampler.name': 'uniform',
    'model.sampler.frames': 8,
    'model.backbone.name': 'resnet50',
    'model.backbone.weights': None,
    'model.backbone.remat': True,  # the same numbers in less memory
    'model.backbone.normalize': 'unit',  # S17
    'model.backbone.batch_norm': 'split',  # S21
    'model.backbone.batch_norm_groups': 4,  # S21
    'model.enrichment.patch': 'none',
    'model.enrichment.frame': 'none',
    'model.enrichment.temporal_transform': False,
    'model.matcher.dim': 1152,
    'model.matcher.loss_weight': 1.0,
    'model.query_similarity.weight': 0.0,
    'model.classifier.classes': None,
    'model.classifier.weight': 0.0,
    'data.resize': 256,  # S19
    'data.crop': 'random',  # S18
    'data.flip': True,  # S18
    'data.sampling': 'trx',  # S20
    'data.short_videos': 'drop',  # S20
    'train.num_steps': -(-20_010 // 16),  # S16, in steps of 16 episodes
    'train.episodes_per_step': 16,  # S13
    'train.loss_reduction': 'sum',  # S13
    'train.optimizer': 'sgd',
    'train.learning_rate': 1e-4,
    'train.momentum': 0.0,
    'train.weight_decay': 0.0,
    'train.schedule': 'constant',
    'train.warmup_steps': 0,
    'train.clip_norm': 0.0,
    'train.checkpoint_steps': 250,  # ours
    'eval.split': 'test',
    'eval.seed': 0,
    'eval.num_episodes': 10_000,  # S16
    'eval.query': 1,  # S16
    'eval.val_episodes': 1000,  # T, ours
}
OF_DATASET = {
    'ssv2_full': {
        'data.dataset': 'ssv2_full_otam',
        'train.num_steps': -(-75_000 // 16),
        'train.learning_rate': 1e-3,
    },
    'ssv2_small': {
        'data.dataset': 'ssv2_small_cmn',
        'train.num_steps': -(-75_000 // 16),
        'train.learning_rate': 1e-3,
    },
    'kinetics': {'data.dataset': 'kinetics100_cmn', 'episode.query': 5},  # S16
    'hmdb51': {'data.dataset': 'hmdb51_arn'},
    'ucf101': {'data.dataset': 'ucf101_arn'},
}
TUPLES = {
    'model.matcher.name': 'cross_transformer',
    'model.matcher.cardinality_reduction': None,  # S8
    'model.matcher.dropout': 0.1,  # S5
}
OF_METHOD = {
    'protonet': {
        'model.matcher.name': 'prototypes',
        'model.matcher.distance': 'frame_cosine',  # VIM Sec. 3.5, TA2N
    },
    'trm': {**TUPLES, 'model.matcher.cardinalities': (2,)},
    'trx': {**TUPLES, 'model.matcher.cardinalities': (2, 3)},  # TRX Sec. 4
    'strm': {
        **TUPLES,
        'model.matcher.cardinalities': (2,),  # S15
        'model.enrichment.patch': 'self_attention',  # STRM Sec. 3.1
        'model.enrichment.frame': 'mlp_mixer',
        'model.enrichment.patches': 4,
        'model.enrichment.dropout': 0.1,  # S5
        'model.query_similarity.weight': 0.1,  # lambda, STRM Sec. 4
        'model.query_similarity.dim': None,  # half of the feature dimension
    },
    'otam': {
        'model.matcher.name': 'otam',
        'model.matcher.alignment': 'otam',
        'model.matcher.smoothness': 0.1,  # OTAM Sec. 4
        'model.backbone.normalize': 'grey',  # H6
        'train.loss_reduction': 'mean',  # below the table of OTAM
    },
    'hyrsm': {
        'model.matcher.name': 'set_matching',
        'model.matcher.heads': 8,
        'model.matcher.position': (10.0, 1.0),  # H2
        'model.classifier.weight': 0.6,  # H5
        'model.backbone.normalize': 'grey',  # H6
        'train.loss_reduction': 'mean',  # H5
    },
    'mastaf': {
        'model.matcher.name': 'attention_fusion',
        'model.matcher.alpha': 1.0,  # M4
        'model.matcher.kernel': 'meta_learner',
        'model.matcher.residual': True,  # M3
        'model.matcher.loss_weight': 0.5,  # M4
        'model.classifier.weight': 1.0,  # M4
        'model.backbone.name': 'resnet3d50',  # M9
        'model.backbone.batch_norm_groups': 1,
        'episode.frames': 16,
        'model.sampler.frames': 16,
        'data.crop': 'centre',  # M8
        'train.loss_reduction': 'mean',
    },
    'ta2n': {
        'model.matcher.name': 'action_coordination',
        'model.matcher.temporal': True,
        'model.matcher.spatial': 'mask',
        'model.matcher.order': 'temporal_first',
        'model.matcher.perturbation': 0.2,  # A8
        'model.matcher.distance_norm': False,  # A14
        'model.matcher.prototype': 'aligned',  # A12
        'model.matcher.inter_weight': 0.0,
        'model.enrichment.temporal_transform': True,
        'model.enrichment.dropout': 0.5,  # A15
    },
}
NO_FLIP = {'data.flip': False}  # A16: TA2N and VIM, on SSv2
# In front of any method: VIM Sec. 4.2; rows V1 to V22.
SAMPLER = {
    'model.sampler.name': 'task_adaptive',
    'model.sampler.variant': 'paper',
    'model.sampler.dense_frames': 20,  # V16
    'model.sampler.temporal': True,
    'model.sampler.spatial': 'amplify',
    'model.sampler.adaptive': True,
    'model.sampler.at_test': True,  # V20
    'model.sampler.scan_network': 'shufflenet_v2_x0_5',  # V15
    'model.sampler.scan_size': 64,  # V15
    'model.sampler.scan_weights': None,
    'model.sampler.hidden': 512,
    'model.sampler.task_dim': 128,  # V8
    'model.sampler.num_samples': 500,  # V4
    'model.sampler.sigma': 0.1,  # V1
    'model.sampler.sigma_schedule': 'steps',
    'model.sampler.sigma_factor': 0.8,
    'model.sampler.sigma_steps': 2000 * 200 // 8,
    'model.sampler.sigma_end': 0.0,
    'model.sampler.intra_weight': 0.5,  # mu_1
    'model.backbone.batch_norm_groups': 1,
    'train.episodes_per_step': 8,  # V19, ours
    'train.num_steps': 15_000 * 200 // 8,
    'train.learning_rate': 1e-2,
    'train.schedule': 'steps',
    'train.schedule_steps': (5000 * 200 // 8, 10_000 * 200 // 8),
    'train.schedule_factor': 0.9,
    'train.loss_reduction': 'mean',
}
VIM = {
    **OF_METHOD['ta2n'],
    **SAMPLER,
    'model.variant': 'paper',
    'model.matcher.prototype': 'mean',  # V22
    'model.matcher.inter_weight': 1.0,  # mu_2
}
# Without a row above: the recipe, and what the embedded default of the method changes.
WITHOUT_ROW = sorted(
    {path.stem for path in (REPOSITORY / 'configs').glob('*.py')} - {*OF_METHOD, 'vim'}
)
BEHIND_VIM = ('otam', 'trx', 'hyrsm', 'strm')  # V21
FULL_SSV2 = ('strm', 'trm', 'trx', 'ta2n', 'mastaf')  # S23


def expected(method, preset):
    """The row of a method, or of 'vim:trx', for a dataset."""
    method, _, behind = method.partition(':')
    if preset == 'ssv2':
        preset = 'ssv2_full' if method in FULL_SSV2 else 'ssv2_small'
    flip = NO_FLIP if preset.startswith('ssv2') and method in ('ta2n', 'vim') and not behind else {}
    if method in WITHOUT_ROW:
        of_method = changes(get_config(method))
    else:
        of_method = (
            {**OF_METHOD[behind], **SAMPLER} if behind else {**OF_METHOD, 'vim': VIM}[method]
        )
    return {**RECIPE, **OF_DATASET[preset], **of_method, **flip}


def value_of(config, key):
    value = functools.reduce(lambda tree, part: tree[part], key.split('.'), config)
    return tuple(value) if isinstance(value, (list, tuple)) else value


def changes(config):
    """{key: value} of all settings that are not the default ones."""
    default = default_config()
    return {
        key: value for key in SETTINGS if (value := value_of(config, key)) != value_of(default, key)
    }


METHODS = [*OF_METHOD, 'vim', *WITHOUT_ROW, *(f'vim:{method}' for method in BEHIND_VIM)]
PRESETS = ('ssv2', *OF_DATASET)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('preset', PRESETS)
def test_a_preset_has_the_published_values_and_changes_nothing_else(method, preset):
    name, _, behind = method.partition(':')
    config = get_config(name, f'{behind}-{preset}' if behind else preset)
    row = expected(method, preset)
    found = {key: value_of(config, key) for key in row}
    assert {key: value for key, value in found.items() if value != row[key]} == {}
    free = {key for key, known in SETTINGS.items() if known.affects == 'cost'}
    assert changes(config).keys() - free <= row.keys()


# What an embedded default takes from its method; all else is `default_config`.
EMBEDDED = {
    'protonet': {'model.matcher.name': 'prototypes'},
    'trm': {'model.matcher.name': 'cross_transformer', 'model.matcher.cardinalities': (2,)},
    'trx': {'model.matcher.name': 'cross_transformer', 'model.matcher.cardinalities': (2, 3)},
    'strm': {
        'model.matcher.name': 'cross_transformer',
        'model.matcher.cardinalities': (2,),
        'model.enrichment.patch': 'self_attention',
        'model.enrichment.frame': 'mlp_mixer',
        'model.query_similarity.weight': 0.1,
    },
    'otam': {
        'model.matcher.name': 'otam',
        'model.matcher.alignment': 'otam',
        'model.matcher.smoothness': 0.1,
    },
    'hyrsm': {
        'model.matcher.name': 'set_matching',
        'model.matcher.heads': 8,
        'model.classifier.weight': 0.6,
        'train.loss_reduction': 'mean',
    },
    'mastaf': {
        'model.matcher.name': 'attention_fusion',
        'model.matcher.alpha': 1.0,
        'model.matcher.kernel': 'meta_learner',
        'model.matcher.residual': True,
        'model.matcher.loss_weight': 0.5,
        'model.classifier.weight': 1.0,
        'train.loss_reduction': 'mean',
    },
    'ta2n': {
        'model.matcher.name': 'action_coordination',
        'model.matcher.temporal': True,
        'model.matcher.spatial': 'mask',
        'model.matcher.perturbation': 0.2,
        'model.enrichment.temporal_transform': True,
    },
}
IN_FRONT = {
    'model.sampler.name': 'task_adaptive',
    'model.sampler.dense_frames': 20,
    'model.sampler.intra_weight': 0.5,
    'data.dataset': 'synthetic_actions/untrimmed',
}
EMBEDDED['vim'] = {
    **EMBEDDED['ta2n'],
    **IN_FRONT,
    'model.variant': 'paper',
    'model.matcher.prototype': 'mean',
    'model.matcher.inter_weight': 1.0,
}
EMBEDDED |= {f'vim:{method}': {**EMBEDDED[method], **IN_FRONT} for method in BEHIND_VIM}


@pytest.mark.parametrize('method', METHODS)
def test_an_embedded_default_departs_from_the_common_one_by_its_method_alone(method):
    name, _, behind = method.partition(':')
    found, default = changes(get_config(name, behind)), default_config()
    if method in WITHOUT_ROW:
        assert all(key.startswith('model.') or key == 'train.loss_reduction' for key in found)
    else:
        row = EMBEDDED[method]
        assert found == {
            key: value for key, value in row.items() if value != value_of(default, key)
        }
