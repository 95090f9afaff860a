"""Features that are extracted once: what is stored, and that runs on them are those on frames."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import TINY, error_of, get_config, tiny_config

from fsar_jax import create_learner, extract, train
from fsar_jax.data import loader
from fsar_jax.data.clips import Clips
from fsar_jax.data.dataset import open_dataset
from fsar_jax.data.episodes import draw_episodes, jitter_generator
from fsar_jax.data.features import all_finite, open_features, read_header
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.evaluation.evaluate import TrainedModel, evaluate_episodes
from fsar_jax.ingest import feature_files
from fsar_jax.ingest.feature_files import cut_into_files
from fsar_jax.mesh import episode_mesh
from fsar_jax.messages import one_line
from fsar_jax.training.inputs import open_training_split, with_features
from fsar_jax.training.state import create_train_state, make_train_step

FROZEN = {  # the run on frames that sees what view 0 holds
    'model.backbone.trained': False,
    'data.crop': 'centre',
    'data.flip': False,
}


def config_of(data_dir, method='trm', changes=None):
    return tiny_config(method, {'data.dir': str(data_dir), **(changes or {})}, width=4)


def on_features(config, folder):
    """The same config, on the features in `folder`."""
    config = config.copy_and_resolve_references()
    config.model.backbone.name, config.data.features = 'features', str(folder)
    return with_features(config)


def message_of(function, *args, **kwargs):
    with pytest.raises((ValueError, OSError)) as error:
        function(*args, **kwargs)
    line = one_line(error.value)
    assert '\n' not in line
    return line


@pytest.fixture(scope='module')
def folders(tiny_data, tmp_path_factory):
    """{'pooled': …, 'maps': …, 'views': …}, folders of features of one backbone."""
    base, config = tmp_path_factory.mktemp('features'), config_of(tiny_data)
    with config.unlocked():
        config.data.crop, config.data.flip = 'random', True
        config.episode.image_size = 24
    kinds = {'pooled': {}, 'maps': {'maps': True}, 'views': {'views': 3, 'dtype': 'float32'}}
    for name, flags in kinds.items():
        extract.extract(config, base / name, videos_per_shard=5, **flags)
    return {name: base / name for name in kinds}


def frozen_config(data_dir, method='trm', changes=None):
    """The run on frames to which runs on the folders above are compared."""
    return config_of(data_dir, method, {**FROZEN, 'episode.image_size': 24, **(changes or {})})


@pytest.mark.slow
def test_every_stored_frame_has_the_features_of_the_backbone(tiny_data, folders):
    """In all views: against the backbone on the frames, one clip at a time."""
    config = frozen_config(tiny_data, changes={'data.crop': 'random', 'data.flip': True})
    learner, state = (learner := create_learner(config.model)), create_train_state(config, learner)
    frames_of = open_dataset('video_folder/tiny', tiny_data, 'val')
    pooled, maps, views = (
        open_features('video_folder/tiny', folders[name], 'val') for name in folders
    )
    assert views.video_ids == frames_of.video_ids
    assert views.labels.tolist() == frames_of.labels.tolist()
    for position in (0, 4, 5, 11):  # in three files
        frames = Clips(frames_of, config).read_views(position, 0, 8, 3)
        wanted = learner.apply(state.variables, frames, method='feature_maps')
        found = views.read(position)
        assert found['video_id'] == frames_of.video_ids[position]
        np.testing.assert_allclose(found['features'], wanted.mean((2, 3)), rtol=1e-4, atol=1e-5)
        half = maps.read(position)['features']
        assert half.dtype == np.float16 and half.shape == (1, 8, 2, 2, 16)
        np.testing.assert_allclose(half[0], wanted[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            pooled.read(position)['features'][0], wanted[0].mean((1, 2)), rtol=1e-3, atol=1e-4
        )


def test_views_are_of_the_clip_alone_and_the_first_is_the_test_view(tiny_data):
    config = frozen_config(tiny_data, changes={'data.crop': 'random', 'data.flip': True})
    clips = Clips(open_dataset('video_folder/tiny', tiny_data, 'train'), config)
    views = clips.read_views(3, 2, 6, 4)
    np.testing.assert_array_equal(views[:2], clips.read_views(3, 2, 6, 2))
    np.testing.assert_array_equal(views[:, 1:3], clips.read_views(3, 3, 5, 4))
    config.episode.frames = 8
    test_view = np.empty((8, 24, 24, 3), np.uint8)
    Clips(clips.dataset, config).read(3, test_view)
    np.testing.assert_array_equal(views[0], test_view[2:6])
    stored = Clips(clips.dataset, frozen_config(tiny_data, changes={'episode.image_size': 32}))
    whole = np.stack([stored._frame(clips.dataset.read(3)['frames'], t, None) for t in range(2, 6)])
    crops = {  # of the frames, every place and its mirror image
        (x, y, mirrored): whole[:, y : y + 24, x : x + 24][:, :, :: -1 if mirrored else 1]
        for x in range(17)
        for y in range(9)
        for mirrored in (False, True)
    }
    places = [next(k for k, crop in crops.items() if (crop == view).all()) for view in views]
    assert [mirrored for *_, mirrored in places] == [False, True, False, True]
    assert len({place[:2] for place in places}) > 2


@pytest.mark.parametrize(
    'method, kind',
    [
        pytest.param('trm', 'pooled', marks=pytest.mark.slow),
        ('protonet', 'pooled'),
        pytest.param('strm', 'maps', marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_frozen_backbone_on_frames(tiny_data, folders, method, kind):
    """The same episodes, evaluated with the parameters of the run on frames."""
    config = frozen_config(tiny_data, method)
    mesh, learner = episode_mesh(1), create_learner(config.model)
    variables = create_train_state(config, learner).variables
    on_frames = open_dataset('video_folder/tiny', tiny_data, 'test')
    episodes = draw_episodes(on_frames, 2, 1, 2, seed=0, count=6)
    wanted = evaluate_episodes(TrainedModel(learner, variables, config, mesh), on_frames, episodes)
    features = on_features(config, folders[kind])
    stored = open_features('video_folder/tiny', folders[kind], 'test')
    head = create_learner(features.model)
    without = {
        kind: {k: v for k, v in x.items() if k != 'backbone'} for kind, x in variables.items()
    }
    for cache in (True, False):
        found = evaluate_episodes(
            TrainedModel(head, without, features, mesh), stored, episodes, cache
        )
        assert found.episodes_hash == wanted.episodes_hash
        scale = np.abs(wanted.logits).max()
        np.testing.assert_allclose(found.logits, wanted.logits, atol=2e-3 * scale)


@pytest.mark.slow
def test_a_training_step_is_that_of_the_frozen_backbone_on_frames(tiny_data, folders):
    """Same clips and frames in the episodes, same update of the head. The backbone stays."""
    config = frozen_config(tiny_data, changes={'model.matcher.dropout': 0.0})
    features = on_features(config, folders['pooled'])
    assert features.episode.image_size == 24 and features.data.feature_shape == (1, 1, 16)
    states = []
    for each, dataset in (
        (config, open_dataset('video_folder/tiny', tiny_data, 'train')),
        (features, open_features('video_folder/tiny', folders['pooled'], 'train')),
    ):
        batches = loader.training_batches(dataset, each, 0)
        learner = create_learner(each.model)
        state = create_train_state(each, learner)
        if states:  # the heads start alike
            head = {'matcher': jax.tree.map(jnp.array, states[0][0]['matcher'])}
            state = dataclasses.replace(state, params=head)
        start = jax.tree.map(np.asarray, state.params)
        step = make_train_step(learner, each, episode_mesh(1))
        state, metrics = step(state, next(batches))
        batches.close()
        states.append((start, jax.tree.map(np.asarray, state.params), metrics))
    (start, after, metrics), (_, of_features, on_stored) = states
    assert jax.tree.all(jax.tree.map(np.array_equal, start['backbone'], after['backbone']))
    np.testing.assert_allclose(on_stored['losses'], metrics['losses'], rtol=2e-3)
    change = lambda tree: np.concatenate(
        [np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (tree, start['matcher'])))]
    )
    found, wanted = change(of_features['matcher']), change(after['matcher'])
    assert np.abs(wanted).max() > 0
    assert np.corrcoef(found, wanted)[0, 1] > 0.99  # Adam divides small gradients by themselves


def test_few_training_clips_and_jittered_frames_are_those_of_a_run_on_frames(tiny_data, folders):
    changes = {'data.train_clips_per_class': 3, 'data.test_jitter': True}
    frames = frozen_config(tiny_data, changes=changes)
    config = on_features(frames, folders['views'])
    ours, theirs = open_training_split(config), open_training_split(frames)
    assert sorted(ours.video_ids) == sorted(theirs.video_ids) and len(ours) == 12
    batches = [
        next(loader.training_batches(videos, of, 0))
        for videos, of in ((ours, config), (theirs, frames))
    ]
    for key in ('labels', 'classes', 'episode'):
        np.testing.assert_array_equal(batches[0][key], batches[1][key])
    clips, seen = loader.reader(ours, config), set()
    for position in range(len(ours)):
        out = clips.empty()
        clips.read(position, out)
        rng = jitter_generator(config.eval.seed, ours, position)
        chosen = frame_indices(int(ours.num_frames[position]), 4, 'trx', rng)
        stored = ours.read(position)['features'][0]
        np.testing.assert_array_equal(out, stored[chosen].reshape(out.shape))
        seen.add(tuple(chosen.tolist()))
    assert len(seen) > 3


def test_training_draws_one_of_the_views_and_evaluation_takes_the_first(tiny_data, folders):
    config = on_features(frozen_config(tiny_data), folders['views'])
    assert (config.data.crop, config.data.flip) == ('random', True)
    dataset = open_features('video_folder/tiny', folders['views'], 'train')
    clips = loader.reader(dataset, config)
    stored = dataset.read(2)['features']
    out, rng, drawn = clips.empty(), np.random.default_rng(0), set()
    for _ in range(20):
        assert clips.read(2, out, rng) is False
        rows = out[:, 0, 0]
        drawn.add(
            next(v for v, view in enumerate(stored) if all((r == view).all(1).any() for r in rows))
        )
    assert drawn == {0, 1, 2}
    clips.read(2, out)
    np.testing.assert_array_equal(out[:, 0, 0], stored[0, [1, 2, 4, 6]])


@pytest.mark.slow
def test_a_killed_extraction_goes_on_with_the_files_that_are_missing(
    tiny_data, folders, tmp_path, monkeypatch, capsys
):
    config = config_of(tiny_data, changes={'episode.image_size': 24})
    written = []

    def dies_at_the_third(folder, header, shard, blocks):
        if len(written) == 2:
            next(iter(blocks))
            (folder / f'.{shard.file}.part').write_bytes(b'half of it')
            raise KeyboardInterrupt
        written.append(shard.file)
        return feature_files.write_shard(folder, header, shard, blocks)

    monkeypatch.setattr(extract, 'write_shard', dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        extract.extract(config, tmp_path / 'f', videos_per_shard=5)
    line = message_of(on_features, config, tmp_path / 'f')
    assert 'is not whole (train-00002-of-00004.npy, ' in line and 'give the command' in line
    monkeypatch.setattr(extract, 'write_shard', feature_files.write_shard)
    times = {file: (tmp_path / 'f' / file).stat().st_mtime_ns for file in written}
    extract.extract(config, tmp_path / 'f', videos_per_shard=5)
    assert '2 of 10 files are there from an earlier call' in capsys.readouterr().out
    assert times == {file: (tmp_path / 'f' / file).stat().st_mtime_ns for file in written}
    assert not list((tmp_path / 'f').glob('.*.part'))
    # The same bytes as in one go, and nothing to do in a third call.
    first, second = (read_header(folder).done for folder in (tmp_path / 'f', folders['pooled']))
    assert first == second and len(first) == 10
    sums = (tmp_path / 'f' / 'SHA256SUMS').read_bytes()
    (tmp_path / 'f' / 'SHA256SUMS').unlink()  # as after a kill at the end
    extract.extract(config, tmp_path / 'f', videos_per_shard=5)
    assert 'is extracted already' in capsys.readouterr().out
    assert (tmp_path / 'f' / 'SHA256SUMS').read_bytes() == sums


@pytest.mark.slow
def test_replacing_features_goes_on_where_an_earlier_call_has_begun(
    tiny_data, folders, tmp_path, monkeypatch, capsys
):
    """--overwrite removes other features, and finished ones of the same kind."""
    folder = shutil.copytree(folders['pooled'], tmp_path / 'f')
    config = config_of(tiny_data, changes={'episode.image_size': 24, 'seed': 1})
    again = functools.partial(extract.extract, config, folder, videos_per_shard=5, overwrite=True)
    written = []

    def dies_at_the_third(folder, header, shard, blocks):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.file)
        return feature_files.write_shard(folder, header, shard, blocks)

    monkeypatch.setattr(extract, 'write_shard', dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        again()
    monkeypatch.setattr(extract, 'write_shard', feature_files.write_shard)
    capsys.readouterr()
    again()
    assert '2 of 10 files are there from an earlier call' in capsys.readouterr().out
    again()
    assert 'from an earlier call' not in capsys.readouterr().out


@pytest.mark.slow
def test_what_cannot_be_extracted_is_refused_in_one_line(tiny_data, folders, tmp_path, monkeypatch):
    config = config_of(tiny_data)
    refused = lambda changes, folder=tmp_path / 'f', **flags: message_of(
        extract.extract, config_of(tiny_data, changes=changes), folder, **flags
    )
    assert 'made in another way (frames.image_size=24 there, 32 here' in refused(
        {}, folders['pooled'], videos_per_shard=5
    )
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/notes.txt').touch()
    assert 'holds other files (notes.txt): name a new folder' in refused({}, tmp_path / 'mine')
    assert 'is a built dataset: name a folder of features' in refused(
        {}, tiny_data / 'video_folder/tiny/1.0.0'
    )
    # Refused before anything is removed, whatever is asked for.
    shutil.copytree(tiny_data / 'video_folder/tiny/1.0.0', tmp_path / 'dataset')
    (tmp_path / 'mine/features.json').write_text('{}')
    for folder in (tmp_path / 'dataset', tmp_path / 'mine'):
        before = {path.name for path in folder.iterdir()} - {'.lock'}
        line = refused({}, folder, overwrite=True)
        assert 'holds other files' in line or 'is a built dataset' in line
        assert {path.name for path in folder.iterdir()} - {'.lock'} == before
    assert not (tiny_data / 'video_folder/tiny/1.0.0/.lock').exists()
    assert 'is none that sees frames' in refused({'model.backbone.name': 'features'})
    assert 'several frames at once' in refused({'model.backbone.name': 'resnet3d50'})
    assert '--views=2 would keep the same views more than once' in refused(
        {'data.crop': 'centre', 'data.flip': False}, views=2
    )
    assert "dataset 'video_folder/none' is not in" in refused({'data.dataset': 'video_folder/none'})
    usage = extract.shutil.disk_usage('/')
    monkeypatch.setattr(extract.shutil, 'disk_usage', lambda folder: usage._replace(free=9000))
    line = message_of(extract.extract, config, tmp_path / 'g', maps=True)
    assert 'has 9.0 kB free, the features need 41.0 kB' in line and 'without --maps' in line
    assert list((tmp_path / 'g').iterdir()) == [tmp_path / 'g/.lock']


def test_a_method_that_the_features_do_not_fit_is_refused(tiny_data, folders):
    line = message_of(on_features, config_of(tiny_data, 'strm'), folders['pooled'])
    assert 'pooled over each frame, and the patch enrichment of this method needs maps' in line
    line = message_of(on_features, config_of(tiny_data, 'ta2n'), folders['pooled'])
    assert 'the temporal transform, matcher of this method' in line
    on_features(config_of(tiny_data, 'strm'), folders['maps'])
    line = message_of(on_features, config_of(tiny_data, 'vim'), folders['maps'])
    assert "config.model.sampler.name='task_adaptive' looks at frames" in line
    other = config_of(tiny_data, changes={'data.feature_shape': (1, 1, 8)})
    line = message_of(on_features, other, folders['pooled'])
    assert 'holds features of shape (1, 1, 16), and config.data.feature_shape=(1, 1, 8)' in line
    line = message_of(open_features, 'video_folder/other', folders['pooled'], 'train')
    assert 'holds features of video_folder/tiny, config.data.dataset is video_folder/other' in line


def test_a_file_that_was_cut_or_replaced_is_noticed(tiny_data, tmp_path):
    folder, config = tmp_path / 'f', config_of(tiny_data)
    extract.extract(config, folder)
    [file] = folder.glob('test-*.npy')
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert 'is not whole (test-00000-of-00001.npy)' in message_of(on_features, config, folder)
    file.write_bytes(whole.replace(b'<f2', b'<i2'))
    line = message_of(open_features('video_folder/tiny', folder, 'test').read, 0)
    assert 'is damaged (it is int16' in line
    file.write_bytes(bytes(60) + whole[60:])
    line = message_of(open_features('video_folder/tiny', folder, 'test').read, 0)
    assert 'is damaged (the magic string is not correct' in line and 'pickle' not in line
    header = json.loads((folder / 'features.json').read_text())
    header['splits']['test']['label'][0] = 99
    (folder / 'features.json').write_text(json.dumps(header))
    assert 'does not describe features (ValueError: test label' in message_of(
        on_features, config, folder
    )


def test_features_that_are_not_finite_are_named(tiny_data, folders, tmp_path):
    """NaN in one frame of a clip, in every number format: not parameters that have diverged."""
    shutil.copytree(folders['pooled'], tmp_path / 'f')
    config = on_features(frozen_config(tiny_data), tmp_path / 'f')
    stored = open_features('video_folder/tiny', tmp_path / 'f', 'test')
    path = pathlib.Path(stored.read(6)['path'])
    array = np.load(path)
    array[8 * (6 - 5) + 2, 3] = np.nan  # the file begins with clip 5
    np.save(path, array)
    clips = loader.reader(open_features('video_folder/tiny', tmp_path / 'f', 'test'), config)
    clips.read(5, clips.empty())
    line = message_of(clips.read, 6, clips.empty())
    assert f"'{stored.video_ids[6]}' of video_folder/tiny test" in line
    assert f'{path.name} are not finite: find what is damaged' in line
    for dtype in (np.float16, jnp.bfloat16, np.float32):
        x = np.array([0, -1, 6e4], dtype)
        assert all_finite(x) and not all_finite(np.append(x, dtype(-np.inf)))
        assert not all_finite(np.append(x, dtype(np.nan)))


@pytest.mark.slow
def test_values_that_a_format_cannot_hold_are_refused(tiny_data, tmp_path, monkeypatch):
    config = config_of(tiny_data, changes={'model.backbone.normalize': 'unit'})
    real = extract.backbone_variables
    monkeypatch.setattr(
        extract, 'backbone_variables', lambda *args: jax.tree.map(lambda x: x * 10, real(*args))
    )
    assert 'are not finite in the number format' in message_of(
        extract.extract, config, tmp_path / 'f'
    )
    extract.extract(config, tmp_path / 'f', dtype='bfloat16')
    stored = open_features('video_folder/tiny', tmp_path / 'f', 'val').read(0)['features']
    assert stored.dtype == jnp.bfloat16 and np.isfinite(stored.astype(np.float32)).all()
    assert np.abs(stored.astype(np.float32)).max() > 65504
    on_disk = np.load(next((tmp_path / 'f').glob('val-*.npy')))
    assert on_disk.dtype == np.uint16


@pytest.mark.parametrize(
    'frames, each, wanted',
    [
        ([8] * 12, 5, [5, 5, 2]),
        ([64] * 200, 0, [64, 64, 64, 8]),
        ([], 0, []),
        ([9000, 1], 0, [1, 1]),
    ],
)
def test_files_hold_some_thousand_frames(frames, each, wanted):
    assert cut_into_files(frames, each) == wanted


def test_a_large_split_has_few_files():
    assert len(cut_into_files([64] * 80_000)) <= 128


def run(*flags):
    train.main(['main.py', *map(str, flags)])


def flags_of(data_dir, workdir, folder, method='trm', **changes):
    """Arguments of main.py for a run on features, without the settings that the features decide."""
    settings = {k: v for k, v in TINY.items() if k not in ('episode.image_size', 'data.resize')}
    settings |= {'data.dir': data_dir, 'train.num_steps': 4, **changes}
    settings |= {'model.backbone.name': 'features', 'data.features': folder}
    return [
        f'--config={method}',
        f'--workdir={workdir}',
        *(f'--config.{key}={value}' for key, value in settings.items()),
    ]


@pytest.mark.slow
def test_a_run_trains_resumes_and_is_evaluated_on_features(tiny_data, folders, tmp_path):
    """Killed after two steps and gone on with, it has the results of a run in one go; another
    extractor is refused."""
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    lasting = {'train.schedule': 'constant'}
    run(*flags_of(tiny_data, whole, folders['pooled'], **lasting))
    run(*flags_of(tiny_data, stopped, folders['pooled'], **{**lasting, 'train.num_steps': 2}))
    run(*flags_of(tiny_data, stopped, folders['pooled'], **lasting))
    results = json.loads((whole / 'results.json').read_text())
    again = json.loads((stopped / 'results.json').read_text())
    assert results['params_hash'] == again['params_hash'] and results['correct'] == again['correct']
    extractor = results['extractor']
    assert extractor == read_header(folders['pooled']).extractor
    assert extractor['backbone']['name'] == 'resnet_small'
    assert results['config']['episode']['image_size'] == 24

    before = (whole / 'results.json').read_bytes()
    evaluate = ['--config=trm', f'--workdir={whole}', '--mode=evaluate']
    run(*evaluate)
    after = json.loads((whole / 'results.json').read_text())
    assert after['correct'] == results['correct'] and before
    assert [path.name for path in whole.glob('results*')] == ['results.json']
    line = error_of(*evaluate, f'--config.data.features={folders["views"]}')
    assert "holds a model of other features (features.dtype='float16' there, 'float32' here" in line
    line = error_of(*flags_of(tiny_data, whole, folders['maps'], **lasting))
    assert 'feature_shape' in line
    line = error_of(
        *flags_of(tiny_data, tmp_path / 'r', folders['pooled'], **{'data.dataset': 'a/b'})
    )
    assert 'holds features of video_folder/tiny' in line


def test_prototypes_on_features_have_nothing_to_train_and_are_evaluated(
    tiny_data, folders, tmp_path, capsys
):
    """Weights of a backbone are not read, and the run says so."""
    changes = {'train.num_steps': 1, 'model.backbone.weights': 'x.pth'}
    run(*flags_of(tiny_data, tmp_path, folders['pooled'], 'protonet', **changes))
    assert 'note: config.model.backbone.weights=x.pth is not read' in capsys.readouterr().out
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['accuracy'] > results['chance']


def test_the_command_says_what_is_missing(tmp_path):
    assert 'no --dir given' in message_of(extract.main, ['extract', '--config=trm'])
    with pytest.raises(SystemExit) as ended:
        extract.main(['extract', '--config=trm', f'--dir={tmp_path}', '--views=0'])
    assert '--views' in ended.value.code and '\n' not in ended.value.code
    assert get_config('trm').data.features is None
