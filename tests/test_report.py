"""`python -m fsar_jax.report`: which pictures a run gets, and what is left out or refused."""

import importlib.util
import io
import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from tiny_run import tiny_config

from fsar_jax import extract, report
from fsar_jax.analysis.episode_pictures import episode_sections
from fsar_jax.analysis.run_report import Picture, run_pictures, write_report
from fsar_jax.evaluation.results import accuracy_with_interval, confusion_matrix, write_results
from fsar_jax.progress import MetricWriter
from fsar_jax.training.train import train_and_evaluate


def results(correct, queries=4, **changes):
    """The content of results.json, by hand: two classes, the second half of the queries is of the
    second; wrong answers are the other class."""
    correct = np.asarray(correct)
    truth = np.tile(np.repeat([0, 1], queries // 2), len(correct))
    right = (np.arange(queries) < correct[:, None]).ravel()
    confusion = confusion_matrix(truth, np.where(right, truth, 1 - truth), 2)
    accuracy, ci95 = accuracy_with_interval(correct, queries)
    return {
        'method': 'strm',
        'dataset': 'video_folder/tiny',
        'split': 'test',
        'way': 2,
        'shot': 1,
        'queries': queries,
        'num_episodes': len(correct),
        'accuracy': accuracy,
        'ci95': ci95,
        'chance': 0.5,
        'selected_on': 'val accuracy at step 4',
        'per_class': dict(zip('ab', (confusion.diagonal() / confusion.sum(1)).tolist())),
        'classes': ['a', 'b'],
        'confusion': confusion.tolist(),
        'episodes_hash': 'one list',
        'config': {'seed': 0},
        'correct': correct.tolist(),
        **changes,
    }


def make_run(folder, correct=(4, 3, 2, 4), steps=6, **changes):
    if correct:
        write_results(folder, results(correct, **changes))
    if steps:
        with MetricWriter(folder, stream=io.StringIO()) as writer:
            for step in range(1, steps + 1):
                writer.write(step, {'loss': 1 / step, 'accuracy': 0.5, 'gradient_norm': 2.0})
                if step % 2 == 0:
                    writer.write(step, {'val_accuracy': 0.6 if step == 4 else 0.5})
    return folder


def written(folder):
    return {path.stem for path in folder.glob('*.png')}


RUN_PICTURES = {'training_curves', 'accuracy', 'confusion', 'classes'}


def test_one_page_holds_every_picture_and_needs_nothing_else(tmp_path, capsys):
    report.main([f'--workdir={make_run(tmp_path / "run")}'])
    folder = tmp_path / 'run/report'
    assert capsys.readouterr().out == f'{folder / "index.html"}\n'
    assert written(folder) == {path.stem for path in folder.glob('*.pdf')} == RUN_PICTURES
    page = (folder / 'index.html').read_text()
    assert page.count('src="data:image/png;base64,') == len(RUN_PICTURES)
    outside = re.findall(r'(?:src|href)="(?!data:)[^"]*', page)
    assert not outside and '<script' not in page and '81.25 ± 20.31 %' in page


def test_a_later_report_takes_the_pictures_of_an_earlier_one_away_and_nothing_else(tmp_path):
    """A picture of what the run no longer has would pass for one of this report."""
    run = make_run(tmp_path / 'run')
    report.main([f'--workdir={run}'])
    (run / 'report/mine.png').write_bytes(b'of someone else')
    (run / 'results.json').unlink()
    report.main([f'--workdir={run}'])
    assert written(run / 'report') == {'training_curves', 'mine'}
    assert {path.stem for path in (run / 'report').glob('*.pdf')} == {'training_curves'}


def test_pictures_of_a_report_that_was_killed_are_taken_away_too(tmp_path):
    def killed():
        yield Picture('places', 'Places', '', Figure())
        raise KeyboardInterrupt

    run = make_run(tmp_path / 'run', correct=None)
    with pytest.raises(KeyboardInterrupt):
        write_report(run / 'report', 'Report', {}, [('Episodes', killed())])
    (run / 'report/mine.png').write_bytes(b'of someone else')
    assert written(run / 'report') == {'places', 'mine'}
    report.main([f'--workdir={run}'])
    names = {path.name for path in (run / 'report').iterdir()}
    assert names == {'index.html', 'training_curves.png', 'training_curves.pdf', 'mine.png'}


def test_against_another_run_it_shows_the_paired_difference_and_gains(tmp_path, capsys):
    run = make_run(tmp_path / 'b', (4, 3, 2, 4))
    other = make_run(tmp_path / 'a', (4, 2, 1, 3), method='trm')
    out = tmp_path / 'out'
    report.main([f'--workdir={run}', f'--against={other}', f'--out={out}', '--episodes=0'])
    assert written(out) == RUN_PICTURES | {'paired_difference', 'class_gains'}
    assert 'Paired over 4 episodes: +18.75 ± 10.61 points' in (out / 'index.html').read_text()
    assert 'left out' not in capsys.readouterr().err


def test_runs_on_other_episodes_are_not_compared(tmp_path, capsys):
    run, other = make_run(tmp_path / 'a'), make_run(tmp_path / 'b', episodes_hash='another')
    report.main([f'--workdir={run}', f'--against={other}'])
    assert written(run / 'report') == RUN_PICTURES
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if 'not the same episodes: episodes_hash' in line]
    assert all(line.startswith('note: left out: ') for line in said)


def test_an_accuracy_stands_beside_no_accuracy_on_other_episodes(tmp_path):
    """The line of chance would be wrong for a run of another way."""
    pictures = lambda path, **changes: run_pictures(
        report.read_run(make_run(tmp_path / 'a', steps=0)),
        report.read_run(make_run(tmp_path / path, steps=0, method='trm', **changes)),
    )
    labels = lambda picture: [tick.get_text() for tick in picture.figure.axes[0].get_yticklabels()]
    _, accuracy, *_ = pictures('b')
    assert labels(accuracy) == ['strm', 'trm']
    _, accuracy, *_, why = pictures('c', way=5, episodes_hash='another')
    assert labels(accuracy) == ['strm']
    assert why == (
        'accuracy of trm, and comparison with it: not the same episodes: way is 5 in one and 2 in '
        'the other; evaluate both with the same dataset, split, seed, way, shot and num_episodes, '
        'or with one episodes_file'
    )


def test_an_episode_that_is_not_there_is_refused_before_anything_is_drawn(tmp_path):
    run = make_run(tmp_path / 'run')
    with pytest.raises(ValueError, match='--episodes=0,99999: the test episodes of .* are 0 to '):
        report.main([f'--workdir={run}', '--episodes=0,99999'])
    assert not (run / 'report').exists()


def test_what_a_run_lacks_is_left_out_with_a_line(tmp_path, capsys):
    trained = make_run(tmp_path / 'trained', correct=None)
    report.main([f'--workdir={trained}'])
    assert written(trained / 'report') == {'training_curves'}
    assert 'the run has no results.json' in capsys.readouterr().err

    other = make_run(tmp_path / 'other')
    report.main([f'--workdir={trained}', f'--against={other}'])
    assert written(trained / 'report') == {'training_curves'}  # no accuracy of the other alone

    tested = make_run(tmp_path / 'tested', steps=0, confusion=[], per_class={'a': None, 'b': None})
    report.main([f'--workdir={tested}'])
    assert written(tested / 'report') == {'accuracy'}
    said = capsys.readouterr().err
    for what in ('training curves', 'confusion matrix', 'accuracy of each class'):
        assert f'note: left out: {what}: ' in said


def test_the_marked_checkpoint_is_the_one_that_is_evaluated():
    assert report.best_step([]) is None
    assert report.best_step([{'step': 1, 'loss': 1.0}, {'step': 3, 'loss': 1.0}]) == 3
    lines = [{'step': step, 'val_accuracy': v} for step, v in ((2, 0.5), (4, 0.7), (6, 0.7))]
    assert report.best_step([*lines, {'step': 8, 'val_accuracy': None}]) == 4


@pytest.mark.parametrize(
    'said, step',
    [
        ('val accuracy at step 2', 2),
        ('last step (3)', 3),
        ('val accuracy at step 2 (damaged: step 6)', 2),
        ('published weights, step 4.pth', None),
    ],
)
def test_the_marked_checkpoint_is_that_of_results_json(tmp_path, said, step):
    """metrics.jsonl, with its best at step 4, may be of a longer training."""
    run = make_run(tmp_path / 'run', selected_on=said)
    assert report.read_run(run).selected == step
    (run / 'results.json').unlink()
    assert report.read_run(run).selected == 4


def test_names_from_outside_are_no_markup(tmp_path):
    run = make_run(tmp_path / 'run', method='<script>alert(1)</script>')
    report.main([f'--workdir={run}'])
    assert '<script' not in (run / 'report/index.html').read_text()


def test_what_cannot_be_drawn_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match='^no checkpoint in .*train first, or check'):
        report.main([f'--workdir={tmp_path / "nothing"}'])
    run = make_run(tmp_path / 'run')
    (run / 'results.json').write_text(json.dumps(results([1])).replace('"strm"', '3'))
    with pytest.raises(ValueError, match="results.json: 'method' is 3, not a text"):
        report.main([f'--workdir={run}'])
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None if name == 'sklearn' else find(name)
    )
    with pytest.raises(ValueError, match=r"needs scikit-learn.*pip install 'fsar_jax\[report\]'"):
        report.main([f'--workdir={run}'])


@pytest.mark.parametrize(
    'given, episodes',
    [('20', 20), ('0', 0), ('3,17', [3, 17]), ('3,', [3]), (' 3, 17 ,3', [3, 17])],
)
def test_episodes_are_a_number_or_a_list(given, episodes):
    assert report.parse_episodes(given) == episodes


@pytest.mark.parametrize('given', ['', 'all', '-3', '3,,4', '1.5', ',3', '3 4'])
def test_other_episodes_are_refused_in_one_line(given):
    with pytest.raises(ValueError, match='^--episodes=.*neither a number .* nor a list'):
        report.parse_episodes(given)


@pytest.mark.slow
def test_a_trained_run_is_looked_into(tiny_data, tmp_path, shallow):
    """From the command line to the pictures of chosen episodes; then without what it needs."""
    run = tmp_path / 'run'
    small = {'train.num_steps': 1, 'eval.num_episodes': 10, 'eval.val_episodes': 0}
    config = tiny_config('protonet', {'data.dir': str(tiny_data), **small}, width=8)
    train_and_evaluate(config, run, 'protonet')
    report.main([f'--workdir={run}', '--episodes=7,2'])
    inside = {'episode7_activation', 'episode2_activation', 'features'}
    assert written(run / 'report') == RUN_PICTURES | inside
    page = (run / 'report/index.html').read_text()
    assert page.index('<h2>Episode 7: ') < page.index('<h2>Episode 2: ') < page.index('Features')

    with pytest.raises(ValueError, match='--episodes=10: the test episodes of .* are 0 to 9'):
        report.main([f'--workdir={run}', '--episodes=10,', f'--out={tmp_path / "no"}'])
    known = report.read_run(run)
    with pytest.raises(FileNotFoundError, match="video_folder/tiny' is not in .*: build it"):
        report.open_subject(run, known, str(tmp_path))
    changed = known._replace(results=known.results | {'episodes_hash': 'another'})
    with pytest.raises(ValueError, match='are not those of results.json: evaluate the run again'):
        report.open_subject(run, changed, None)
    longer = known._replace(results=known.results | {'params_hash': 'of another'}, selected=7)
    with pytest.raises(ValueError, match='^.*results.json is of step 7, .* another, of step 1: ev'):
        report.open_subject(run, longer, None)
    path = run / 'checkpoints/config.json'  # a longer training has begun
    path.write_text(path.read_text().replace('"num_steps": 1,', '"num_steps": 20,'))
    with pytest.raises(ValueError, match='of step 1: go on training to step 20, which tests it$'):
        report.open_subject(run, longer, None)


@pytest.mark.slow
def test_a_run_that_was_not_tested_shows_its_first_episodes_beside_those_of_another(
    tiny_data, tmp_path, shallow
):
    small = {'train.num_steps': 1, 'eval.num_episodes': 10, 'eval.val_episodes': 0}
    config = tiny_config('protonet', {'data.dir': str(tiny_data), **small}, width=8)
    for name in ('run', 'other'):
        train_and_evaluate(config, tmp_path / name, 'protonet')
    (tmp_path / 'run/results.json').unlink()
    run, other = (report.read_run(tmp_path / name) for name in ('run', 'other'))
    asked = [tmp_path / 'run', run, tmp_path / 'other', other, 2, None]
    (_, said), *sections = report.episode_parts(*asked)
    assert said == ['the hardest episodes: nothing was tested, so the first are shown']
    headings = [heading.split(':')[0] for heading, _ in sections]
    assert headings == ['Episode 0', 'Episode 1', 'Over the episodes above', 'Features']


@pytest.mark.slow
def test_a_run_on_features_is_looked_into_without_frames(tiny_data, tmp_path, shallow):
    changes = {'data.dir': str(tiny_data), 'eval.num_episodes': 3, 'eval.val_episodes': 0}
    extract.extract(tiny_config('protonet', changes, width=8), tmp_path / 'features')
    changes |= {'model.backbone.name': 'features', 'data.features': str(tmp_path / 'features')}
    run = tmp_path / 'run'
    train_and_evaluate(tiny_config('protonet', changes), run, 'protonet')
    subject = report.open_subject(run, report.read_run(run), None)
    (_, pictures), *_, (_, features) = episode_sections(subject, [1])
    said = list(pictures)
    assert said[0].startswith('pictures with frames: the run reads the features in') and said[
        1:
    ] == ['angles: the method has no self- and cross-attention to compare']
    assert [picture.name for picture in features] == ['features']
