"""A finished run goes on to a larger train.num_steps, where no schedule depends on it."""

import json
import re

import jax
import numpy as np
import pytest
from tiny_run import SAMPLER, tiny_config

from fsar_jax.evaluation.results import read_results
from fsar_jax.mesh import episode_mesh
from fsar_jax.training import train
from fsar_jax.training.checkpoint_files import CONFIG_FILE, saved_settings
from fsar_jax.training.run_settings import check_resumable
from fsar_jax.training.selected import best_of_run


def written(directory, config, done):
    """A directory as a run leaves it, with a checkpoint (which is empty) of step `done`."""
    (directory / str(done)).mkdir(parents=True)
    (directory / CONFIG_FILE).write_text(config.to_json())
    return directory


CONSTANT = {'train.schedule': 'constant', 'train.num_steps': 12}


@pytest.mark.parametrize(
    'method, changes',
    [
        ('protonet', {}),  # whose unused sampler has a linear sigma
        ('protonet', {'train.schedule': 'steps', 'train.schedule_steps': (5, 20)}),
        (
            'protonet',
            {
                'train.schedule': 'periodic',
                'train.schedule_every': 5,
                'train.schedule_factor': 0.5,
                'train.warmup_steps': 2,
            },
        ),
        ('protonet', {'train.warmup_steps': 4}),
        ('vim', {**SAMPLER, 'model.sampler.sigma_schedule': 'constant'}),
        ('vim', {**SAMPLER, 'model.sampler.sigma_schedule': 'steps'}),
        ('vim', {**SAMPLER, 'model.sampler.temporal': False}),  # whose linear sigma is not used
        ('vim', {**SAMPLER, 'model.sampler.sigma': 0.1, 'model.sampler.sigma_end': 0.1}),
    ],
)
@pytest.mark.parametrize('done', [12, 6])
def test_a_run_without_such_a_schedule_may_be_lengthened_or_shortened(
    method, changes, done, tmp_path
):
    config = tiny_config(method, {**CONSTANT, **changes})
    directory = written(tmp_path, config, done)
    for steps in (done, 12, 13, 1000):
        config.train.num_steps = steps
        check_resumable(directory, config)


@pytest.mark.parametrize(
    'method, changes, schedule',
    [
        ('protonet', {'train.schedule': 'cosine'}, "learning rate (train.schedule='cosine')"),
        (
            'protonet',
            {'train.schedule': 'cosine', 'train.warmup_steps': 3},
            "learning rate (train.schedule='cosine')",
        ),
        ('vim', {**SAMPLER, 'model.sampler.sigma_schedule': 'linear'}, 'sampler sigma'),
        (
            'vim',
            {**SAMPLER, 'model.sampler.sigma_schedule': 'linear', 'train.schedule': 'cosine'},
            "learning rate (train.schedule='cosine') and its sampler sigma",
        ),
    ],
)
@pytest.mark.parametrize('done', [12, 2])
def test_a_schedule_that_depends_on_the_number_of_steps_is_named(
    method, changes, schedule, done, tmp_path
):
    config = tiny_config(method, {**CONSTANT, **changes})
    directory = written(tmp_path, config, done)
    check_resumable(directory, config)
    config.train.num_steps = 24
    with pytest.raises(ValueError) as error:
        check_resumable(directory, config)
    assert str(error.value) == (
        f'{directory} holds a run with other settings (train.num_steps=12 there, 24 here), and its '
        f'{schedule} would have been another one from the start: train 24 steps in another '
        '--workdir, or set train.num_steps=12'
    )


@pytest.mark.parametrize('schedule', ['constant', 'cosine'])
def test_fewer_steps_than_are_done_are_refused(schedule, tmp_path):
    config = tiny_config('protonet', {**CONSTANT, 'train.schedule': schedule})
    directory = written(tmp_path, config, 12)
    config.train.num_steps = 11
    message = (
        f'{directory} holds a run that has done 12 steps, more than config.train.num_steps=11: set '
        'at least 12, or use another --workdir'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        check_resumable(directory, config)


def test_other_settings_are_refused_as_ever(tmp_path):
    config = tiny_config('protonet', CONSTANT)
    directory = written(tmp_path, config, 12)
    config.train.update(num_steps=24, learning_rate=0.5)
    with pytest.raises(ValueError, match=r'\(train.learning_rate=0.001 there, 0.5 here\)'):
        check_resumable(directory, config)


@pytest.mark.slow
def test_three_steps_and_three_more_are_six_also_where_the_latter_are_killed(
    tiny_data, tmp_path, monkeypatch, shallow
):
    def config(steps):
        changes = {'train.num_steps': steps, 'train.checkpoint_steps': 1}
        return tiny_config('protonet', {**CONSTANT, **changes, 'data.dir': str(tiny_data)})

    def state(workdir):
        selected = best_of_run(workdir, episode_mesh())
        return jax.tree.map(np.asarray, selected.state), selected.how

    class Killed(BaseException):
        pass

    original = train.make_train_step

    def dying(*args):
        train_step = original(*args)

        def step(state, batch):
            if state.step == 4:
                raise Killed
            return train_step(state, batch)

        return step

    six = train.train_and_evaluate(config(6), tmp_path / 'six', 'protonet')
    workdir = tmp_path / 'lengthened'
    three = train.train_and_evaluate(config(3), workdir, 'protonet')
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, 'make_train_step', dying)
        train.train_and_evaluate(config(6), workdir, 'protonet')
    assert read_results(workdir) == three  # until the longer run has its own
    assert saved_settings(workdir / 'checkpoints')['train.num_steps'] == 6
    lengthened = train.train_and_evaluate(config(6), workdir, 'protonet')

    others = {'seconds': None}
    assert {**lengthened, **others} == {**six, **others}
    assert read_results(workdir) == json.loads(json.dumps(lengthened))
    assert (workdir / 'metrics.jsonl').read_text() == (tmp_path / 'six/metrics.jsonl').read_text()
    (found, how), (expected, expected_how) = state(workdir), state(tmp_path / 'six')
    assert how == expected_how
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(ValueError, match='has done 6 steps, more than config.train.num_steps=3'):
        train.train_and_evaluate(config(3), workdir, 'protonet')
