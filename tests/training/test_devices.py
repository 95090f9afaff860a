"""The same numbers on one device, on eight, after a checkpoint, and on two processes that train,
select and evaluate together."""

import contextlib
import functools
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_evaluation import TinyDataset
from tiny_run import (
    CPU,
    HEADS,
    REPOSITORY,
    SAMPLER,
    SHALLOW_MAIN,
    finish,
    largest_difference,
    random_batch,
    run_main,
    shallow_networks,
    shared_programs,
    start_main,
    tiny_config,
    tiny_flags,
    unchanged,
    with_devices,
)

from fsar_jax.data.episodes import draw_episodes
from fsar_jax.evaluation.evaluate import TrainedModel, evaluate_episodes
from fsar_jax.evaluation.results import read_results
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh, replicate, shard
from fsar_jax.progress import read_metrics
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.inputs import fit_accumulation
from fsar_jax.training.state import create_train_state, make_train_step

pytestmark = pytest.mark.slow
OPTIMIZER = {
    'train.optimizer': os.environ.get('FSAR_OPTIMIZER', 'sgd'),
    'train.schedule': 'constant',
    'train.learning_rate': 0.01 if os.environ.get('FSAR_OPTIMIZER', 'sgd') == 'sgd' else 1e-3,
}


SHAPE = {'episode.query': 1, 'train.episodes_per_step': 8}
CLASSIFIER = {'model.classifier.classes': 2}
METHODS = {  # HEADS, and a sampler; the classifier needs the number of classes
    'strm': {'train.accumulation_steps': 2},
    'otam': {},
    'ta2n': {},
    'hyrsm': CLASSIFIER,
    'mastaf': CLASSIFIER,
    'vim': SAMPLER,
}


def test_every_head_has_a_row():
    assert set(METHODS) == {*HEADS, 'vim'}


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))


@functools.cache
def prepared(method):
    """(config, mesh, learner, initial state, compiled step) of a method on the devices that this
    process has."""
    config = tiny_config(method, {**OPTIMIZER, **SHAPE, **METHODS[method]}, width=8)
    mesh = episode_mesh()
    config = fit_accumulation(config, mesh.size)
    with contextlib.nullcontext() if method == 'otam' else shallow_networks():
        learner = create_learner(config.model)
    return (
        config,
        mesh,
        learner,
        jax.tree.map(np.asarray, create_train_state(config, learner)),
        make_train_step(learner, config, mesh),
    )


def run_steps(method, steps, state=None):
    """The state after these steps, from the initial one unless another is given, and their
    losses."""
    config, mesh, _, start, train_step = prepared(method)
    state = replicate(mesh, jax.tree.map(jax.numpy.array, start)) if state is None else state
    losses = []
    for step in steps:
        state, metrics = train_step(state, shard(mesh, batch_of(method, config, step), axis=1))
        losses.append(np.asarray(metrics['losses']).ravel())
    return state, np.array(losses)


def batch_of(method, config, seed):
    """Noise; for VIM in changing light, because frames of one brightness score nearly alike, and
    rounding would decide which are taken."""
    batch, rng = random_batch(config, seed), np.random.default_rng(seed)
    light = lambda x: (x * rng.uniform(0.1, 1.0, (*x.shape[:-3], 1, 1, 1))).astype(np.uint8)
    return (
        {**batch, 'support': light(batch['support']), 'query': light(batch['query'])}
        if method == 'vim'
        else batch
    )


def only_of_vim():
    """The update of the first step, {params, batch_stats}, and the logits of five test episodes
    that encode in `match`."""
    config, mesh, learner, start, _ = prepared('vim')
    state, _ = run_steps('vim', range(1))
    update = {
        name: jax.tree.map(
            lambda a, b: np.asarray(a) - b, getattr(state, name), getattr(start, name)
        )
        for name in ('params', 'batch_stats')
    }
    dataset = TinyDataset()
    model = TrainedModel(learner, start.variables, config, mesh)
    assert learner.encodes_in_match
    episodes = draw_episodes(dataset, config.episode.way, config.episode.shot, 1, 0, 5)
    return {'update': update, 'logits': evaluate_episodes(model, dataset, episodes).logits}


@functools.cache
def three_steps(method):
    """Losses and final state, as trees of numpy."""
    state, losses = run_steps(method, range(3))
    return {
        'losses': losses,
        **{
            name: jax.tree.map(np.asarray, getattr(state, name))
            for name in ('params', 'batch_stats', 'opt_state')
        },
        **(only_of_vim() if method == 'vim' else {}),
    }


@pytest.fixture(scope='module')
def eight_devices(tmp_path_factory):
    """Starts eight devices in another process, which works through METHODS; a function that waits
    for the arrays of one."""
    folder = tmp_path_factory.mktemp('eight')
    code = (
        'import sys; sys.path[:0] = [".", "tests", "tests/training"]\n'
        'import jax, numpy as np, test_devices\n'
        'assert jax.device_count() == 8\n'
        'for method in test_devices.METHODS:\n'
        '    np.savez(f"{sys.argv[1]}/{method}.npz", '
        '*jax.tree.leaves(test_devices.three_steps(method)))'
    )
    env = {**CPU, **shared_programs(), **with_devices(8)}
    process = subprocess.Popen(
        [sys.executable, '-c', code, folder],
        cwd=REPOSITORY,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ended = []

    def arrays(method):
        ended[:] = ended or finish(process)
        assert process.returncode == 0, ended[0][1][-3000:]
        with np.load(folder / f'{method}.npz') as file:
            return [file[name] for name in file.files]

    yield arrays
    finish(process)


@pytest.mark.parametrize('method', METHODS)
def test_stopped_after_a_checkpoint_and_continued(method, tmp_path, eight_devices):
    """Bit for bit: what a checkpoint holds is all that the next step depends on. The eight devices
    start now, and work meanwhile."""
    state, _ = run_steps(method, range(1))
    with Checkpoints(tmp_path / 'run') as checkpoints:
        checkpoints.save(1, state)
    with Checkpoints(tmp_path / 'run', read_only=True) as checkpoints:
        restored, _ = checkpoints.restore(state)
    continued, _ = run_steps(method, range(1, 3), restored)
    whole = three_steps(method)
    for part in ('params', 'batch_stats', 'opt_state'):
        jax.tree.map(np.testing.assert_array_equal, getattr(continued, part), whole[part])


@pytest.mark.parametrize('method', METHODS)
def test_its_parameters_learn(method):
    losses, start = three_steps(method)['losses'], prepared(method)[3]
    assert np.isfinite(losses).all() and losses.min() > 0
    kept = unchanged(start.params, three_steps(method)['params'])
    assert len(kept) < len(jax.tree.leaves(start.params)) / 2, kept


@pytest.mark.parametrize('method', METHODS)
def test_one_device_and_eight(method, eight_devices):
    one = three_steps(method)
    other = jax.tree.unflatten(jax.tree.structure(one), eight_devices(method))
    # Resampling a noise image has a gradient that jumps from pixel to pixel, so rounding shows in
    # the update (0.4% of it).
    if method == 'vim':
        np.testing.assert_allclose(one['losses'][0], other['losses'][0], atol=2e-5)
        for part, allowed in (('params', 0.05), ('batch_stats', 1e-5)):
            update = one['update'][part]
            difference = jax.tree.map(np.subtract, update, other['update'][part])
            assert 0 < norm(update) and norm(difference) <= allowed * norm(update), part
        assert largest_difference(one['logits'], other['logits']) < 1e-5
        assert np.ptp(one['logits']) > 1e-2
        return
    for part in one:
        assert largest_difference(one[part], other[part]) < 1e-5, part
    assert np.ptp(one['losses']) > 1e-2


def test_one_process_with_two_of_three_devices_and_two_processes(tiny_data, tmp_path, shallow):
    """Training, checkpoints, selection on val and the evaluation of test, from the command line.
    Three do not divide four episodes."""
    changes = {
        **OPTIMIZER,
        'train.num_steps': 3,
        'train.checkpoint_steps': 2,
        'train.episodes_per_step': 4,
        'eval.embeddings': 'sharded',
    }
    method, program = 'trm', ('-c', SHALLOW_MAIN)
    plan = run_main(
        *tiny_flags(method, tiny_data, tmp_path / 'one', changes),
        program=program,
        env=with_devices(3),
    )
    assert (
        '2 x cpu (cpu), 1 process(es), compute in float32; 1 idle, '
        '--config.train.episodes_per_step=6 would use all 3' in plan
    )
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    both = [
        start_main(
            *tiny_flags(method, tiny_data, tmp_path / 'two', changes),
            f'--distributed=127.0.0.1:{port},2,{i}',
            env=shared_programs(),
            program=program,
        )
        for i in range(2)
    ]
    outputs = finish(*both)
    assert [process.returncode for process in both] == [0, 0], [err[-3000:] for _, err in outputs]
    assert 'test, 2-way 1-shot: ' in outputs[0][0] and '2-way' not in outputs[1][0]  # printed once

    one, two = (read_results(tmp_path / name) for name in ('one', 'two'))
    for key in ('accuracy', 'correct', 'confusion', 'episodes_hash', 'selected_on', 'config'):
        assert one[key] == two[key], key
    losses = [
        [line['loss'] for line in read_metrics(tmp_path / name) if 'loss' in line]
        for name in ('one', 'two')
    ]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(*losses, rtol=1e-5)
    config = tiny_config(method, changes)
    like = create_train_state(config, create_learner(config.model))
    states = []
    for name in ('one', 'two'):
        with Checkpoints(tmp_path / name / 'checkpoints', read_only=True) as checkpoints:
            assert checkpoints.latest_step == 3
            states.append(checkpoints.restore(like)[0])
    assert largest_difference(states[0].params, states[1].params) < 1e-5
    assert largest_difference(states[0].batch_stats, states[1].batch_stats) < 1e-5
    assert largest_difference(states[0].params, like.params) > 1e-4


@pytest.mark.parametrize(
    'episodes, asked, devices, parts',
    [
        (16, 16, 1, 16),
        (16, 16, 8, 2),
        (18, 16, 6, 3),  # what the plan advises where one of six devices would be idle
        (18, 16, 1, 18),  # one episode at a time as asked, not two
        (12, 5, 2, 6),
        (7, 4, 1, 7),
        (4, 1, 2, 1),
    ],
)
def test_parts_divide_the_step_and_need_no_more_memory_than_asked(episodes, asked, devices, parts):
    config = tiny_config('trm')
    config.train.update(episodes_per_step=episodes, accumulation_steps=asked)
    assert fit_accumulation(config, devices).train.accumulation_steps == parts


def test_several_processes_are_told_the_step_that_their_devices_need():
    with pytest.raises(
        ValueError,
        match='episodes_per_step=8 must be a multiple of the 3 devices .*: set '
        '--config.train.episodes_per_step=9',
    ):
        fit_accumulation(tiny_config('trm', {'train.episodes_per_step': 8}), 3)
