"""The plan that a run prints as it starts."""

import re

from tiny_run import get_config

from fsar_jax.plan import resolved_plan


def rows(config, mode='train'):
    """{name of the row: its text}."""
    row = re.compile(r'  (?:([A-Z])  )?(\S.*?)  +(.*)')
    found = [row.fullmatch(line) for line in resolved_plan(config, mode, {}).splitlines()]
    return {match[1] or match[2]: match[3] for match in found}


def test_each_stage_has_its_name_and_its_settings():
    config = get_config('vim')
    assert rows(config)['sampler'].startswith(
        'task_adaptive: scan_network shufflenet_v2_small, frames 8, dense_frames 20'
    )
    assert 'sigma 0.1, sigma_schedule linear, sigma_end 0' in rows(config)['sampler']
    config.model.sampler.update(name='motion_guided', at_test=False)
    assert rows(config)['sampler'] == (
        'motion_guided: frames 8, dense_frames 20, smoothing 0.5, at_test False'
    )
    config = get_config('strm')
    found = rows(config)
    assert found['sampler'] == 'uniform' and found['query similarity'] == 'weight 0.1'
    assert found['matcher'] == 'cross_transformer: loss_weight 1, dim 128, dropout 0.1'
    assert found['enrichment'].startswith('patch self_attention, frame mlp_mixer')
    assert rows(get_config('mastaf'))['classifier'] == 'weight 1'
    assert 'classifier' not in found and 'query similarity' not in rows(get_config('trx'))


def test_an_episode_says_which_classes_have_queries():
    config = get_config('mastaf', 'ssv2-1shot')
    assert rows(config)['episode'] == (
        '5-way 1-shot, 1 queries per class (of 1 of them) in training, 16 frames of 224 px'
    )
    assert rows(config)['S'] == 'data.sampling trx, data.test_jitter True'


def test_settings_without_effect_are_listed():
    config = get_config('vim')
    assert 'without effect' not in rows(config)
    config.model.sampler.name = 'uniform'
    assert rows(config)['without effect'] == 'model.sampler.intra_weight=0.5'
    config.model.matcher.name = 'otam'
    assert rows(config)['without effect'] == (
        'model.sampler.intra_weight=0.5, model.matcher.prototype=mean, model.matcher.inter_weight=1'
    )
    config = get_config('hyrsm')
    config.model.matcher.update(name='prototypes')
    assert rows(config)['without effect'] == 'model.classifier.weight=0.6'
    config.model.matcher.cardinalities = (2, 3)
    assert 'model.matcher.cardinalities=(2, 3)' in rows(config)['without effect']
    config.model.query_similarity.weight = 0.1  # it compares tuples too
    assert 'cardinalities' not in rows(config)['without effect']


def test_each_hidden_factor_has_a_row_and_an_evaluation_leaves_out_those_of_training():
    train, evaluate = rows(get_config('trx')), rows(get_config('trx'), 'evaluate')
    assert set('NLBSDFRCEZT') <= train.keys()
    assert train['C'].endswith(
        'matcher.cardinalities (2, 3), matcher.cardinality_reduction None, matcher.tuples_share 1, '
        'matcher.tuples_seed 0, matcher.tuples_share_in_training False'
    )
    assert 'optimisation' in train
    assert not {'L', 'T', 'optimisation'} & evaluate.keys()
