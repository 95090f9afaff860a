"""Which parts of a model start from where, and what the run says of it."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from tiny_run import get_config

from fsar_jax import weights
from fsar_jax.backbones import BACKBONES
from fsar_jax.backbones.scan import SCAN_NETWORKS
from fsar_jax.mesh import episode_mesh
from fsar_jax.training.start import (
    note_other_scaling,
    note_random_starts,
    starts_of,
    with_pretrained_weights,
)
from fsar_jax.training.state import TrainState
from fsar_jax.weights.published import backbone_table

# Names are all that counts of the parameters.
PARAMS = {'backbone': {'a': np.zeros(1)}, 'sampler': {'scan_network': {'a': np.zeros(1)}}}


@pytest.mark.parametrize(
    'method, preset, changes, expected',
    [
        ('protonet', '', {}, []),
        ('vim', '', {}, []),
        ('protonet', 'ssv2', {}, ['model.backbone.weights']),
        ('protonet', 'ssv2', {'model.backbone.weights': 'a.pth'}, []),
        ('mastaf', 'ssv2', {}, ['model.backbone.weights']),
        ('vim', 'ssv2', {}, ['model.sampler.scan_weights', 'model.backbone.weights']),
        ('vim', '', {'model.sampler.scan_network': 'mobilenet_v2'}, ['model.sampler.scan_weights']),
    ],
)
def test_a_random_start_is_noted_where_the_published_one_is_not(
    method, preset, changes, expected, capsys
):
    config = get_config(method, preset)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    uniform = config.model.sampler.name == 'uniform'
    note_random_starts(config, {'backbone': PARAMS['backbone']} if uniform else PARAMS)
    notes = capsys.readouterr().out.splitlines()
    assert [key for note in notes for key in expected if f'set --config.{key} to a' in note] == (
        expected
    )
    assert len(notes) == len(expected) and all('from ImageNet' in note for note in notes)


def test_a_part_that_keeps_random_weights_is_noted(capsys):
    config = get_config('vim')
    config.model.backbone.trained = config.model.sampler.scan_trained = False
    note_random_starts(config, PARAMS)
    notes = capsys.readouterr().out.splitlines()
    for part, key in (
        ('sampler scan network', 'sampler.scan_weights'),
        ('backbone', 'backbone.weights'),
    ):
        assert (
            sum(
                f'the {part} keeps random weights' in note
                and f'set --config.model.{key} to' in note
                for note in notes
            )
            == 1
        )
    config.model.backbone.weights = config.model.sampler.scan_weights = 'a.pth'
    note_random_starts(config, PARAMS)
    assert len(notes) == 2 and not capsys.readouterr().out


def test_only_parts_that_the_model_has_can_start():
    config = get_config('vim')
    assert [start.name for start in starts_of(config, PARAMS)] == [
        'sampler scan network',
        'backbone',
    ]
    assert [start.name for start in starts_of(config, {'backbone': PARAMS['backbone']})] == [
        'backbone'
    ]


@pytest.mark.slow
def test_a_run_starts_from_what_pip_installed(monkeypatch, tmp_path, capsys):
    config = get_config('protonet')
    config.model.backbone.update(name='efficientnet_lite0', weights='pretrained')
    rng = np.random.default_rng(0)
    table, _ = backbone_table(config.model.backbone)
    arrays = {name: rng.random(entry.shape, np.float32) for name, entry in table.items()}
    file = tmp_path / 'lite.safetensors'
    safetensors.numpy.save_file(arrays, file)
    asked = []
    monkeypatch.setattr(weights, 'pretrained_file', lambda *names: asked.append(names) or file)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'pretrained').mkdir(exist_ok=True)  # no run: the word has another meaning
    state = TrainState(0, {'backbone': PARAMS['backbone'], 'matcher': 'as it was'}, {}, None)
    state = with_pretrained_weights(state, config, episode_mesh(1))
    assert asked == [('efficientnet_lite0', 'model.backbone.weights')]
    expected = weights.load_backbone(file, config.model.backbone)
    assert state.params['matcher'] == 'as it was' and 'note' not in capsys.readouterr().out
    found = {'params': state.params['backbone'], 'batch_stats': state.batch_stats['backbone']}
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    note_other_scaling(BACKBONES['efficientnet_lite0'](normalize='grey'))
    assert capsys.readouterr().out == (
        'note: the pretrained weights expect input scaled by efficientnet_lite (normalize), and '
        'this run has grey\n'
    )


def test_every_network_says_what_its_authors_start_it_from():
    small = {'features', 'resnet_small', 'shufflenet_v2_small'}
    others = {
        'vit_s16': 'ImageNet or ImageNet-21k',
        'vit_b16': 'ImageNet or ImageNet-21k',
        'vit_l16': 'ImageNet or ImageNet-21k',
        **{f'vit_{size}14{reg}': 'LVD-142M' for size in 'sbl' for reg in ('', '_reg')},
        **{
            f'{kind}_{size}': 'image-text pairs'
            for kind in ('clip', 'openclip')
            for size in ('b32', 'b16', 'l14')
        },
        'mvit_v1_b': 'Kinetics-400',
        'mvit_v2_s': 'Kinetics-400',
    }
    for name, network in {**BACKBONES, **SCAN_NETWORKS}.items():
        start = network().published_start
        expected = '' if name in small else others.get(name, 'ImageNet')
        assert start == expected, (
            f"{name} has published_start={start!r}: add it to `small` of this test for '', to "
            "`others` for other weights than ImageNet's, or give its class published_start"
        )
