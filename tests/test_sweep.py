"""Sweeps: what runs, what is skipped, what goes on, and that no run is done twice at once."""

import contextlib
import json
import pathlib
import subprocess
import sys
import textwrap
import threading

import pytest
from tiny_run import CPU, REPOSITORY, TINY, get_config, shared_programs

from fsar_jax import sweep
from fsar_jax.config import settings_by_key
from fsar_jax.evaluation import paper_tables
from fsar_jax.evaluation.results import read_results

# In the place of fsar_jax.train: it notes when it works, writes what a run writes, and fails on a
# learning rate of 0.
STAND_IN = '''
import fcntl, json, os, pathlib, sys, time
flags = dict(flag.partition('=')[::2] for flag in sys.argv[1:])
method = pathlib.Path(flags['--config'].partition(':')[0]).stem
workdir, settings = pathlib.Path(flags['--workdir']), json.loads(open(method + '.json').read())
for key, value in flags.items():
    if key.startswith('--config.'):
        try:
            value = json.loads(value)
        except ValueError:
            pass
        settings[key.removeprefix('--config.')] = value
lock = open(workdir / 'lock', 'a')
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
with open(workdir.parents[1] / 'calls.txt', 'a') as calls:
    calls.write(f'{workdir} {time.monotonic()} {os.getpid()}\\n')
print('working')
if settings['train.learning_rate'] == 0:
    sys.exit('error: a rate of 0 teaches nothing')
if settings['train.momentum'] == 0.5:
    os.kill(os.getpid(), 9)
(workdir / 'metrics.jsonl').write_text('{"step": 1, "loss": 1}\\n{"step": 2, "loss": 1}\\n')
time.sleep(float(os.environ.get('STAND_IN_SECONDS', 0)))
changed = '--mode' in flags and '--config.episode.shot' in flags
name = 'results.shot=2.json' if changed else 'results.json'
name = 'results.weights=x.json' if '--weights' in flags else name
(workdir / name).write_text(json.dumps({
    'method': method, 'dataset': 'd', 'split': 'test', 'way': 5, 'shot': settings['episode.shot'],
    'accuracy': 0.5, 'ci95': 1.96 * 0.5 / 2**0.5, 'num_episodes': 2, 'queries': 1,
    'episodes_hash': 'e', 'correct': [0, 1], 'params_hash': f"{settings['train.num_steps']}",
    'config': settings}))
print(workdir / name)
'''
ROWS = '''
# two trainings, an evaluation of the first, and one that fails
python -m fsar_jax.train --config=protonet
python main.py --config=configs/otam.py --workdir=runs/mine \\
    --config.model.matcher.smoothness=0.2
fsar-jax evaluate --config=protonet --config.episode.shot=2
--config=trm --config.train.learning_rate=0
'''
NAMES = ['protonet', 'mine', 'trm-train.learning_rate=0', 'protonet-episode.shot=2-evaluated']


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with rows.txt, in which fsar_jax.train is the stand-in."""
    (tmp_path / 'stand_in.py').write_text(STAND_IN)
    (tmp_path / 'rows.txt').write_text(ROWS)
    (tmp_path / 'out').mkdir()
    for method in ('protonet', 'otam', 'trm'):
        settings = settings_by_key(get_config(method))
        (tmp_path / f'{method}.json').write_text(json.dumps(settings))
    (tmp_path / 'configs').symlink_to(REPOSITORY / 'configs')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, 'PROGRAM', (sys.executable, str(tmp_path / 'stand_in.py')))
    monkeypatch.setattr(sweep, 'LOOK_SECONDS', 0.1)
    return tmp_path


def calls(folder):
    """The workdirs that were worked in, in order, as 'protonet/seed0'."""
    file = folder / 'out' / 'calls.txt'
    lines = file.read_text().splitlines() if file.exists() else []
    return ['/'.join(pathlib.Path(line.split()[0]).parts[-2:]) for line in lines]


def start(*more):
    """The status of a sweep over rows.txt."""
    return sweep.main(['rows.txt', '--root=out', '--seeds=0,1', *more])


def test_rows_run_one_after_the_other_and_a_failed_one_is_one_line(folder, capsys):
    assert start() == 1
    out, err = capsys.readouterr()
    # Evaluations last, in the folder of the run that they evaluate; all rows with seed 0 first.
    runs = ['protonet', 'mine', 'trm-train.learning_rate=0', 'protonet']
    assert calls(folder) == [f'{name}/seed{seed}' for seed in (0, 1) for name in runs]
    for name in ('protonet', 'mine', 'protonet-episode.shot=2-evaluated'):
        assert read_results(folder / 'out' / name / 'seed1')['config']['seed'] == 1
    assert '[3/8] trm-train.learning_rate=0 seed 0: a rate of 0 teaches nothing\n' in out
    assert '[1/8] protonet seed 0: 50.00% ± 69.30%\n' in out
    assert err.splitlines()[-1] == (
        'error: 2 of 8 runs failed: trm-train.learning_rate=0 seed 0, '
        'trm-train.learning_rate=0 seed 1'
    )
    # The table: protonet 1-shot and 2-shot, otam.
    assert sum(line.startswith(('| protonet', '| otam')) for line in out.splitlines()) == 3
    assert '(2 seeds)' in out


def test_a_repeated_sweep_does_what_is_not_finished(folder, capsys):
    start()
    (folder / 'out' / 'mine' / 'seed1' / 'results.json').unlink()  # as if it had been killed
    before = len(calls(folder))
    assert start() == 1
    assert calls(folder)[before:] == [
        'trm-train.learning_rate=0/seed0',
        'mine/seed1',
        'trm-train.learning_rate=0/seed1',
    ]
    assert 'protonet seed 0: 50.00% ± 69.30%, as it was' in capsys.readouterr().out


def test_results_of_other_settings_are_not_taken_for_finished(folder):
    assert start('--only=protonet*') == 0
    before = len(calls(folder))
    assert start('--only=protonet*') == 0 and len(calls(folder)) == before
    # Longer runs, and so the evaluation of them too.
    assert start('--only=protonet*', '--config.train.num_steps=999') == 0
    assert calls(folder)[before:] == ['protonet/seed0'] * 2 + ['protonet/seed1'] * 2
    found = read_results(folder / 'out/protonet-episode.shot=2-evaluated/seed0')
    assert found['config']['train.num_steps'] == 999 and found['shot'] == 2


def test_published_weights_are_evaluated_in_a_folder_of_their_own(folder):
    (folder / 'rows.txt').write_text('fsar-jax evaluate --config=trm --weights=x.pth')
    for _ in range(2):
        assert start('--seeds=0') == 0
    [workdir] = {path.parent for path in folder.glob('out/*/seed0/results*.json')}
    assert calls(folder) == ['trm-weights=x.pth-evaluated/seed0']
    assert workdir.parent.name == 'trm-weights=x.pth-evaluated'
    assert read_results(workdir)['method'] == 'trm'
    # The same folder, with a file that has changed since, or another method.
    (folder / 'x.pth').touch()
    assert start('--seeds=0') == 0
    assert len(calls(folder)) == 2
    (folder / 'rows.txt').write_text(
        'fsar-jax evaluate --config=otam --weights=x.pth --workdir=trm-weights=x.pth-evaluated'
    )
    for _ in range(2):
        assert start('--seeds=0') == 0
    assert len(calls(folder)) == 3 and read_results(workdir)['method'] == 'otam'


def test_a_pattern_takes_the_runs_that_its_evaluations_are_of(folder):
    assert start('--only=*evaluated', '--seeds=0') == 0
    assert calls(folder) == ['protonet/seed0'] * 2


def test_a_run_that_began_from_other_weights_is_refused(folder, capsys):
    assert start('--only=mine') == 0
    assert start('--only=mine', '--config.model.backbone.weights=resnet.pth') == 1
    assert (
        "results.json is of other settings (model.backbone.weights=None there, 'resnet.pth' here): "
        'use another --root'
    ) in capsys.readouterr().out


def test_a_setting_that_is_not_given_any_more_counts(folder):
    assert start('--only=mine', '--seeds=0', '--config.data.train_clips_per_class=5') == 0
    runs = sweep.runs_of(sweep.rows_of(['rows.txt']), [0], folder / 'out')
    assert [sweep.is_finished(run) for run in runs if run.row.name == 'mine'] == [False]


def test_rows_are_split_as_a_shell_splits_them(folder):
    (folder / 'rows.txt').write_text(
        '\ufeff--config=otam --config.data.dir=/d/run#3 --config.seed=1  # it\'s "the third\n'
        '# two methods \\\n'
        "--config=trm --config.data.dir='#a b'\n"
        '--config=strm \\\n    --config.seed=2 \\',
        encoding='utf-8',
    )
    assert [row.flags for row in sweep.rows_of(['rows.txt'])] == [
        ('--config=otam', '--config.data.dir=/d/run#3', '--config.seed=1'),
        ('--config=trm', '--config.data.dir=#a b'),
        ('--config=strm', '--config.seed=2'),
    ]


def test_a_row_with_a_seed_of_its_own_is_refused(folder):
    (folder / 'rows.txt').write_text('--config=otam\n--config=trm --config.seed 7\n')
    with pytest.raises(ValueError, match=r"^row 'trm-seed=7' has --config\.seed=7: take it out"):
        start('--seeds=0')
    assert start('--seeds=0', '--only=otam', '--list') == 0


def test_a_line_that_is_no_training_is_refused(folder):
    (folder / 'rows.txt').write_text('--config=otam\n\npython -m fsar_jax.trian --config=trm\n')
    with pytest.raises(ValueError, match=r'line 3: python -m fsar_jax\.trian .* neither trains'):
        start('--seeds=0')


def test_an_evaluation_of_what_does_not_train_is_one_line(folder):
    (folder / 'rows.md').write_text(
        '| row | command |\n|---|---|\n| strm | `fsar-jax evaluate --config=strm` |\n'
    )
    with pytest.raises(ValueError, match="row 'strm' evaluates 'strm', which does not train"):
        sweep.rows_of(['rows.md'])


def test_results_on_another_list_of_episodes_are_not_taken_for_finished(folder):
    assert start('--only=mine') == 0
    done = sweep.runs_of(sweep.rows_of(['rows.txt']), [0], folder / 'out')
    other = ['--config.eval.episodes_file=list.jsonl']
    listed = sweep.runs_of(sweep.rows_of(['rows.txt']), [0], folder / 'out', other)
    finished = lambda runs: [sweep.is_finished(run) for run in runs if run.row.name == 'mine']
    assert finished(done) == [True] and finished(listed) == [False]


def test_a_sweep_on_val_is_refused_before_it_trains(folder, capsys):
    assert start('--only=mine', '--config.eval.split=val') == 1
    assert 'config.eval.split=val: a sweep tests on the test split' in capsys.readouterr().out
    assert calls(folder) == []


def test_flags_with_spaces_and_in_any_order():
    for words in (
        ['vim-t4', '--config.data.dir=/my data', '--config.data.flip', 'False', '--seeds=1'],
        ['--config.data.dir', '/my data', '--config.data.flip=False', 'vim-t4', '--seeds', '1'],
    ):
        args, flags = sweep.parsed(words)
        assert (args.tables, args.seeds) == (['vim-t4'], (1,))
        assert flags == ['--config.data.dir=/my data', '--config.data.flip=False']
    with pytest.raises(ValueError, match="unexpected argument '--confg.data.dir=x'"):
        sweep.parsed(['vim-t4', '--confg.data.dir=x'])


def test_an_evaluation_waits_for_its_run(folder, capsys):
    (folder / 'rows.txt').write_text(
        '--config=trm --config.train.learning_rate=0 --workdir=a\n'
        'fsar-jax evaluate --config=trm --workdir=a --config.episode.shot=2'
    )
    assert start('--seeds=0') == 1
    assert 'the run that it evaluates, a seed 0, is not finished' in capsys.readouterr().out


def test_a_killed_run_says_how_and_where_its_log_is(folder, capsys):
    (folder / 'rows.txt').write_text('--config=trm --config.train.momentum=0.5')
    assert start('--seeds=0') == 1
    assert (
        'it ended with SIGKILL (working): out/trm-train.momentum=0.5/seed0/log.txt has what it '
        'printed'
    ) in capsys.readouterr().out


def test_flags_that_cannot_be_read_fail_before_anything_runs(folder, capsys):
    (folder / 'rows.txt').write_text('--config=nope\n--config=trm:nope\n--config=protonet')
    assert start('--seeds=0') == 1
    out = capsys.readouterr().out
    assert "] nope seed 0: --config=nope: no such file or method; the methods are" in out
    assert "] trm-nope seed 0: unknown preset 'nope': choose one of" in out
    assert calls(folder) == ['protonet/seed0']


def test_the_list_says_how_far_each_run_is_and_changes_nothing(folder, capsys):
    assert start('--list') == 0
    assert capsys.readouterr().out.count('not begun') == 8
    assert list((folder / 'out').iterdir()) == []
    start('--seeds=0')
    workdir = folder / 'out' / 'protonet' / 'seed1'
    workdir.mkdir()
    (workdir / 'metrics.jsonl').write_text('{"step": 119}\n{"step": 120}\n{"st')
    (folder / 'out' / 'mine' / 'seed1').mkdir()
    with sweep.file_lock(folder / 'out' / 'mine' / 'seed1' / 'sweep.lock'):
        start('--list')
    assert capsys.readouterr().out.split('protonet    paper')[1] == textwrap.dedent("""\
         none
            python -m fsar_jax.train --config=protonet
            seed 0: 50.00% ± 69.30%
            seed 1: stopped at step 120 of 240
        mine    paper none
            python main.py --config=configs/otam.py --workdir=runs/mine {more}
            seed 0: 50.00% ± 69.30%
            seed 1: running, step 0 of 240
        trm-train.learning_rate=0    paper none
            --config=trm --config.train.learning_rate=0
            seed 0: failed: a rate of 0 teaches nothing
            seed 1: not begun
        protonet-episode.shot=2-evaluated    paper none
            fsar-jax evaluate --config=protonet --config.episode.shot=2
            seed 0: 50.00% ± 69.30%
            seed 1: not begun
    """).format(more='--config.model.matcher.smoothness=0.2')


@pytest.mark.parametrize('count', [1, 2, 3, 5])
def test_the_shares_are_all_runs_once_and_keep_evaluations_with_their_runs(folder, count):
    rows = paper_tables.rows_of(['rows.txt'])
    assert [row.name for row in rows] == NAMES
    shares = [
        sweep.runs_of(rows, (0, 1), pathlib.Path('out'), (), (i, count)) for i in range(count)
    ]
    everything = sweep.runs_of(rows, (0, 1), pathlib.Path('out'))
    assert sorted(run for share in shares for run in share) == sorted(everything)
    assert len(everything) == 8
    for share in shares:
        folders = {run.folder for run in share}
        assert all(run.source in folders for run in share)


def test_a_part_waits_for_what_another_process_works_on(folder):
    """As a task on a Ray cluster does, whose worker was lost and has left its run behind."""
    workdir = folder / 'out' / 'protonet' / 'seed0'
    workdir.mkdir(parents=True)
    held = contextlib.ExitStack()
    held.enter_context(sweep.file_lock(workdir / 'lock'))
    threading.Timer(0.5, held.close).start()
    arguments = ['rows.txt', '--root=out', '--seeds=0', '--only=protonet*']
    found = dict(sweep.run_share([*arguments, '--rows=0/1']))
    assert {str(path) for path in found} == {
        'out/protonet/seed0',
        'out/protonet-episode.shot=2-evaluated/seed0',
    }
    assert {outcome.state for outcome in found.values()} == {sweep.FINISHED}


SWEEP = (
    'import sys; from fsar_jax import sweep; sweep.PROGRAM = sys.executable, "stand_in.py"; '
    'sys.exit(sweep.main(["rows.txt", "--root=out"]))'
)


@pytest.mark.slow
def test_two_processes_share_a_sweep_and_never_run_the_same(folder):
    """Without --rows: each takes what the other does not work on."""
    (folder / 'rows.txt').write_text('--config=protonet\n--config=otam\n--config=trm')
    env = {**CPU, 'STAND_IN_SECONDS': '0.7', 'PYTHONPATH': str(REPOSITORY)}
    both = [
        subprocess.Popen([sys.executable, '-c', SWEEP], env=env, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert len(calls(folder)) == 9 and len(set(calls(folder))) == 9
    assert len(list(folder.glob('out/*/seed*/results.json'))) == 9


@pytest.mark.slow
def test_a_real_run_and_its_evaluation(tiny_data, tmp_path, monkeypatch, capsys):
    """One step; the run's own results, and those of another number of shots."""
    settings = TINY | {
        'data.dir': tiny_data,
        'train.num_steps': 1,
        'train.episodes_per_step': 1,
        'eval.val_episodes': 0,
    }
    flags = [f'--config.{key}={value}' for key, value in settings.items()]
    (tmp_path / 'rows.md').write_text(
        '### mine-t1: two rows\n\n| command | row |\n|---|---|\n'
        '| `fsar-jax train --config=protonet` | p |\n'
        '| `fsar-jax evaluate --config=protonet --workdir=p --config.episode.shot=2` | p2 |\n'
        '| — | p3 |\n'
    )
    for key, value in shared_programs().items():
        monkeypatch.setenv(key, value)
    arguments = [str(tmp_path / 'rows.md'), f'--root={tmp_path}', '--seeds=3', *flags]
    assert sweep.main(arguments) == 0
    out = capsys.readouterr().out
    trained, evaluated = (read_results(tmp_path / name / 'seed3') for name in ('p', 'p2'))
    assert (trained['shot'], evaluated['shot']) == (1, 2)
    assert trained['params_hash'] == evaluated['params_hash']
    assert trained['config']['seed'] == 3
    assert out.count('| protonet') == 2
    assert sweep.main(arguments) == 0
    assert capsys.readouterr().out.count('as it was') == 2
