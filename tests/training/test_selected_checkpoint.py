"""What is tested and reported is the checkpoint that was best on val, not the last one."""

import shutil

import pytest
from tiny_run import tiny_config

from fsar_jax import stopping
from fsar_jax.evaluation.results import read_results
from fsar_jax.learner import create_learner
from fsar_jax.named_arrays import params_hash
from fsar_jax.training import train
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.state import create_train_state

VAL_ACCURACIES = {1: 0.25, 2: 0.75, 3: 0.5}
SETTINGS = {
    'train.num_steps': len(VAL_ACCURACIES),
    'train.checkpoint_steps': 1,
    'train.keep_checkpoints': 1,
    'train.episodes_per_step': 1,
    'episode.query': 1,
    'eval.num_episodes': 5,
    'eval.val_episodes': 5,
}


@pytest.mark.parametrize('look_at_val', [True, False])
def test_the_best_on_val_is_tested(tiny_data, tmp_path, monkeypatch, shallow, look_at_val):
    changes = {} if look_at_val else {'eval.val_episodes': 0}
    config = tiny_config('protonet', {**SETTINGS, 'data.dir': str(tiny_data), **changes}, width=2)
    original, seen, looked_at = train.evaluate, iter(VAL_ACCURACIES.values()), []

    def evaluate(model, dataset, *args, **kwargs):
        looked_at.append(dataset.split)
        found = original(model, dataset, *args, **kwargs)
        return {**found, 'accuracy': next(seen)} if dataset.split == 'val' else found

    def select(checkpoints, state):
        assert stopping._finish_first  # a signal waits for the last save, which may be going on
        return selected(checkpoints, state)

    selected = train.select
    monkeypatch.setattr(train, 'select', select)
    monkeypatch.setattr(train, 'evaluate', evaluate)
    found = train.train_and_evaluate(config, tmp_path, 'protonet')
    before_test = [split for split in looked_at if split != 'test']
    assert before_test == (['val'] * 3 if look_at_val else [])
    assert found['split'] == 'test'
    like = create_train_state(config, create_learner(config.model))
    with Checkpoints(tmp_path / 'checkpoints', read_only=True) as checkpoints:
        hashes = {
            step: params_hash(checkpoints.restore(like, step)[0].params)
            for step in checkpoints.steps
        }
    assert list(hashes) == ([2, 3] if look_at_val else [3])
    assert len(set(hashes.values())) == len(hashes)
    step = 2 if look_at_val else 3
    again = train.evaluate_only(config, tmp_path, 'protonet')
    for results in (found, again, read_results(tmp_path)):
        assert results['params_hash'] == hashes[step]
        assert results['selected_on'] == (
            'val accuracy at step 2' if look_at_val else 'last step (3)'
        )


def test_steps_are_kept_where_their_test_on_val_fails(
    tiny_data, tmp_path, monkeypatch, shallow, capsys
):
    config = tiny_config('protonet', {**SETTINGS, 'data.dir': str(tiny_data)}, width=2)
    with config.unlocked():
        config.train.keep_checkpoints = 3

    def fails(model, dataset, *args, **kwargs):
        raise MemoryError('a device has too little memory')

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(train, 'evaluate', fails)
        train.train_and_evaluate(config, tmp_path / 'run', 'protonet')
    assert 'note: step 1 is saved without its val accuracy' in capsys.readouterr().out
    found = train.train_and_evaluate(config, tmp_path / 'run', 'protonet')
    said = capsys.readouterr().out
    assert 'resumed from step 1' in said and 'step 1: val accuracy' in said
    whole = train.train_and_evaluate(config, tmp_path / 'whole', 'protonet')
    for key in ('params_hash', 'correct', 'selected_on'):
        assert found[key] == whole[key]


def test_a_look_at_a_run_that_is_not_over_is_not_its_result(tiny_data, tmp_path, shallow):
    config = tiny_config('protonet', {**SETTINGS, 'data.dir': str(tiny_data)}, width=2)
    with config.unlocked():
        config.train.keep_checkpoints = 3
    whole = train.train_and_evaluate(config, tmp_path, 'protonet')
    shutil.rmtree(tmp_path / 'checkpoints' / '3')  # as if it had been stopped before that
    (tmp_path / 'results.json').unlink()
    looked_at = train.evaluate_only(config, tmp_path, 'protonet')
    assert looked_at['checkpoint'] in (1, 2) and 'checkpoint' not in whole
    assert [path.name for path in tmp_path.glob('results*.json')] in (
        ['results.checkpoint=1.json'],
        ['results.checkpoint=2.json'],
    )
    again = train.train_and_evaluate(config, tmp_path, 'protonet')
    for key in ('params_hash', 'correct', 'selected_on'):
        assert again[key] == whole[key] == read_results(tmp_path)[key]
