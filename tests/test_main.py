"""The command line of main.py: one line for bad input, the same results twice, published weights,
exchanged episodes."""

import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_run import (
    REPOSITORY,
    error_of,
    finish,
    main_here,
    shallow_networks,
    start_main,
    tiny_config,
    tiny_flags,
)

from fsar_jax import train
from fsar_jax.config import SETTINGS
from fsar_jax.data import episodes as episode_lists
from fsar_jax.data import loader
from fsar_jax.data.dataset import open_dataset
from fsar_jax.evaluation.results import read_results
from fsar_jax.messages import one_line
from fsar_jax.training.departures import content_of_evaluation
from fsar_jax.training.train import evaluate_only, train_and_evaluate
from fsar_jax.training.workdir import TRAINED_ON, make_workdir

TRAIN = {'train.num_steps': 2, 'episode.query': 1}


@pytest.fixture(scope='module', autouse=True)
def shallow():
    with shallow_networks():
        yield


@pytest.fixture(scope='module')
def trained(tiny_data, tmp_path_factory):
    """(flags, workdir, stdout) of STRM after two steps."""
    workdir = tmp_path_factory.mktemp('trained') / 'strm'
    flags = tiny_flags('strm', tiny_data, workdir, TRAIN)
    return flags, workdir, main_here(*flags)


def without_seconds(results):
    return {key: value for key, value in results.items() if key != 'seconds'}


@pytest.mark.slow
def test_results_hold_what_a_reader_needs(trained):
    _, workdir, said = trained
    results = json.loads((workdir / 'results.json').read_text())
    config = results['config']
    assert (results['method'], results['dataset'], results['split']) == (
        'strm',
        'video_folder/tiny',
        'test',
    )
    assert (results['way'], results['shot'], results['queries'], results['num_episodes']) == (
        2,
        1,
        2,
        30,
    )
    assert sorted(results['per_class']) == ['test 0', 'test 1', 'test 2']
    assert np.sum(results['confusion']) == 60 and np.trace(results['confusion']) == sum(
        results['correct']
    )
    assert results['accuracy'] == pytest.approx(sum(results['correct']) / 60)
    assert (
        config['train']['num_steps'] == 2
        and config['model']['enrichment']['patch'] == 'self_attention'
    )
    assert results['versions']['jax'] and len(results['params_hash']) == 64
    assert results['selected_on'] == 'val accuracy at step 2'
    last = said.splitlines()[-2]
    assert last.startswith(
        f"strm, video_folder/tiny, test, 2-way 1-shot: {results['accuracy']:.2%} ± "
        f"{results['ci95']:.2%} ("
    )
    assert 'chance 50%' in last
    for factor in 'NLBSDFRCEZT':  # the hidden factors are in the plan
        assert any(line.startswith(f'  {factor}  ') for line in said.splitlines()), factor


@pytest.mark.slow
def test_evaluating_again_with_and_without_cache(trained):
    """With the settings of the run, none of which is given again."""
    _, workdir, _ = trained
    first = read_results(workdir)
    again = f'--workdir={workdir}', '--mode=evaluate'
    said = main_here('--config=configs/strm.py', *again)
    assert without_seconds(read_results(workdir)) == without_seconds(first)
    assert 'not as the run' not in said
    main_here('--config=configs/strm.py', *again, '--config.eval.cache=False')
    uncached = read_results(workdir)
    assert 'episodes' in uncached['seconds'] and 'embed' in first['seconds']
    for key in ('accuracy', 'correct', 'confusion', 'episodes_hash', 'params_hash', 'selected_on'):
        assert uncached[key] == first[key], key


@pytest.mark.slow
def test_what_departs_from_the_run_is_said_and_kept_apart(trained):
    _, workdir, _ = trained
    before = (workdir / 'results.json').read_bytes()
    said = main_here(
        '--config=configs/strm.py',
        f'--workdir={workdir}',
        '--mode=evaluate',
        '--config.episode.shot=2',
        '--config.episode.way=2',
        '--config.eval.num_episodes=5',
        '--config.model.align_at_test=False',
        '--config.data.num_threads=1',
        '--config.eval.split=val',
    )
    assert (workdir / 'results.json').read_bytes() == before
    path = workdir / 'results_val.shot=2.num_episodes=5.align_at_test=False.json'
    results = read_results(path)
    assert said.endswith(f'{path}\n')
    [line] = [line for line in said.splitlines() if line.startswith('  not as the run ')]
    assert line.endswith(
        "  episode.shot=2 (1 in the run), eval.num_episodes=5 (30 in the run), eval.split='val' "
        "('test' in the run), "
        "model.align_at_test=False (True in the run)"
    )
    assert (results['shot'], results['way'], results['num_episodes'], results['split']) == (
        2,
        2,
        5,
        'val',
    )
    assert (
        results['config']['model']['matcher']['dim'] == 16
    )  # of the run, and nowhere in this command


@pytest.mark.slow
@pytest.mark.parametrize('config', ['trx.py', 'trm.py', 'strm.py:ssv2'])
def test_a_run_of_another_method_is_one_line(config, trained):
    _, workdir, _ = trained
    assert error_of(f'--config=configs/{config}', f'--workdir={workdir}', '--mode=evaluate') == (
        f'error: {workdir} holds a run of strm.py, not of {config}: evaluate it with the --config '
        'of its training, or another --workdir'
    )


@pytest.mark.slow
def test_an_exchanged_episode_list(trained, tiny_data, tmp_path):
    flags, workdir, _ = trained
    config = tiny_config('strm', {**TRAIN, 'data.dir': str(tiny_data)})
    dataset = loader.usable(open_dataset('video_folder/tiny', tiny_data, 'test'), config)
    episodes = episode_lists.draw_episodes(dataset, 2, 1, 1, seed=5, count=12)
    episode_lists.write_episodes(tmp_path / 'episodes.jsonl', dataset, episodes)
    main_here(*flags, '--mode=evaluate', f'--config.eval.episodes_file={tmp_path}/episodes.jsonl')
    digest = episode_lists.episodes_hash(dataset, episodes)
    results = read_results(workdir / f'results.episodes_file=episodes-{digest[:8]}.json')
    assert results['num_episodes'] == 12 and results['episodes_hash'] == digest


def strm_state_dict(rng, dim=2048, out=16, patches=4, frames=4):
    """A state dict with the names and shapes of STRM's release with ResNet-50, of random numbers,
    the head only where asked."""
    linear = lambda name, outputs, inputs: {
        f'{name}.weight': rng.normal(0, 0.02, (outputs, inputs)),
        f'{name}.bias': rng.normal(0, 0.02, outputs),
    }
    half = dim // 2
    head = {}
    for name, outputs, inputs in (
        ('key_proj', dim, dim),
        ('query_proj', dim, dim),
        ('value_conv', dim, dim),
        ('Bot_MLP.inp_fc', half, dim),
        ('Bot_MLP.hid_fc', half, half),
        ('Bot_MLP.out_fc', dim, half),
    ):
        head |= linear(f'attn_pat.{name}', outputs, inputs)
    head['attn_pat.gamma'] = np.array([0.5])
    for name, size in (
        ('Tok_MLP.inp_fc', frames),
        ('Tok_MLP.out_fc', frames),
        ('Bot_MLP.inp_fc', dim),
        ('Bot_MLP.out_fc', dim),
    ):
        head |= linear(f'fr_enrich.{name}', size, size)
    head |= linear('transformers.0.k_linear', out, 2 * dim) | linear(
        'transformers.0.v_linear', out, 2 * dim
    )
    head |= {
        'transformers.0.norm_k.weight': np.ones(out),
        'transformers.0.norm_k.bias': np.zeros(out),
    }
    return head


def resnet18_state_dict(rng):
    """ResNet-18 as TRX and STRM store a backbone: a sequence of its stages."""
    arrays = {}

    def conv(name, out, into, size):
        arrays[f'{name}.weight'] = rng.normal(
            0, (2 / (out * size * size)) ** 0.5, (out, into, size, size)
        )

    def norm(name, channels):
        arrays.update(
            {
                f'{name}.weight': np.ones(channels),
                f'{name}.bias': np.zeros(channels),
                f'{name}.running_mean': np.zeros(channels),
                f'{name}.running_var': np.ones(channels),
            }
        )

    conv('resnet.0', 64, 3, 7), norm('resnet.1', 64)
    into = 64
    for stage, out in enumerate((64, 128, 256, 512)):
        for block in range(2):
            name = f'resnet.{4 + stage}.{block}'
            conv(f'{name}.conv1', out, into, 3), norm(f'{name}.bn1', out)
            conv(f'{name}.conv2', out, out, 3), norm(f'{name}.bn2', out)
            if into != out:
                conv(f'{name}.downsample.0', out, into, 1), norm(f'{name}.downsample.1', out)
            into = out
    return arrays


@pytest.mark.slow
def test_published_weights_without_torch(tiny_data, tmp_path):
    rng = np.random.default_rng(0)
    arrays = resnet18_state_dict(rng) | strm_state_dict(rng, dim=512)
    arrays = {
        f'module.{name}' if name.startswith('resnet') else name: value.astype(np.float32)
        for name, value in arrays.items()
    }
    save_file(arrays, tmp_path / 'strm.safetensors')
    flags = [
        *tiny_flags(
            'strm',
            tiny_data,
            tmp_path / 'run',
            {**TRAIN, 'model.backbone.name': 'resnet18', 'eval.num_episodes': 10},
        ),
        '--mode=evaluate',
        f'--weights={tmp_path}/strm.safetensors',
    ]
    flags[flags.index('--config.model.enrichment.patches=2')] = (
        '--config.model.enrichment.patches=1'
    )
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / TRAINED_ON).write_text(
        '{"train": {}}'
    )  # of a run of one's own, whose workdir this is
    main_here(*flags)
    [path] = (tmp_path / 'run').glob('results*')
    assert path.name.startswith('results.weights=strm.patches=1.')  # … and the other flags
    results = read_results(path)
    assert (
        results['selected_on'] == 'published weights, strm.safetensors'
        and 'trained_on' not in results
    )
    assert {file.name for file in (tmp_path / 'run').iterdir()} == {path.name, TRAINED_ON}
    # Another file of the same name has results of its own; the same file elsewhere has not.
    for folder, value in (('copy', 0.5), ('other', 0.75)):
        (tmp_path / folder).mkdir()
        save_file(
            {**arrays, 'attn_pat.gamma': np.array([value], np.float32)},
            tmp_path / folder / 'strm.safetensors',
        )
    config = tiny_config(
        'strm',
        {
            'model.backbone.name': 'resnet18',
            'model.enrichment.patches': 1,
            'data.dir': str(tiny_data),
        },
    )
    dataset = open_dataset('video_folder/tiny', tiny_data, 'test')
    here, copy, other = (
        content_of_evaluation(config, dataset, f'{tmp_path}/{name}strm.safetensors')
        for name in ('', 'copy/', 'other/')
    )
    assert here == copy != other
    config.model.dtype = 'bfloat16'
    assert content_of_evaluation(config, dataset, f'{tmp_path}/strm.safetensors') != here
    assert re.search(r'\.content=[0-9a-f]{8}\.json$|-[0-9a-f]{8}\.json$', path.name)
    # Of another model: one line that lists what does not fit.
    del arrays['attn_pat.gamma']
    save_file(arrays, tmp_path / 'strm.safetensors')
    error = error_of(*flags)
    assert f'{tmp_path}/strm.safetensors: the state dict is not one of the model' in error
    assert '1 missing: attn_pat.gamma [1]' in error


BAD = {
    'wrong key': (
        ['--config.episode.sho=1'],
        'error: no such config key: \'sho\' Did you mean "shot" instead of "sho"?',
    ),
    'wrong type': (
        ['--config.episode.shot=one'],
        'flag --config.episode.shot=one: should be a whole number, at least 1',
    ),
    'no number': (
        ['--config.train.momentum=none'],
        'flag --config.train.momentum=none: should be a number, at least 0 and less than 1',
    ),
    'absent dataset': (
        ['--config.data.dataset=video_folder/absent'],
        "dataset 'video_folder/absent' is not in {data}: build it with python -m "
        "fsar_jax.build "
        '--dataset=video_folder/absent --dir={data} --videos=FOLDER',
    ),
    'absent directory': (
        ['--config.data.dir=/nowhere'],
        "dataset 'video_folder/tiny' is not in /nowhere: build it with ",
    ),
    'empty split': (
        ['--config.data.dataset=video_folder/no_val'],
        "split 'val' of dataset 'video_folder/no_val' is empty: see ",
    ),
    'one way': (
        ['--config.episode.way=1'],
        'config.episode.way=1 is too small, it must be at least 2: an episode needs',
    ),
    'too many ways': (
        ['--config.episode.way=4'],
        'has 3 classes, 4-way episodes need 4: lower config.episode.way',
    ),
    'too many shots': (
        ['--config.episode.shot=4'],
        "has 4 clips, 4 support + 2 query per class need 6",
    ),
    'absent flag file': (
        ['--flagfile=/nowhere'],
        "Unable to open flagfile: [Errno 2] No such file or directory: '/nowhere'",
    ),
    'unknown flag': (['--confg.episode.way=5'], "Unknown command line flag 'confg.episode.way'"),
    'a word': (
        ['evaluate'],
        "unexpected argument 'evaluate': flags look like --config.episode.shot=5",
    ),
    'unknown preset': (
        ['--config=configs/protonet.py:hmdb'],
        "unknown preset 'hmdb': choose one of ssv2, ssv2_full, ssv2_small, kinetics, hmdb51, "
        'ucf101, activitynet, with or without a number of shots as in ssv2-1shot, or none for the '
        'embedded default',
    ),
    'missing config': (['--config=configs/absent.py'], 'configs/absent.py'),
    'unknown mode': (['--mode=test'], 'flag --mode=test: value should be one of <train|evaluate>'),
    'nothing to evaluate': (
        ['--mode=evaluate'],
        'no checkpoint in {work}/checkpoints, or no config.json beside them: train first, or check '
        '--workdir',
    ),
    'absent weights': (['--mode=evaluate', '--weights=absent.pth'], 'absent.pth'),
    'weights of a shell variable that is not set': (
        ['--mode=evaluate', '--weights='],
        '--weights is empty: give a path, or leave it out',
    ),
    'a start of such a variable': (
        ['--config.model.backbone.weights='],
        "config.model.backbone.weights='' must not be empty; None for none",
    ),
    'weights without a sampler': (
        ['--config=configs/vim.py:otam', '--mode=evaluate', '--weights=otam.pth'],
        "otam.pth: no published checkpoint has the learned sampler of "
        "config.model.sampler.name='task_adaptive'",
    ),
    'bad cluster': (
        ['--distributed=two'],
        "--distributed=two should be 'auto' or 'host:port,count,index'",
    ),
    'cluster without a port': (
        ['--distributed=localhost,1,0'],
        "--distributed=localhost,1,0 should be 'auto' or 'host:port,count,index'",
    ),
    'a place beyond the cluster': (
        ['--distributed=localhost:1234,2,5'],
        "--distributed=localhost:1234,2,5 should be 'auto' or 'host:port,count,index', the index "
        'from 0 on',
    ),
    'unknown matcher': (
        ['--config.model.matcher.name=dtw'],
        "config.model.matcher.name='dtw' is not one of ",
    ),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(case, tiny_data, tmp_path):
    extra, message = BAD[case]
    config, *flags = tiny_flags('protonet', tiny_data, tmp_path / 'run')
    other = extra[0].startswith('--config=')
    error = error_of(*(extra if other else [config]), *flags, *([] if other else extra))
    assert message.format(data=tiny_data, work=tmp_path / 'run') in error
    assert not (tmp_path / 'run' / 'checkpoints' / 'config.json').exists()


@pytest.mark.slow
def test_bad_input_is_one_line_of_stderr_and_status_1():
    """As a process, with Orbax, TFDS and JAX imported."""
    process = start_main('--config=strm', '--config.data.dir=/nowhere')
    [(out, err)] = finish(process)
    assert (process.returncode, out) == (1, '')
    assert err.startswith("error: dataset 'synthetic_actions/misaligned' is not in /nowhere: ")
    assert err.count('\n') == 1


@pytest.mark.parametrize(
    'flag, message',
    [
        ('--config=configs/strm.py:hmdb', "error: unknown preset 'hmdb': choose one of "),
        ('--config=configs/vim.py:trx-hmdb', "error: unknown preset 'trx-hmdb': choose one of "),
        (
            '--config={}/absent_module.py',
            "error: --config cannot be loaded: ModuleNotFoundError: No module named 'absent'",
        ),
        ('--config={}/plain_dict.py', 'error: get_config() of --config returns no ConfigDict'),
        (
            '--config.model.matcher=otam',
            'error: flag --config.model.matcher',  # …=otam with ml_collections 1.1
        ),
        (
            '--config.data.flip=perhaps',
            'error: flag --config.data.flip=perhaps: should be True or False',
        ),
    ],
)
def test_a_config_that_cannot_be_loaded_is_one_plain_line(flag, message, tmp_path):
    """In this process, and without names of exceptions where the message needs none."""
    (tmp_path / 'absent_module.py').write_text('import absent\n')
    (tmp_path / 'plain_dict.py').write_text('def get_config(preset=""):\n    return {"model": 1}\n')
    argv = ['main.py', '--config=configs/trx.py', flag.format(tmp_path)]
    argv = argv if flag.startswith('--config.') else [argv[0], argv[2]]
    with pytest.raises(SystemExit, match=f'^{re.escape(message)}[^\n]*$') as ended:
        train.parse(argv)
    if 'matcher' in message:
        assert ended.value.code.endswith(': a section of the settings: give one of its keys')


def test_a_wrong_key_in_a_config_file_is_as_short_as_in_a_flag(tmp_path):
    file = tmp_path / 'mine.py'
    for key, meant in (('shots', ' Did you mean "shot" instead of "shots"?'), ('zzz', '')):
        file.write_text(
            'from fsar_jax.config import default_config\n\n\n'
            'def get_config(preset=""):\n'
            '    config = default_config()\n'
            f'    config.episode.{key} = 5\n'
            '    return config\n'
        )
        with pytest.raises(SystemExit) as ended:
            train.parse(['main.py', f'--config={file}'])
        assert ended.value.code == (
            f'error: no such config key: "{key}"{meant} (python -m fsar_jax.settings lists them)'
        )


def test_a_method_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'strm').mkdir()  # a folder of the same name is not a config
    for name in ('strm', 'strm:ssv2'):
        given = train.parse(['main.py', f'--config={name}', '--config.episode.shot=3'])
        stem, _, preset = name.partition(':')
        path = f'{REPOSITORY}/configs/{stem}.py' + (f':{preset}' if preset else '')
        by_path = train.parse(['main.py', '--config', path, '--config.episode.shot=3'])
        assert given.config == by_path.config and given.config.episode.shot == 3
    flag_file = tmp_path / 'flags'
    flag_file.write_text('--config=strm\n--config.episode.shot=2\n')
    assert train.parse(['main.py', f'--flagfile={flag_file}']).config.episode.shot == 2
    train.run(['main.py', '--config=strm:ssv2', '--help'])
    out = capsys.readouterr().out
    assert re.search(r'--config.episode.image_size=224 +pixels per side', out)
    assert all(f'--config.{key}=' in out for key in SETTINGS) and '  --workdir ' in out
    assert 'Methods: hyrsm, mastaf, ' in out


def test_paths_in_flags(tmp_path, monkeypatch, capsys):
    """In this process: '~' is expanded, an address is one line that names the flag, a file that is
    no config another."""
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.py').write_text('')
    assert train.with_config_path(['main.py', '--config=~/mine.py:ssv2', '--workdir=~/x']) == [
        'main.py',
        f'--config={tmp_path}/mine.py:ssv2',
        '--workdir=~/x',
    ]
    assert train.with_config_path(['main.py', '--config', '~/mine.py']) == [
        'main.py',
        '--config',
        f'{tmp_path}/mine.py',
    ]
    for flag, message in (
        (
            '--config=s3://bucket/strm.py',
            '--config=s3://bucket/strm.py: s3:// addresses are not read or written here',
        ),
        ('--config=~/absent.py', '--config=~/absent.py: no such file or method; the methods are '),
        ('--config=strn', '--config=strn: no such file or method; the methods are hyrsm, mastaf, '),
        ('--config=configs', '--config=configs: no such file'),
    ):
        with pytest.raises(SystemExit, match=f'^error: {message}[^\n]*$'):
            train.parse(['main.py', flag])
    config = tiny_config('protonet')
    for workdir in ('gs://bucket/run', 'file:///tmp/run'):
        with pytest.raises(
            ValueError,
            match=f'^--workdir={workdir}: [a-z]+:// addresses are not read or written here',
        ):
            train_and_evaluate(config, workdir, 'protonet')
        with pytest.raises(ValueError, match=f'^--workdir={workdir}: '):
            evaluate_only(config, workdir, 'protonet')
    (tmp_path / 'file').write_text('')
    for workdir in (tmp_path / 'file', tmp_path / 'file' / 'run'):
        with pytest.raises(
            OSError, match=f'^--workdir={workdir} is a file, or lies below one: name a folder'
        ):
            make_workdir(workdir)
    monkeypatch.setattr(
        'tempfile.TemporaryFile', lambda dir: open(dir / 'absent' / 'tmp1')
    )  # as where nothing may be written
    with pytest.raises(OSError) as error:
        make_workdir(tmp_path / 'run')
    assert one_line(error.value) == f'{tmp_path}/run: {os.strerror(error.value.errno)}'


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['train', 'evaluate'])
def test_a_checkpoint_of_another_model_is_one_line(mode, trained):
    flags, workdir, _ = trained
    error = error_of(*flags, '--config.model.matcher.dim=8', f'--mode={mode}')
    assert error == (
        f'error: {workdir}/checkpoints holds a run with other settings (model.matcher.dim=16 '
        'there, 8 here): '
        'use another --workdir, or those settings'
    )
