"""A run exported to .safetensors and .json: what is written, what --weights gives, what is
refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_run import tiny_config

from fsar_jax import export, train
from fsar_jax.backbones import BACKBONES
from fsar_jax.config import resolve_paths
from fsar_jax.data.dataset import content_hash, open_dataset
from fsar_jax.evaluation.results import read_results
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.messages import one_line
from fsar_jax.named_arrays import by_name
from fsar_jax.stage import Stage
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.export import exported_config, exported_variables, input_of, read_about
from fsar_jax.training.selected import best_of_run
from fsar_jax.training.state import create_train_state
from fsar_jax.training.workdir import METHOD, make_workdir, note_videos

SETTINGS = {
    'model.backbone.width': 4,
    'train.num_steps': 4,
    'eval.num_episodes': 20,
    'eval.query': 1,
}


@pytest.fixture(scope='module')
def run(tiny_data, tmp_path_factory):
    """The workdir of a run of STRM with two checkpoints, of which the first is the best on val."""
    workdir = tmp_path_factory.mktemp('exported') / 'strm'
    config = resolve_paths(tiny_config('strm', {**SETTINGS, 'data.dir': str(tiny_data)}))
    state = create_train_state(config, create_learner(config.model))
    # Statistics that are not those of a start.
    moved = jax.tree.map(lambda x: x + 1 / 3, state.batch_stats)
    make_workdir(workdir)
    (workdir / METHOD).write_text('strm.py\n')
    note_videos(workdir, 0, [open_dataset('video_folder/tiny', tiny_data, 'train')])
    with Checkpoints(workdir / 'checkpoints', config=config) as checkpoints:
        checkpoints.save(2, state.replace(batch_stats=moved), {'val_accuracy': 0.75})
        checkpoints.save(4, state, {'val_accuracy': 0.5})
    return workdir


@pytest.fixture(scope='module')
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp('files') / 'strm.safetensors'
    export.main([f'--workdir={run}', f'--out={out}'])
    return out


def error_of(function, *arguments):
    with pytest.raises((ValueError, OSError)) as error:
        function(*arguments)
    line = one_line(error.value)
    assert '\n' not in str(error.value) and len(line) > 20
    return line


@pytest.mark.slow
def test_other_libraries_read_the_arrays_of_the_best_checkpoint(run, exported):
    arrays, best = load_file(exported), best_of_run(run, episode_mesh())
    expected = by_name(best.state.variables)
    assert best.step == 2 and arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], np.asarray(array), strict=True)
    assert arrays['params/backbone/conv1/kernel'].shape == (5, 5, 3, 4)
    assert arrays['batch_stats/backbone/bn1/mean'][0] == np.float32(1 / 3)


def test_the_json_says_what_another_framework_must_know(run, exported, tiny_data):
    about = json.loads(exported.with_suffix('.json').read_text())
    assert (about['method'], about['step'], about['val_accuracy']) == ('strm.py', 2, 0.75)
    assert about['selected_on'] == 'val accuracy at step 2' and not about['damaged_checkpoints']
    assert about['config'] == json.loads((run / 'checkpoints' / 'config.json').read_text())
    assert about['records'] == open_dataset('video_folder/tiny', tiny_data, 'train').settings
    assert about['arrays'].keys() == load_file(exported).keys()
    assert about['arrays']['params/backbone/conv1/kernel'] == {
        'shape': [5, 5, 3, 4],
        'dtype': 'float32',
    }
    assert '(HWIO)' in about['layouts']['kernel of 4 axes']
    shown = about['input']
    assert (shown['frames'], shown['resize']['short_side'], shown['crop']['height']) == (4, 32, 32)
    assert shown['sampling']['rule'] == 'trx' and shown['scaling']['std'] == [1, 1, 1]
    assert about['training_classes'] == [f'train {label}' for label in range(4)]
    train_set = open_dataset('video_folder/tiny', tiny_data, 'train')
    assert about['trained_on']['train']['content'] == content_hash(train_set)
    assert about['versions']['jax'] == jax.__version__
    header = read_about(exported)  # the same, so that the one file is enough
    assert header == {key: about[key] for key in about if key not in ('arrays', 'file', 'sha256')}


class OfAUser(Stage):
    """A backbone that has what the docs ask for, and no more."""

    def __call__(self, frames, train=False):
        return frames[:, ::8, ::8]


def test_a_backbone_of_a_user_is_described_too(monkeypatch):
    monkeypatch.setitem(BACKBONES, 'mine', OfAUser)
    config = tiny_config('protonet')
    config.model.backbone.name = 'mine'
    assert input_of(config)['scaling'] == {
        'rule': '(x / 255 - mean) / std, per channel',
        'name': 'unit',
        'mean': (0, 0, 0),
        'std': (1, 1, 1),
    }


def test_two_exports_are_the_same_bytes(run, exported, tmp_path):
    export.main([f'--workdir={run}', f'--out={tmp_path}/strm.safetensors'])
    assert (tmp_path / 'strm.safetensors').read_bytes() == exported.read_bytes()


@pytest.mark.slow
def test_evaluating_the_file_gives_the_results_of_the_run(run, exported, tiny_data, tmp_path):
    """Bit for bit, and with no flag of the training given again."""
    evaluate = ['main.py', '--config=strm', '--mode=evaluate']
    train.main([*evaluate, f'--workdir={run}'])
    # A setting that is given again as it was is not named.
    again = '--config.episode.query=2'
    train.main([*evaluate, f'--workdir={tmp_path}/new', f'--weights={exported}', again])
    [path] = (tmp_path / 'new').glob('results*')
    assert path.name.startswith('results.weights=strm.content=')
    of_run, of_file = read_results(run), read_results(path)
    for results in (of_run, of_file):
        results.pop('seconds')
    assert of_file == of_run and of_run['selected_on'] == 'val accuracy at step 2'
    # A flag changes what is evaluated.
    train.main(
        [
            *evaluate,
            f'--workdir={tmp_path}/shot',
            f'--weights={exported}',
            '--config.episode.shot=2',
        ]
    )
    [path] = (tmp_path / 'shot').glob('results*')
    assert read_results(path)['shot'] == 2 and '.shot=2.' in path.name


def test_another_method_preset_or_head_is_one_line(exported, tmp_path):
    def evaluate(config, *flags):
        given = f'--config={config}', '--mode=evaluate', f'--workdir={tmp_path}/new', *flags
        return error_of(train.main, ['main.py', f'--weights={exported}', *given])

    for config in ('trx', 'strm:ssv2'):
        method, _, preset = config.partition(':')
        wanted = f'{method}.py:{preset}'.rstrip(':')
        assert evaluate(config) == (
            f'{exported} holds weights of strm.py, not of {wanted}: evaluate it with the --config '
            'of its training'
        )
    assert evaluate('strm', '--config.model.matcher.dim=8', '--config.data.sampling=segment') == (
        f"{exported} holds a model with other settings (data.sampling='trx' there, 'segment' here; "
        'model.matcher.dim=16 there, 8 here): leave these flags out'
    )
    assert not (tmp_path / 'new').exists()


def test_an_export_from_before_a_setting_existed_has_what_meant_it_then(exported):
    about = read_about(exported)
    del about['config']['model']['matcher']['inter_variant']
    about['config']['model']['sampler']['variant'] = 'code'
    config = exported_config(exported, about, {}, 'strm')
    assert config.model.matcher.inter_variant == 'code'


def test_arrays_that_do_not_fit_the_settings_are_one_line(exported, tmp_path, tiny_data):
    arrays, about = load_file(exported), read_about(exported)
    arrays['params/backbone/conv1/kernel'] = np.zeros((5, 5, 3, 5), np.float32)
    arrays['params/extra'] = arrays.pop('batch_stats/backbone/bn1/var')
    save_file(arrays, tmp_path / 'other.safetensors', {'fsar_jax': json.dumps(about)})
    config = tiny_config('strm', {**SETTINGS, 'data.dir': str(tiny_data)})
    error = error_of(exported_variables, tmp_path / 'other.safetensors', config)
    assert 'batch_stats/backbone/bn1/var is missing' in error
    assert 'params/backbone/conv1/kernel is float32 [5, 5, 3, 5], not float32 [5, 5, 3, 4]' in error
    assert 'params/extra is unknown' in error


def test_a_damaged_best_checkpoint_falls_back_and_says_so(run, tmp_path, capsys):
    workdir = shutil.copytree(run, tmp_path / 'strm')
    for path in (workdir / 'checkpoints' / '2').rglob('*'):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[:-1])
    export.main([f'--workdir={workdir}'])
    out = capsys.readouterr().out
    assert 'of step 4, selected on val accuracy at step 4 (damaged: step 2)' in out
    about = json.loads((workdir / 'strm.json').read_text())
    assert about['damaged_checkpoints'] == [2] and about['val_accuracy'] == 0.5


def test_what_cannot_be_exported_or_written_is_one_line(run, exported, tmp_path, monkeypatch):
    start = lambda workdir, out, *flags: error_of(
        export.main, [f'--workdir={workdir}', f'--out={out}', *flags]
    )
    assert 'no checkpoint in ' in start(tmp_path, tmp_path / 'a.safetensors')
    assert start(run, exported) == (
        f'{exported} exists: name another file with --out, or give --overwrite'
    )
    assert 'a.pth does not end in .safetensors' in start(run, tmp_path / 'a.pth')
    assert 'no/a.safetensors lies in a folder that does not exist' in start(
        run, tmp_path / 'no/a.safetensors'
    )
    assert '--out=gs://b/a.safetensors: gs:// addresses' in start(run, 'gs://b/a.safetensors')
    assert "--workdir=s3://b/run: s3:// addresses" in start(
        's3://b/run', tmp_path / 'a.safetensors'
    )
    (tmp_path / 'b.json').mkdir()
    assert 'b.json is a folder' in start(run, tmp_path / 'b.safetensors', '--overwrite')
    before = exported.read_bytes()
    export.main([f'--workdir={run}', f'--out={exported}', '--overwrite'])
    assert exported.read_bytes() == before


def test_a_header_that_is_damaged_is_one_line(exported, tmp_path):
    arrays = {'params/x': np.zeros(3, np.float32)}
    for text in ('[]', '{', '{"config": 3}', '[' * 100_000, '{"config": {}}'):
        save_file(arrays, tmp_path / 'a.safetensors', {'fsar_jax': text})
        error = error_of(read_about, tmp_path / 'a.safetensors')
        assert 'its header is not as an export writes it' in error
    save_file(arrays, tmp_path / 'plain.safetensors')
    assert read_about(tmp_path / 'plain.safetensors') is None
    assert read_about(tmp_path / 'absent.safetensors') is None
