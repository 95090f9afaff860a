"""Every value of every preset, beside its source: the paper, or the row of docs/paper_vs_code.md.

A preset holds these values and, but for memory and speed, changes nothing else.
"""

import functools
import re

import jax
import numpy as np
import pytest
from tiny_run import REPOSITORY, get_config

from fsar_jax.config import SETTINGS, default_config, validate
from fsar_jax.recipe import note_on_shots
from fsar_jax.training.state import learning_rate_schedule

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
    'activitynet': {'data.dataset': 'activitynet100'},  # VIM Sec. 4.3.2
}
# Row S24, ours: as many clips in an episode as at five shots. The rate for a sum over the queries,
# and for their mean; at five shots 1e-3 · 20 or 1e-4 · 20 (Kinetics 25) for the mean.
OF_SHOTS = {
    (1, 'ssv2'): (8, 5e-4, 2e-2),
    (1, 'kinetics'): (9, 1e-4 * 25 / 45, 2.5e-3),
    (1, 'other'): (8, 5e-5, 2e-3),
    (3, 'ssv2'): (6, 1e-3 * 20 / 30, 2e-2),
    (3, 'other'): (6, 1e-4 * 20 / 30, 2e-3),
    (5, 'ssv2'): (4, 1e-3, 2e-2),
    (5, 'kinetics'): (5, 1e-4, 2.5e-3),
    (5, 'other'): (4, 1e-4, 2e-3),
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
        'model.backbone.batch_norm': 'joint',  # M11
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
# With a number of shots, these methods have their own recipe. TA2N: its supplement, row A18.
TA2N = {
    'episode.query': 5,
    'data.sampling': 'segment',  # A17
    'model.backbone.batch_norm_groups': 1,
    'model.matcher.reference': 'random',  # A11
    'model.matcher.perturbation_every': 40 * 200 // 8,  # A10
    'train.learning_rate': 1e-3,
    'train.momentum': 0.9,
    'train.episodes_per_step': 8,  # ours
    'train.num_steps': 200 * 200 // 8,
    'train.schedule': 'periodic',
    'train.schedule_every': 5 * 200 // 8,
    'train.schedule_factor': 0.5,
    'train.checkpoint_steps': 5 * 200 // 8,  # ours
    'eval.num_episodes': 5000,
}
TA2N_SSV2 = TA2N | {
    'train.num_steps': 600 * 200 // 8,
    'train.schedule_every': 30 * 200 // 8,
    'train.schedule_factor': 0.8,
    'train.checkpoint_steps': 30 * 200 // 8,
}
TA2N_KINETICS = TA2N | {
    'train.momentum': 0.0,
    'train.schedule_every': 20 * 200 // 8,
    'train.schedule_factor': 0.9,
    'train.checkpoint_steps': 20 * 200 // 8,
}
# HyRSM: its released configs, rows H7 and H8.
HYRSM = {
    'model.backbone.batch_norm_groups': 1,
    'data.sampling': 'segment',
    'data.test_jitter': True,
    'model.classifier.weight': 0.15,
    'model.matcher.relation_dropout': (0.1, 0.2, 0.1, 0.05),  # H9
    'model.matcher.relation_start': 'published',
    'train.optimizer': 'adam',
    'train.schedule': 'steps',
    'train.schedule_factor': 0.1,
}
HYRSM_SSV2_FULL = HYRSM | {
    'model.classifier.weight': 0.6,
    'train.learning_rate': 1e-4,
    'train.weight_decay': 5e-5,
    'train.warmup_steps': 3000 // 4,
    'train.schedule_steps': (9000 // 4, 15_000 // 4),
    'train.num_steps': 40_000 // 4,
}
HYRSM_SSV2 = HYRSM | {
    'train.learning_rate': 1e-4,
    'train.weight_decay': 5e-5,
    'train.warmup_steps': 1500 // 4,
    'train.schedule_steps': (3000 // 4, 6000 // 4),
    'train.num_steps': 20_000 // 4,
}
HYRSM_KINETICS = HYRSM | {
    'model.classifier.weight': 0.4,
    'model.matcher.position': (2048.0, 0.01),
    'data.sampling': 'trx',
    'data.test_jitter': False,
    'train.learning_rate': 2.2e-5,
    'train.weight_decay': 5e-4,
    'train.warmup_steps': 100 // 4,
    'train.schedule_steps': (300 // 4,),
    'train.num_steps': 1200 // 4,
    'train.checkpoint_steps': 30,
}
HYRSM_HMDB51 = HYRSM | {
    'train.learning_rate': 5e-5,
    'train.weight_decay': 5e-4,
    'train.episodes_per_step': 8,
    'train.warmup_steps': 300 // 2,
    'train.schedule_steps': (600 // 2, 1200 // 2),
    'train.num_steps': 2000 // 2,
    'train.checkpoint_steps': 100,
}
HYRSM_UCF101 = HYRSM | {
    'train.learning_rate': 5e-5,
    'train.weight_decay': 5e-4,
    'train.warmup_steps': 700 // 4,
    'train.schedule_steps': (2100 // 4,),
    'train.num_steps': 2500 // 4,
    'train.checkpoint_steps': 62,
}
# MASTAF: the defaults of the released script, rows M7 and M8.
MASTAF = {
    'episode.query': 1,
    'episode.query_classes': 1,
    'data.test_jitter': True,
    'model.matcher.kernel_start': 'published',  # M12
    'train.learning_rate': 1e-3,
    'train.num_steps': 6252,  # 100,020 episodes
}
OWN = {
    'ta2n': {
        'ssv2_full': TA2N_SSV2,
        'ssv2_small': TA2N_SSV2,
        'kinetics': TA2N_KINETICS,
        'hmdb51': TA2N,
        'ucf101': TA2N,
    },
    'hyrsm': {
        'ssv2_full': HYRSM_SSV2_FULL,
        'ssv2_small': HYRSM_SSV2,
        'kinetics': HYRSM_KINETICS,
        'hmdb51': HYRSM_HMDB51,
        'ucf101': HYRSM_UCF101,
    },
    'mastaf': dict.fromkeys(OF_DATASET, MASTAF),
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
X_VIM = ('otam', 'trx', 'hyrsm', 'strm')  # V21
BEHIND_VIM = (*X_VIM, *(f'{method}-sampler' for method in X_VIM))
# Of X + VIM: the alignment of VIM, with the metric of X. The enrichments of STRM have its dropout.
ALIGNED = {
    'model.matcher.name': 'action_coordination',
    'model.matcher.temporal': True,
    'model.matcher.spatial': 'mask',
    'model.matcher.order': 'temporal_first',
    'model.matcher.perturbation': 0.2,
    'model.matcher.distance_norm': False,
    'model.matcher.prototype': 'mean',  # V22
    'model.matcher.inter_weight': 1.0,  # mu_2
    'model.enrichment.temporal_transform': True,
    'model.enrichment.dropout': 0.5,  # A15
}


def behind_vim(of_method, method, aligned):
    """The row of X + VIM of that of X, with or without the dropout that A15 sets."""
    x, _, sampler_only = method.partition('-')
    row = dict(of_method[x])
    if sampler_only:
        return row
    own = {'model.enrichment.dropout'} & row.keys()
    aligned = {key: value for key, value in aligned.items() if key not in own}
    return row | aligned | {'model.matcher.metric': row['model.matcher.name']}


FULL_SSV2 = ('strm', 'trm', 'trx', 'ta2n', 'mastaf')  # S23


def expected(method, preset):
    """The row of a method, or of 'vim:trx', for a dataset."""
    method, _, behind = method.partition(':')
    preset, _, shots = preset.partition('-')
    if preset == 'ssv2':
        preset = 'ssv2_full' if method in FULL_SSV2 else 'ssv2_small'
    no_flip = method in ('ta2n', 'vim') and not behind.endswith('-sampler')
    flip = NO_FLIP if preset.startswith('ssv2') and no_flip else {}
    if method in WITHOUT_ROW:
        of_method = changes(get_config(method))
    else:
        of_method = (
            behind_vim(OF_METHOD, behind, ALIGNED) | SAMPLER
            if behind
            else {**OF_METHOD, 'vim': VIM}[method]
        )
    row = {**RECIPE, **OF_DATASET[preset], **of_method, **flip}
    if not shots:
        return row
    shot, dataset = int(shots.removesuffix('shot')), preset.split('_')[0]
    known = dataset if dataset in ('ssv2', 'kinetics') else 'other'
    query, of_sum, of_mean = OF_SHOTS[shot, known]
    row |= {'episode.shot': shot, 'episode.query': query}
    if shot < 5:
        row['model.backbone.batch_norm_groups'] = 1
    if method == 'vim':
        return row  # the rate is the paper's
    row['train.learning_rate'] = pytest.approx(
        of_mean if row['train.loss_reduction'] == 'mean' else of_sum
    )
    own = OWN.get(method, {}).get(preset, {})
    if own and method == 'hyrsm':
        row['episode.query'] = {1: 7, 3: 5, 5: 3}[shot]
    return row | own


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
SHOTS = ('ssv2-1shot', 'kinetics-1shot', 'activitynet-3shot', 'ssv2-5shot')
OTHER_SHOTS = ('ssv2_full-1shot', 'hmdb51-1shot', 'ucf101-1shot', 'ssv2_small-5shot')
CASES = [(method, preset) for method in METHODS for preset in (*PRESETS, *SHOTS)]
CASES += [(method, preset) for method in OWN for preset in OTHER_SHOTS]


@pytest.mark.parametrize('method, preset', CASES)
def test_a_preset_has_the_published_values_and_changes_nothing_else(method, preset):
    name, _, behind = method.partition(':')
    config = get_config(name, f'{behind}-{preset}' if behind else preset)
    validate(config)
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
EMBEDDED |= {
    f'vim:{method}': behind_vim(EMBEDDED, method, {**ALIGNED, 'model.enrichment.dropout': 0.1})
    | IN_FRONT
    for method in BEHIND_VIM
}


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


def test_protonet_takes_20_frames_of_448_pixels():
    """VIM, Table 18, without a sampler. Clips of fewer than 20 frames stay in the pool."""
    usual, dense = (changes(get_config('protonet', f'ucf101-1shot{end}')) for end in ('', '-dense'))
    changed = {key: dense.get(key) for key in usual.keys() | dense.keys()}
    assert {key: x for key, x in changed.items() if x != usual.get(key)} == {
        'episode.frames': 20,
        'model.sampler.frames': 20,
        'episode.image_size': 448,
        'data.resize': 512,
        'data.short_videos': 'repeat',
    }


@pytest.mark.parametrize(
    'ending, expected',
    {
        'temporal': {'name': 'tuple_cosine', 'cardinalities': (2, 3)},
        'spatial': {'name': 'action_coordination', 'offset_step': 0.5},
        'both': {
            'name': 'action_coordination',
            'metric': 'tuple_cosine',
            'cardinalities': (2, 3),
            'offset_step': 0.5,
        },
    }.items(),
)
@pytest.mark.parametrize('preset', ['', 'ucf101-1shot'])
def test_protonet_aligns_exhaustively(ending, expected, preset):
    """VIM, Table 19: all else is ProtoNet."""
    usual, found = (
        changes(get_config('protonet', name)) for name in (preset, f'{preset}-{ending}'.strip('-'))
    )
    found = {key: x for key, x in found.items() if x != usual.get(key)}
    found.pop('model.matcher.pairs_per_chunk', None)
    if ending != 'temporal':
        expected = expected | {'temporal': False, 'spatial': 'enumerate'}
    assert found == {f'model.matcher.{key}': x for key, x in expected.items()}


def test_the_rate_of_ta2n_as_printed():
    """Row A18: halved every 5 of 200 epochs, it ends near 1e-15, and all but a thousandth of it is
    spent in 50 epochs."""
    at = learning_rate_schedule(get_config('ta2n', 'ucf101-1shot').train)
    rate = np.asarray(jax.vmap(at)(np.arange(5000)), np.float64)
    assert rate[0] == np.float32(1e-3) and rate[-1] == pytest.approx(1e-3 * 0.5**39, rel=1e-3)
    assert rate[: 50 * 25].sum() / rate.sum() == pytest.approx(1 - 2**-10, abs=1e-6)


def test_shots_that_are_changed_by_hand_are_noted():
    """The recipe of a preset without a number of shots is for 5."""
    for preset, shot, of_recipe, better in (
        ('trx-ssv2', 1, 5, 'trx-ssv2-1shot'),
        ('ssv2_full-5shot', 2, 5, 'ssv2_full-2shot'),
        ('trx-ssv2-1shot', 5, 1, 'trx-ssv2-5shot'),
    ):
        assert note_on_shots(preset, shot) == (
            f"note: the preset '{preset}' has a recipe for episode.shot={of_recipe}, and this run "
            f"has {shot}: the preset '{better}' has one for that"
        )
    assert get_config('vim', 'trx-ssv2-1shot').episode.shot == 1
    assert get_config('trx', 'ssv2').episode.shot == 5
    for preset, shot in (
        ('ssv2', 5),
        ('ssv2-1shot', 1),
        ('', 1),
        ('trx', 1),
        ('mine-1shot', 2),
        ('ssv2-2shot', 11),
    ):
        assert note_on_shots(preset, shot) == ''


def test_every_preset_is_named_in_the_docs():
    page = (REPOSITORY / 'docs/how_it_works.md').read_text()
    for name in (*PRESETS, 'ssv2-1shot', 'ssv2-1shot-dense'):
        assert re.search(rf'[`:]{name}`', page), name


@pytest.mark.parametrize('layers', [1, 2])
@pytest.mark.parametrize('preset', ['', 'ssv2', 'kinetics'])
def test_joint_enrichment_departs_from_strm_by_its_enrichment_alone(layers, preset):
    strm = get_config('strm', preset)
    joint = get_config('strm', '-'.join(filter(None, (f'joint{layers}', preset))))
    differing = {
        key: value_of(joint, key) for key in SETTINGS if value_of(joint, key) != value_of(strm, key)
    }
    assert differing == {
        'model.enrichment.patch': 'joint_self_attention',
        'model.enrichment.frame': 'none',
        **({'model.enrichment.joint_layers': 2} if layers == 2 else {}),
    }
    with pytest.raises(ValueError, match="unknown preset 'joint3': choose one of ssv2"):
        get_config('strm', 'joint3')
