"""`python -m fsar_jax.pretrain`: frame classifiers whose weights a run starts from."""

import json

import jax
import numpy as np
import optax
import pytest
from tiny_run import SAMPLER, largest_difference, tiny_config

from fsar_jax import pretrain
from fsar_jax.mesh import episode_mesh
from fsar_jax.training import train
from fsar_jax.training.selected import best_of_run
from fsar_jax.training.start import with_pretrained_weights
from fsar_jax.training.state import create_train_state

pytestmark = pytest.mark.slow


def config_of(tiny_data, steps, **changes):
    """VIM's sampler, whose frames show the class: squares of its colour."""
    small = {**SAMPLER, 'data.dir': str(tiny_data), 'train.num_steps': steps}
    return tiny_config('vim', {**small, 'train.learning_rate': 0.01, **changes}, width=8)


def test_a_run_starts_from_what_frames_have_taught(tiny_data, tmp_path, shallow, monkeypatch):
    monkeypatch.setattr(pretrain, 'RECENT', 4)
    begun: list = []
    create = lambda *given: begun.append(create_train_state(*given)) or begun[-1]
    monkeypatch.setattr(pretrain, 'create_train_state', create)
    config, folder = config_of(tiny_data, 25), tmp_path / 'frames'
    found, evolution = pretrain.pretrain(config, folder)
    assert evolution is None and not (folder / 'evolution.json').exists()
    assert found.keys() == {'backbone', 'scan network'}
    assert min(found.values()) > 0.5  # chance is one of four

    before = begun[0]
    after = best_of_run(folder, episode_mesh()).state
    assert int(after.step) == 25
    parts = lambda state: (
        state.params['backbone'],
        state.params['sampler']['scan_network'],
        state.batch_stats['backbone'],
        state.batch_stats['sampler']['scan_network'],
    )
    for was, now in zip(parts(before), parts(after)):
        assert largest_difference(was, now) > 1e-3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.variables))
    others = lambda state: {k: v for k, v in state.params['sampler'].items() if k != 'scan_network'}
    assert largest_difference(others(before), others(after)) == 0

    with config.unlocked():
        config.model.backbone.weights = config.model.sampler.scan_weights = str(folder)
    started = with_pretrained_weights(before, config, episode_mesh())
    for wanted, now in zip(parts(after), parts(started)):
        assert largest_difference(wanted, now) == 0

    with pytest.raises(ValueError, match='holds a run already: name a new folder'):
        pretrain.pretrain(config, folder)
    with config.unlocked():
        config.model.backbone.weights = config.model.sampler.scan_weights = None
    with pytest.raises(ValueError, match='holds what fsar_jax.pretrain has trained: name another'):
        train.train_and_evaluate(config, folder, 'vim')


def test_clips_are_measured_by_a_classifier_that_knows_them(
    tiny_data, tmp_path, monkeypatch, capsys
):
    """TSM on squares that show their class at every frame: it tells them all, so all actions start
    at once and go on alike. It starts from the weights that the config names."""
    monkeypatch.setattr(pretrain, 'RECENT', 4)
    shift = {'model.backbone.temporal_shift': True, 'train.num_steps': 80}
    config = tiny_config('protonet', {**shift, 'data.dir': str(tiny_data)}, width=8)
    found, evolution = pretrain.pretrain(config, tmp_path / 'tsm', evolution=True)
    assert found.keys() == {'backbone'} and found['backbone'] > 0.9
    stored = json.loads((tmp_path / 'tsm' / 'evolution.json').read_text())
    assert stored == evolution
    frames, clips = config.episode.frames, evolution['clips']
    assert len(evolution['probability']) == frames and min(evolution['probability']) > 0.4
    assert len(evolution['action_start']) == frames + 1 and sum(evolution['action_start']) == clips
    assert evolution['action_start'][0] > clips / 2 and 0 <= evolution['aem'] < 0.1
    assert evolution['accuracy'] > 0.9
    text = pretrain.as_text(evolution)
    assert f'of the {clips} training clips' in text and f'{evolution["aem"]:.3f}' in text

    # Measuring was stopped: the same command measures what was trained, and gives the same.
    (tmp_path / 'tsm' / 'evolution.json').unlink()
    forbidden = lambda *given: pytest.fail('it trains again')
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, 'train_on_clips', forbidden)
        assert pretrain.pretrain(config, tmp_path / 'tsm', evolution=True) == ({}, evolution)
        with pytest.raises(ValueError, match='holds a run already'):
            pretrain.pretrain(config, tmp_path / 'tsm')
        config.data.flip = not config.data.flip
        with pytest.raises(ValueError, match='holds a run with other settings .data.flip='):
            pretrain.pretrain(config, tmp_path / 'tsm', evolution=True)
        config.data.flip = not config.data.flip

    seen: list = []
    train = pretrain.train_on_clips
    patched = lambda *given: seen.append(given[1].params) or train(*given)
    monkeypatch.setattr(pretrain, 'train_on_clips', patched)
    config.train.num_steps = 1
    config.model.backbone.weights = str(tmp_path / 'tsm')
    config.model.backbone.temporal_shift = False
    capsys.readouterr()
    pretrain.pretrain(config, tmp_path / 'again')
    start = best_of_run(tmp_path / 'tsm', episode_mesh()).state.params['backbone']
    assert largest_difference(start, seen[0]['backbone']) == 0
    assert 'temporal_shift=True there, False here' in capsys.readouterr().out


def test_what_cannot_be_pretrained_is_one_line(tiny_data, tmp_path, monkeypatch):
    for argv, words in (
        (['--config=vim'], 'no --workdir given'),
        ([f'--workdir={tmp_path}'], 'no --config given'),
    ):
        with pytest.raises(ValueError, match=words):
            pretrain.main(['pretrain', *argv])
    config = config_of(tiny_data, 1, **{'model.backbone.trained': False})
    with pytest.raises(ValueError, match='learns nothing here') as error:
        pretrain.pretrain(config, tmp_path / 'no')
    assert '\n' not in str(error.value) and not (tmp_path / 'no').exists()
    run = tmp_path / 'run'  # with a checkpoint that is damaged
    (run / 'checkpoints' / '8').mkdir(parents=True)
    (run / 'metrics.jsonl').write_text('{"step": 8}\n')
    with pytest.raises(ValueError, match='holds a run already: name a new folder'):
        pretrain.pretrain(config_of(tiny_data, 1), run)
    assert (run / 'metrics.jsonl').read_text() == '{"step": 8}\n'
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, 'create_optimizer', lambda _: optax.sgd(float('inf')))
        with pytest.raises(FloatingPointError, match='what the last step has left is not finite'):
            pretrain.pretrain(config_of(tiny_data, 1), tmp_path / 'diverged')
    assert not list((tmp_path / 'diverged' / 'checkpoints').glob('1*'))
    config = config_of(tiny_data, 1, **{'model.backbone.name': 'resnet3d50'})
    with pytest.raises(ValueError, match='leaves 1 of 4: choose one that keeps them all'):
        pretrain.pretrain(config, tmp_path / 'no', evolution=True)
