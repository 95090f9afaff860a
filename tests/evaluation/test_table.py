"""The table of many runs: numbers by hand, and what is kept apart."""

import json
import statistics

import numpy as np
import pytest

from fsar_jax import table as command
from fsar_jax.config import default_config
from fsar_jax.evaluation.results import accuracy_with_interval
from fsar_jax.evaluation.table import as_latex, as_markdown, table

ANSWERS = {
    ('protonet', 0): [2, 3, 1, 4, 0, 2],
    ('protonet', 1): [3, 3, 2, 4, 1, 1],
    ('protonet', 2): [1, 2, 1, 5, 0, 2],
    ('strm', 0): [3, 4, 3, 5, 1, 3],
    ('strm', 1): [4, 5, 2, 5, 2, 3],
    ('strm', 2): [3, 3, 3, 5, 2, 4],
}


def run(method, seed=0, correct=(), settings=None, **changes):
    """The content of a results.json; `settings` {'model.matcher.dim': 64} are those of the run."""
    config = default_config()
    config.update_from_flattened_dict({'seed': seed, **(settings or {})})
    content = {
        'method': method,
        'dataset': 'synthetic_actions/misaligned',
        'split': 'test',
        'way': 5,
        'shot': 1,
        'queries': 5,
        'num_episodes': len(correct),
        'episodes_hash': 'abc',
        'content': 'def',
        'config': json.loads(config.to_json()),
        'correct': list(correct),
        **changes,
    }
    accuracy, ci95 = accuracy_with_interval(content['correct'], content['queries'])
    return {'accuracy': accuracy, 'ci95': ci95} | content


def runs(answers=ANSWERS, **settings):
    return {f'{method}{seed}': run(method, seed, a) for (method, seed), a in answers.items()}


def test_three_seeds_of_two_methods_by_hand():
    rows, notes = table(runs())
    assert [row.method for row in rows] == ['protonet', 'strm'] and not notes
    for row in rows:
        answers = [a for (method, _), a in ANSWERS.items() if method == row.method]
        accuracies = [sum(a) / 30 for a in answers]
        per_episode = [sum(column) / 15 for column in zip(*answers)]  # 3 seeds × 5 queries
        assert row.seeds == (0, 1, 2)
        assert row.accuracy == pytest.approx(sum(accuracies) / 3)
        assert row.spread == pytest.approx(statistics.stdev(accuracies))
        assert row.ci95 == pytest.approx(1.96 * statistics.pstdev(per_episode) / 6**0.5)
    gains = [
        sum(ANSWERS['strm', s][e] - ANSWERS['protonet', s][e] for s in range(3)) / 15
        for e in range(6)
    ]
    difference = rows[1].difference
    assert difference.difference == pytest.approx(sum(gains) / 6)
    assert difference.ci95 == pytest.approx(1.96 * statistics.pstdev(gains) / 6**0.5)
    assert rows[0].difference is None and rows[1].starred and not rows[0].starred


def test_seeds_that_draw_other_training_clips_are_averaged():
    """config.data.train_clips_per_class: the clips of a class are drawn by the seed of the run."""
    trained_on = lambda seed, **more: {
        'train': {'hash': 'h', 'limited_to': {'wave': [f'clip{seed}']}, **more}
    }
    limit = {'settings': {'data.train_clips_per_class': 10}}
    found = {
        str(seed): run('protonet', seed, [2, 3], trained_on=trained_on(seed), **limit)
        for seed in range(3)
    }
    rows, notes = table(found)
    assert [row.seeds for row in rows] == [(0, 1, 2)] and not notes
    found['2']['trained_on'] = trained_on(2, records={'short_side': 64})  # of a later release
    assert [row.seeds for row in table(found)[0]] == [(0, 1, 2)]
    found['2']['trained_on'] = trained_on(2, hash='other')
    assert [row.seeds for row in table(found)[0]] == [(0, 1), (2,)]


def test_seeds_that_started_from_one_file_in_two_places_are_averaged():
    start = lambda folder: {'settings': {'model.backbone.weights': f'{folder}/resnet50.pth'}}
    found = {f: run('protonet', i, [2, 3], **start(f)) for i, f in enumerate(('/a', '/b'))}
    assert [row.seeds for row in table(found)[0]] == [(0, 1)]
    found['/c'] = run('protonet', 2, [2, 3], settings={'model.backbone.weights': '/a/other.pth'})
    assert [row.seeds for row in table(found)[0]] == [(0, 1), (2,)]


def test_a_run_that_was_not_over_is_not_averaged_with_finished_ones():
    found = {str(seed): run('protonet', seed, [2, 3]) for seed in range(3)}
    found['2']['checkpoint'] = 4
    rows, _ = table(found)
    assert [(row.method, row.seeds) for row in rows] == [
        ('protonet', (0, 1)),
        ('protonet (checkpoint=4)', (2,)),
    ]
    alone, _ = table({'2': found['2']})
    assert [row.method for row in alone] == ['protonet (checkpoint=4)']


def test_the_order_of_the_files_does_not_matter_within_a_row():
    backwards = dict(reversed(list(runs().items())))
    rows, _ = table(backwards, against='protonet')
    again = {row.method: row for row in table(runs(), against='protonet')[0]}
    for row in rows:
        assert row == again[row.method]


@pytest.mark.parametrize(
    'change',
    [
        {'episodes_hash': 'other'},
        {'dataset': 'synthetic_actions/untrimmed'},
        {'split': 'val'},
        {'way': 6},
        {'shot': 5},
        {'content': 'other clips of the same names'},
        {'extractor': {'params_hash': 'of another backbone'}},
        {'trained_on': {'train': {'hash': 'fewer videos'}}},
    ],
)
def test_runs_on_other_episodes_or_videos_are_not_averaged(change):
    rows, _ = table({'a': run('strm', 0, [1, 2, 3]), 'b': run('strm', 1, [1, 2, 3], **change)})
    assert [row.seeds for row in rows] == [(0,), (1,)]


def test_rows_on_other_episodes_are_not_starred_and_it_says_so():
    sets = {
        'a': run('protonet', 0, [1, 1, 1, 1]),
        'b': run('strm', 0, [4, 4, 5, 4], episodes_hash='other'),
    }
    rows, notes = table(sets)
    assert rows[1].difference is None and not rows[1].starred
    assert notes == [
        'strm on synthetic_actions/misaligned (test), 5-way 1-shot: no run of protonet on these '
        'episodes'
    ]
    rows, notes = table({'a': run('trx', 0, [1, 1]), 'b': run('trx', 1, [1, 1], content='x')})
    assert len(rows) == 2 and any('2 rows' in note for note in notes)


def test_rows_of_one_method_name_the_settings_in_which_they_differ():
    rows, _ = table(
        {
            'a': run('trx', 0, [1, 2], {'model.matcher.dim': 64}),
            'b': run('trx', 1, [2, 2], {'model.matcher.dim': 64, 'eval.cache': False}),
            'c': run('trx', 0, [2, 1], {'model.matcher.dim': 32}),
        }
    )
    assert [(row.method, row.seeds) for row in rows] == [
        ('trx (matcher.dim=64)', (0, 1)),
        ('trx (matcher.dim=32)', (0,)),
    ]
    assert rows[1].difference is not None  # the same episodes


def test_a_seed_counts_once():
    with pytest.raises(ValueError, match='a and b are the same .* seed 0: give each seed once'):
        table({'a': run('trx', 0, [1, 2]), 'b': run('trx', 0, [1, 2])})


@pytest.mark.parametrize('seed', [[1, 2], '1', None, 1.5])
def test_a_seed_that_is_no_number_is_one_line(seed):
    damaged = run('trx', 0, [1, 2])
    damaged['config']['seed'] = seed
    with pytest.raises(ValueError, match=r"^b: 'config.seed' is .*, not a whole number: evaluate"):
        table({'a': run('trx', 0, [1, 2]), 'b': damaged})


def test_an_unknown_method_to_compare_with():
    with pytest.raises(ValueError, match=r"no row is 'otam': compare with one of protonet, strm"):
        table(runs(), against='otam')


def test_a_name_of_several_rows_is_refused_and_each_of_them_can_be_named():
    dim = lambda d, answers: run('trx', 0, answers, {'model.matcher.dim': d})
    found = {'a': dim(64, [1, 2]), 'b': dim(32, [2, 2]), 'c': run('strm', 0, [3, 3])}
    names = r'trx \(matcher.dim=64\), trx \(matcher.dim=32\)'
    with pytest.raises(ValueError, match=f"^'trx' stands for 2 rows: compare with one of {names}$"):
        table(found, against='trx')
    rows, notes = table(found, against='trx (matcher.dim=32)')
    differences = [row.difference and row.difference.difference for row in rows]
    assert differences == pytest.approx([-0.1, None, 0.2]) and not notes


def test_where_every_row_is_the_one_to_compare_with_it_says_so():
    found = {'a': run('trx', 0, [1, 2]), 'b': run('trx', 0, [1, 2], shot=5, episodes_hash='other')}
    rows, notes = table(found, against='trx')
    assert notes == ['nothing is compared: there is no other row than trx']
    assert not table(found)[1]


def test_a_finished_run_is_what_one_that_was_not_over_is_compared_with():
    found = {'a': run('trx', 0, [1, 1]), 'b': run('trx', 1, [2, 2], checkpoint=4)}
    rows, _ = table(found)
    assert rows[0].difference is None and rows[1].difference.difference == pytest.approx(0.2)
    assert table(found, against='trx')[0] == rows


def test_markdown_and_latex():
    rows, _ = table(runs() | {'c': run('a|b_c%', 0, [1, 2, 0, 1, 1, 1])})
    lines = as_markdown(rows).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 5
    mean = 100 * np.mean([sum(ANSWERS['strm', s]) / 30 for s in range(3)])
    assert f'| {mean:.2f} ' in lines[3] and '(3 seeds)' in lines[3] and '+25.56 ±4.79 *' in lines[3]
    assert r'a\|b_c%' in lines[4] and '(1 seed)' in lines[4]
    latex = as_latex(rows).splitlines()
    assert latex[0] == r'\begin{tabular}{lllrrrrrr}' and latex[-1] == r'\end{tabular}'
    assert latex[6].startswith(r'a|b\_c\% & synthetic\_actions/misaligned & test & 5 & 1 & ')
    assert latex[5].endswith(r'$^{*}$ \\')
    assert all(line.count(' & ') == 8 for line in latex[4:7])


def test_the_command(tmp_path, capsys):
    for name, results in runs().items():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'results.json').write_text(json.dumps(results))
    command.main([str(tmp_path / name) for name in runs()])
    captured = capsys.readouterr()
    assert captured.out.count('\n') == 4 and not captured.err
    with pytest.raises(FileNotFoundError, match='no such file, evaluate that run first'):
        command.main([str(tmp_path)])
