"""`python -m fsar_jax.selection`: what it says of a run that chooses, and of others."""

import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import SAMPLER, random_variables, tiny_config

from fsar_jax import build, selection
from fsar_jax.learner import create_learner
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.state import TrainState, create_optimizer, example_episode


def untrained(config, folder):
    """A run whose only checkpoint has random weights."""
    variables = random_variables(create_learner(config.model), *example_episode(config))
    params, batch_stats = variables['params'], variables['batch_stats']
    optimizer = create_optimizer(config.train).init(params)
    with Checkpoints(folder / 'checkpoints', config=config) as checkpoints:
        checkpoints.save(1, TrainState(jnp.asarray(1), params, batch_stats, optimizer))
    return folder


@pytest.fixture(scope='module')
def spliced(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    flags = ['--clips_per_class=3', '--size=32', '--num_frames=8', '--processes=0']
    build.build(build.parse(['--dataset=synthetic_actions/spliced', f'--dir={folder}', *flags]))
    return folder


@pytest.mark.slow
def test_a_run_that_chooses_is_measured_and_drawn(spliced, tmp_path, shallow, capsys):
    changes = {**SAMPLER, 'data.dir': str(spliced), 'data.dataset': 'synthetic_actions/spliced'}
    changes['model.sampler.dense_frames'] = 8
    run = untrained(tiny_config('vim', changes, width=4), tmp_path / 'run')
    selection.main([f'--workdir={run}', '--episodes=2', '--gradient=1', '--pictures=3'])
    said = capsys.readouterr().out
    found = json.loads((run / 'selection/selection.json').read_text())
    inside = found['selection']['inside_action']
    assert {'chosen', 'evenly_spaced', 'of_another_clip'} <= inside.keys()
    assert f'chosen {inside["chosen"]:.3f}' in said and 'gradient of the scores' in said
    assert found['gradient'].keys() == {'episodes', 'draws_agree', 'towards_action'}
    for places in found['places_by_class'].values():
        assert np.sum(places) == pytest.approx(4)
    assert {path.stem for path in (run / 'selection').glob('*.png')} == {
        'chosen_frames',
        'places_by_class',
    }


@pytest.mark.slow
def test_a_run_that_neither_chooses_nor_aligns(tiny_data, tmp_path, shallow):
    config = tiny_config('protonet', {'data.dir': str(tiny_data)}, width=4)
    run = untrained(config, tmp_path / 'run')
    with pytest.raises(ValueError, match='neither chooses frames nor aligns clips by M') as error:
        selection.main([f'--workdir={run}', '--pictures=0', '--episodes=2'])
    assert '\n' not in str(error.value) and not (run / 'selection').exists()


def test_wrong_flags_are_one_line(tmp_path, monkeypatch):
    for flag, words in (
        ('--episodes=1', 'is not a whole number, 2 or more'),
        ('--episodes=ten', "--episodes=ten is not"),
        ('--pictures=-1', '--pictures=-1 is not a whole number, 0 or more'),
    ):
        with pytest.raises(ValueError, match=words):
            selection.main([f'--workdir={tmp_path}', flag])
    with pytest.raises(FileNotFoundError, match='train first'):
        selection.main([f'--workdir={tmp_path / "none"}', '--pictures=0'])
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'need matplotlib.*fsar_jax\[report\]'):
        selection.main([f'--workdir={tmp_path}'])
