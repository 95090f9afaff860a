"""Killed at any moment and started again with the same command, a run ends as one that was not."""

import json
import os
import random
import re
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import (
    SAMPLER,
    error_of,
    finish,
    largest_difference,
    run_main,
    shared_programs,
    start_main,
    tiny_config,
    tiny_flags,
    write_tiny_clips,
)

from fsar_jax import build
from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos, open_dataset
from fsar_jax.data.episodes import draw_episodes, write_episodes
from fsar_jax.evaluation.results import read_results
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.progress import METRICS_FILE, read_metrics
from fsar_jax.training import train
from fsar_jax.training.checkpoint_files import CONFIG_FILE
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.departures import departures
from fsar_jax.training.run_settings import (
    MAY_CHANGE_ON_RESUME,
    check_resumable,
    check_settings,
    evaluation_config,
    run_config,
)
from fsar_jax.training.start import with_pretrained_weights
from fsar_jax.training.state import create_train_state
from fsar_jax.training.workdir import METHOD, TESTED_ON, TRAINED_ON, note_videos

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get('FSAR_KILLS', 3))
STEPS = 12
SETTINGS = {'train.num_steps': STEPS, 'train.checkpoint_steps': 2}


@pytest.fixture(scope='module')
def unbroken(tiny_data, tmp_path_factory):
    """The workdir of a run from the command line, and its results."""
    workdir = tmp_path_factory.mktemp('unbroken') / 'run'
    run_main(*tiny_flags('protonet', tiny_data, workdir, SETTINGS))
    return workdir, read_results(workdir)


def steps_done(workdir):
    path = workdir / METRICS_FILE
    return path.read_bytes().count(b'loss') if path.exists() else 0


def saves_begun(workdir):
    """Directories in checkpoints/, finished and unfinished."""
    path = workdir / 'checkpoints'
    return {entry.name for entry in path.iterdir() if entry.is_dir()} if path.exists() else set()


def kill_at(process, workdir, step, moment, delay):
    """SIGKILL `delay` seconds after: 'start', now; 'step', that step was logged; 'save', then a new
    save began. True if it hit."""
    seen = None
    while process.poll() is None:
        done = moment == 'start' or steps_done(workdir) >= step
        if done and moment == 'save':
            seen = saves_begun(workdir) if seen is None else seen
            done = bool(saves_begun(workdir) - seen)
        if done:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    finish(process)
    return process.returncode == -signal.SIGKILL


def test_killed_again_and_again(tiny_data, unbroken, tmp_path):
    _, expected = unbroken
    flags, rng, hits = (
        tiny_flags('protonet', tiny_data, tmp_path / 'run', SETTINGS),
        random.Random(0),
        0,
    )
    for kill in range(KILLS):
        step = 1 + kill * (STEPS - 4) // max(KILLS - 1, 1)
        moment = (
            ('save', 'step', 'start')[kill % 3] if KILLS > 3 else ('step', 'save', 'step')[kill]
        )
        delay = {
            'start': rng.uniform(0, 5),
            'step': rng.uniform(0, 0.2),
            'save': rng.uniform(0, 0.05),
        }[moment]
        process = start_main(*flags, env=shared_programs(write=False))
        hits += kill_at(process, tmp_path / 'run', step, moment, delay)
    assert hits >= max(1, KILLS - 1), 'the kills came too late'
    assert not (tmp_path / 'run' / 'results.json').exists()
    assert 'resumed from step ' in run_main(*flags)
    found = read_results(tmp_path / 'run')
    for key in ('params_hash', 'accuracy', 'correct', 'selected_on'):
        assert found[key] == expected[key], key
    lines = [line for line in read_metrics(tmp_path / 'run')]
    assert lines == read_metrics(unbroken[0])
    assert [line['step'] for line in lines if 'loss' in line] == list(range(1, STEPS + 1))
    assert [line['step'] for line in lines if 'val_accuracy' in line] == list(
        range(2, STEPS + 1, 2)
    )


def test_a_finished_run_only_tests_again(tiny_data, unbroken, capsys):
    """In this process, so also: another process and another data position give the same bits."""
    workdir, expected = unbroken
    config = tiny_config('protonet', {**SETTINGS, 'data.dir': str(tiny_data)})
    before = (workdir / METRICS_FILE).read_bytes()
    found = train.train_and_evaluate(config, workdir, 'protonet')
    assert f'resumed from step {STEPS}' in capsys.readouterr().out
    assert {**found, 'seconds': None} == {**expected, 'seconds': None}
    assert (workdir / METRICS_FILE).read_bytes() == before
    # With other settings of the test the results of the run stay.
    config.eval.num_episodes = 7
    train.train_and_evaluate(config, workdir, 'protonet')
    assert {**read_results(workdir), 'seconds': None} == {**expected, 'seconds': None}
    assert read_results(workdir / 'results.num_episodes=7.json')['num_episodes'] == 7


def test_a_damaged_newest_checkpoint_and_a_damaged_best(tiny_data, unbroken, tmp_path, capsys):
    """The run goes on from the one before and ends with the same bits; then another one counts,
    beside the results of the run."""
    whole, expected = unbroken
    config = tiny_config('protonet', {**SETTINGS, 'data.dir': str(tiny_data)})
    workdir = shutil.copytree(whole, tmp_path / 'run')
    (workdir / 'results.json').unlink()

    def cut(step):
        path = next((workdir / 'checkpoints' / str(step) / 'state' / 'd').iterdir())
        path.write_bytes(path.read_bytes()[:-1])

    cut(STEPS)
    found = train.train_and_evaluate(config, workdir, 'protonet')
    printed = capsys.readouterr().out
    assert printed.count(f'note: checkpoint {workdir}/checkpoints/{STEPS} is damaged (') == 1
    assert f'resumed from step {STEPS - 2}\n' in printed
    assert {**found, 'seconds': None} == {**expected, 'seconds': None}
    assert (workdir / METRICS_FILE).read_bytes() == (whole / METRICS_FILE).read_bytes()
    assert sorted(os.listdir(workdir / 'checkpoints')) == sorted(os.listdir(whole / 'checkpoints'))
    best = int(expected['selected_on'].rpartition(' ')[2])
    cut(best)
    other = train.evaluate_only(config, workdir, 'protonet')
    assert (
        other['selected_on'].endswith(f' (damaged: step {best})')
        and other['params_hash'] != expected['params_hash']
    )
    assert {**read_results(workdir), 'seconds': None} == {**expected, 'seconds': None}
    step = int(other['selected_on'].split()[-4])
    assert (
        step != best
        and read_results(workdir / f'results.checkpoint={step}.json')['selected_on']
        == other['selected_on']
    )
    assert f'{workdir}/checkpoints/{best} is damaged (' in capsys.readouterr().out


def test_a_name_that_checkpoints_cannot_have_is_refused_before_training(tiny_data, tmp_path):
    config = tiny_config('protonet', {**SETTINGS, 'data.dir': str(tiny_data)})
    with pytest.raises(
        ValueError,
        match=r"has '\[' in it, which Orbax takes for a pattern or an address: use another "
        r"--workdir",
    ):
        train.train_and_evaluate(config, tmp_path / 'run[x]', 'protonet')
    assert os.listdir(tmp_path) == []


def evaluated(workdir, data_dir, **changes):
    """The name of the results file that an evaluation writes; what results.json says stays, but for
    where the data lies."""
    results = lambda: {**read_results(workdir), 'seconds': None, 'config': None}
    before = results()
    config = tiny_config(
        'protonet',
        {
            **SETTINGS,
            'data.dir': str(data_dir),
            **{f'eval.{key}': value for key, value in changes.items()},
        },
    )
    known = {path: path.stat().st_mtime_ns for path in workdir.glob('results*')}
    train.evaluate_only(config, workdir, 'protonet')
    [path] = [
        path for path in workdir.glob('results*') if known.get(path) != path.stat().st_mtime_ns
    ]
    assert results() == before
    return path.name


def test_results_are_named_after_what_the_data_holds_not_where_it_lies(
    tiny_data, unbroken, tmp_path
):
    workdir, expected = unbroken
    shutil.copytree(
        tiny_data / 'video_folder' / 'tiny', tmp_path / 'copy' / 'video_folder' / 'tiny'
    )
    assert evaluated(workdir, tmp_path / 'copy') == 'results.json'
    write_tiny_clips(tmp_path / 'clips')
    for quality in (30, 31):  # the same videos, other pixels
        build.build(
            build.parse(
                [
                    '--dataset=video_folder/tiny',
                    f'--videos={tmp_path}/clips',
                    f'--dir={tmp_path}/{quality}',
                    '--processes=0',
                    '--short_side=32',
                    f'--jpeg_quality={quality}',
                ]
            )
        )
    names = [evaluated(workdir, tmp_path / f'{quality}') for quality in (30, 31, 30)]
    assert names[0] == names[2] != names[1] and all(
        re.fullmatch(r'results\.content=[0-9a-f]{8}\.json', name) for name in names
    )
    other = read_results(workdir / names[0])
    assert (
        other['videos_present'] == expected['videos_present']
        and other['content'] != expected['content']
    )
    config = tiny_config('protonet', {**SETTINGS, 'data.dir': f'{tmp_path}/30'})
    dataset = open_dataset('video_folder/tiny', tmp_path / '30', 'train')
    with pytest.raises(
        ValueError,
        match='began with other pixels or labels of the same train videos: use another --workdir',
    ):
        note_videos(workdir, STEPS, [dataset])
    # A run from before this was noted goes by what its results say.
    kept = {name: (workdir / name).read_text() for name in (TRAINED_ON, TESTED_ON)}
    try:
        for name in kept:
            (workdir / name).unlink()
        assert set(
            departures(workdir, config, open_dataset('video_folder/tiny', tmp_path / '30', 'test'))
        ) == {'content'}
        assert not departures(workdir, config, open_dataset('video_folder/tiny', tiny_data, 'test'))
    finally:
        for name, text in kept.items():
            (workdir / name).write_text(text)


def test_episode_lists_count_by_content(tiny_data, unbroken, tmp_path):
    workdir, expected = unbroken
    config = tiny_config('protonet', {'data.dir': str(tiny_data)})
    dataset = loader.usable(open_dataset('video_folder/tiny', tiny_data, 'test'), config)
    for folder, seed in (('a', 1), ('b', 2), ('c', 1)):
        (tmp_path / folder).mkdir()
        episodes = draw_episodes(dataset, 2, 1, 1, seed, 5)
        write_episodes(tmp_path / folder / 'list.jsonl', dataset, episodes)
    a, b, c = (
        evaluated(workdir, tiny_data, episodes_file=str(tmp_path / folder / 'list.jsonl'))
        for folder in 'abc'
    )
    again = evaluated(
        workdir, tiny_data, episodes_file=str(tmp_path / 'a' / 'list.jsonl'), num_episodes=9
    )
    assert a == c == again != b and re.fullmatch(
        r'results\.episodes_file=list-[0-9a-f]{8}\.json', a
    )


def test_what_may_change_and_what_may_not(tiny_data, unbroken, tmp_path):
    workdir, _ = unbroken
    error = error_of(
        *tiny_flags('protonet', tiny_data, workdir, {**SETTINGS, 'episode.query': 1, 'seed': 7})
    )
    assert error.endswith(
        f'{workdir}/checkpoints holds a run with other settings (episode.query=2 there, 1 here; '
        'seed=0 there, 7 here): use another --workdir, or those settings'
    )
    # Of two runs with different numbers of steps even the common part differs, as the learning rate
    # follows a cosine.
    error = error_of(
        *tiny_flags('protonet', tiny_data, workdir, {**SETTINGS, 'train.num_steps': STEPS + 2})
    )
    assert f'(train.num_steps={STEPS} there, {STEPS + 2} here)' in error
    damaged = shutil.copytree(workdir / 'checkpoints', tmp_path / 'checkpoints') / CONFIG_FILE
    damaged.write_text(
        damaged.read_text().replace(f'"num_steps": {STEPS}', f'"num_steps": "{STEPS}"')
    )
    with pytest.raises(ValueError, match='is damaged: train.num_steps=.* must be a whole number'):
        check_resumable(damaged.parent, tiny_config('protonet', SETTINGS))
    free = {
        **SETTINGS,
        'data.num_threads': 1,
        'train.log_steps': 5,
        'eval.num_episodes': 10,
        'train.keep_checkpoints': 1,
        'model.sampler.samples_per_chunk': 5,
        'model.matcher.pairs_per_chunk': 5,
    }  # memory ran out
    matters = lambda key: not key.startswith(MAY_CHANGE_ON_RESUME)
    config = tiny_config('protonet', {**free, 'data.dir': 'elsewhere'})
    check_settings(workdir / 'checkpoints', config, matters)
    config.eval.val_episodes = 3  # another selection
    with pytest.raises(ValueError, match=r'\(eval.val_episodes=20 there, 3 here\)'):
        check_settings(workdir / 'checkpoints', config, matters)


def test_alignment_is_measured_when_asked(tiny_data, unbroken):
    workdir, expected = unbroken
    config = tiny_config(
        'protonet', {**SETTINGS, 'data.dir': str(tiny_data), 'eval.measured_episodes': 2}
    )
    found = train.evaluate_only(config, workdir, 'protonet')
    kept = read_results(workdir / 'results.measured_episodes=2.json')
    assert kept['misalignment'] == found['misalignment'] and 'misalignment' not in expected
    assert found['misalignment']['episodes'] == 2 and set(found['misalignment']) == {
        'episodes',
        'action_start',
        'aem',
    }
    assert found['correct'] == expected['correct']


def test_an_evaluation_has_the_settings_of_the_run(unbroken):
    """Even of a run from before its method was noted, where it must then fit those of the command
    line."""
    workdir, expected = unbroken
    config, given = (
        tiny_config('protonet'),
        {'episode.shot': 2, 'model.matcher.cardinalities': (2,), 'data.dir': 'elsewhere'},
    )
    found = evaluation_config(config, given, workdir, 'protonet')
    saved = run_config(workdir)
    saved.update_from_flattened_dict(given)
    assert found.to_json() == saved.to_json() and found.is_locked and found.train.num_steps == STEPS
    with pytest.raises(ValueError, match='holds a run of protonet.py, not of protonet.py:ssv2'):
        evaluation_config(config, given, workdir, 'protonet', 'ssv2')
    noted = workdir / METHOD
    noted.rename(workdir / 'away')
    try:
        assert evaluation_config(config, given, workdir, 'protonet').to_json() == found.to_json()
        with pytest.raises(ValueError, match="model.matcher.name='prototypes' there, 'otam' here"):
            evaluation_config(tiny_config('otam'), given, workdir, 'protonet')
    finally:
        (workdir / 'away').rename(noted)


def test_a_setting_younger_than_the_run_counts_as_its_default(tmp_path):
    config = tiny_config('ta2n')
    saved = json.loads(config.to_json())
    del saved['model']['matcher']['distance_norm']
    (tmp_path / '3').mkdir()
    (tmp_path / CONFIG_FILE).write_text(json.dumps(saved))
    check_settings(tmp_path, config, lambda key: True)
    config.model.matcher.distance_norm = True
    with pytest.raises(ValueError, match=r'\(model.matcher.distance_norm=False there, True here\)'):
        check_settings(tmp_path, config, lambda key: True)


def test_a_run_starts_from_a_stage_of_another(tiny_data, unbroken, tmp_path, monkeypatch):
    """The backbone of its best checkpoint, and nothing else; its matcher may be another."""
    workdir, _ = unbroken
    config = tiny_config(
        'otam', {'data.dir': str(tiny_data), 'model.backbone.weights': str(workdir)}
    )
    mesh = episode_mesh()
    fresh = create_train_state(config, create_learner(config.model))
    started = with_pretrained_weights(fresh, config, mesh)
    with Checkpoints(workdir / 'checkpoints', read_only=True) as checkpoints:
        theirs = create_train_state(
            tiny_config('protonet', SETTINGS), create_learner(tiny_config('protonet').model)
        )
        theirs, _ = checkpoints.restore(theirs, checkpoints.best_step)
    assert largest_difference(started.params['backbone'], theirs.params['backbone']) == 0
    assert largest_difference(started.batch_stats['backbone'], theirs.batch_stats['backbone']) == 0
    assert largest_difference(started.params['backbone'], fresh.params['backbone']) > 0
    assert started.step == 0 and largest_difference(started.opt_state, fresh.opt_state) == 0

    thin = tiny_config(
        'otam', {'data.dir': str(tiny_data), 'model.backbone.weights': str(workdir)}, width=8
    )
    with pytest.raises(
        ValueError,
        match=rf'config.model.backbone.weights={workdir} holds a run whose backbone is another one',
    ):
        with_pretrained_weights(create_train_state(thin, create_learner(thin.model)), thin, mesh)
    config.model.backbone.weights = str(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf'no checkpoint in {tmp_path}'):
        with_pretrained_weights(fresh, config, mesh)
    settings = shutil.copytree(workdir, tmp_path / 'damaged') / 'checkpoints' / CONFIG_FILE
    settings.write_bytes(settings.read_bytes()[:-9])
    monkeypatch.setenv('HOME', str(tmp_path))
    config.model.backbone.weights = '~/damaged'
    with pytest.raises(
        ValueError,
        match=rf'^config.model.backbone.weights={tmp_path}/damaged is the workdir of a run that '
        rf'cannot be read: {settings} is damaged or cut \(line ',
    ):
        with_pretrained_weights(fresh, config, mesh)


def test_a_scan_network_starts_from_that_of_another_run(tmp_path, shallow):
    config = tiny_config('vim', {**SAMPLER, 'model.sampler.scan_weights': str(tmp_path)})
    theirs = create_train_state(config, create_learner(config.model))
    theirs = theirs.replace(params=jax.tree.map(lambda x: x + 1, theirs.params))
    with Checkpoints(tmp_path / 'checkpoints', config=config) as checkpoints:
        checkpoints.save(3, theirs)
    fresh = create_train_state(config, create_learner(config.model))
    started = with_pretrained_weights(fresh, config, episode_mesh())
    assert (
        largest_difference(
            started.params['sampler']['scan_network'], theirs.params['sampler']['scan_network']
        )
        == 0
    )
    rest = lambda params: {
        **params,
        'sampler': {name: x for name, x in params['sampler'].items() if name != 'scan_network'},
    }
    assert largest_difference(rest(started.params), rest(fresh.params)) == 0


def test_a_run_goes_on_with_the_videos_it_began_with(tmp_path):
    def videos(split, *ids):
        dataset = Videos()
        dataset.split, dataset.video_ids, dataset.class_names = split, list(ids), ['jump']
        dataset.labels = dataset.num_frames = np.zeros(len(ids), np.int32)
        return dataset

    note_videos(tmp_path, 0, [videos('train', 'a', 'b'), videos('val', 'c')])
    note_videos(tmp_path, 4, [videos('train', 'a', 'b')])
    with pytest.raises(
        ValueError, match='began with other train videos .2 then, 1 now.: use another --workdir'
    ):
        note_videos(tmp_path, 4, [videos('train', 'a'), videos('val', 'c')])
    assert json.loads((tmp_path / TRAINED_ON).read_text())['val']['present'] == 1
    note_videos(tmp_path, 0, [videos('train', 'd')])


class FakeCheckpoints:
    directory, latest_step = train.pathlib.Path('run/checkpoints'), 40


@pytest.mark.parametrize(
    'losses, finite, message',
    [
        (
            [[1.0, np.nan], [2.0, np.inf]],
            False,
            r'the loss of step 42 is not finite, in training episodes \[165, 167\]; '
            r'last good checkpoint: run/checkpoints/40\. Lower config.train.learning_rate',
        ),
        (
            [[1.0, 1.0], [2.0, 2.0]],
            False,
            r'the update of step 42 is not finite, in training episodes \[164, 165, 166, 167\]; ',
        ),
    ],
)
def test_not_finite(losses, finite, message):
    metrics = {'losses': np.array(losses), 'finite': finite, 'loss': 1.0, 'accuracy': 1.0}
    with pytest.raises(FloatingPointError, match=message):
        train.log_step(None, 42, metrics, FakeCheckpoints())


def test_a_loss_that_is_not_finite_stops_the_run(tiny_data, tmp_path, monkeypatch, shallow):
    """At step 3, whose checkpoint must not exist; started again without the fault, the run goes on
    from step 2."""
    config = tiny_config(
        'protonet', {'train.num_steps': 4, 'data.dir': str(tiny_data), 'eval.val_episodes': 0}
    )
    original = train.make_train_step

    def faulty(*args):
        train_step = original(*args)

        def step(state, batch):
            state, metrics = train_step(state, batch)
            if state.step == 3:
                metrics['losses'] = metrics['losses'].at[0, 1].set(jnp.nan)
            return state, metrics

        return step

    with monkeypatch.context() as patch:
        patch.setattr(train, 'make_train_step', faulty)
        with pytest.raises(
            FloatingPointError,
            match=r'the loss of step 3 is not finite, in training episodes \[5\]; '
            rf'last good checkpoint: {tmp_path}/checkpoints/2\. ',
        ):
            train.train_and_evaluate(config, tmp_path, 'protonet')
    assert [line['step'] for line in read_metrics(tmp_path)] == [1, 2]
    with Checkpoints(tmp_path / 'checkpoints', read_only=True) as checkpoints:
        assert checkpoints.steps == [2]
    found = train.train_and_evaluate(config, tmp_path, 'protonet')
    assert found['selected_on'] == 'last step (4)'
    assert [line['step'] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
