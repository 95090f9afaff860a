"""The paired difference, and what it refuses."""

import json
import math

import pytest

from fsar_jax import compare
from fsar_jax.evaluation.results import accuracy_with_interval


def write(path, answers, method='trx', **changes):
    content = {
        'method': method,
        'dataset': 'd',
        'split': 'test',
        'num_episodes': len(answers),
        'queries': 5,
        'episodes_hash': 'abc',
        'correct': answers,
        **changes,
    }
    accuracy, ci95 = accuracy_with_interval(content['correct'], content['queries'])
    content = {'accuracy': accuracy, 'ci95': ci95, **content}
    path.write_text(json.dumps(content))
    return content


def test_paired_difference_by_hand(tmp_path):
    a, b = write(tmp_path / 'a.json', [5, 3, 4, 1]), write(tmp_path / 'b.json', [5, 4, 5, 3])
    # Differences in fifths: 0, 1, 1, 2: mean 1, variance (1 + 0 + 0 + 1) / 4.
    paired = compare.paired_difference(a, b)
    assert paired.difference == pytest.approx(1 / 5)
    assert paired.ci95 == pytest.approx(1.96 * math.sqrt(0.5) / 5 / math.sqrt(4))
    assert compare.paired_difference(b, a).difference == pytest.approx(-1 / 5)


def test_a_constant_gain_has_no_uncertainty_however_noisy_the_episodes(tmp_path):
    a, b = (
        write(tmp_path / 'a.json', [0, 4, 1, 3] * 50),
        write(tmp_path / 'b.json', [1, 5, 2, 4] * 50),
    )
    assert compare.paired_difference(a, b) == (pytest.approx(0.2), pytest.approx(0, abs=1e-12), 200)


def test_each_file_is_compared_with_the_first(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ('a.json', 'b.json', 'c.json')]
    for path, method, answers in zip(
        paths, ('protonet', 'trx', 'strm'), ([2, 2, 2, 3], [3, 3, 3, 4], [2, 3, 2, 2])
    ):
        write(tmp_path / path, answers, method)
    assert compare.main(paths) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('[1]  45.00% ± 8.49%  protonet') and len(lines) == 5
    assert (
        lines[3]
        == '[2] − [1]  +20.00 ± 0.00 points, paired over 4 episodes: the interval excludes 0'
    )
    assert (
        lines[4]
        == '[3] − [1]  +0.00 ± 13.86 points, paired over 4 episodes: the interval includes 0'
    )


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {'episodes_hash': 'xyz'},
            'not the same episodes: episodes_hash is abc in one and xyz in the other',
        ),
        (
            {'num_episodes': 3, 'correct': [1, 2, 3]},
            'episodes: num_episodes is 4 in one and 3 in the other',
        ),
        ({'queries': 25}, 'not the same episodes: queries is 5 in one and 25 in the other'),
    ],
)
def test_other_episodes_are_refused_in_one_line(tmp_path, capsys, changes, message):
    write(tmp_path / 'a.json', [1, 2, 3, 4])
    write(tmp_path / 'b.json', [1, 2, 3, 4], **changes)
    assert compare.main([str(tmp_path / 'a.json'), str(tmp_path / 'b.json')]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count('\n') == 1 and not printed.out


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'correct': []}, "'correct' is [], not a list of each episode's right answers"),
        ({'correct': 'abcd'}, "'correct' is \"abcd\", not a list"),
        (
            {'correct': [1, -2, 3, 4]},
            "'correct' has -2 in episode 1, not a whole number from 0 to its 5 queries",
        ),
        ({'correct': [1, 2, 6, 4]}, "'correct' has 6 in episode 2"),
        ({'correct': [1, 2, 2.5, 4]}, "'correct' has 2.5 in episode 2"),
        ({'correct': [1, 2, None, 4]}, "'correct' has null in episode 2"),
        ({'correct': [1, 2, float('nan'), 4]}, "'correct' has NaN in episode 2"),
        ({'correct': [1, 2, 3, True]}, "'correct' has true in episode 3"),
        ({'correct': [1, 2, 3, 10**400]}, "'correct' has 1000"),
        ({'correct': [1, 2]}, "'correct' has 2 entries, 'num_episodes' is 4"),
        ({'num_episodes': 0}, "'num_episodes' is 0, not a whole number, at least 1"),
        ({'num_episodes': '4'}, "'num_episodes' is \"4\", not a whole number"),
        ({'queries': 5.0}, "'queries' is 5.0, not a whole number"),
        ({'accuracy': None}, "'accuracy' is null, 'correct' gives 0.500000"),
        ({'accuracy': 0.9}, "'accuracy' is 0.9, 'correct' gives 0.500000"),
        ({'accuracy': '0.5'}, "'accuracy' is \"0.5\", "),
        ({'accuracy': float('nan')}, "'accuracy' is NaN, "),
        ({'ci95': -0.2191}, "'ci95' is -0.2191, 'correct' gives 0.219135"),
        ({'ci95': float('inf')}, "'ci95' is Infinity, "),
        ({'method': ['trx']}, '\'method\' is ["trx"], not a text'),
        ({'classes': 3}, "'classes' is not a list of names"),
        ({'classes': ['a', 'b'], 'confusion': [[1, 2], [3]]}, "'confusion' has rows that are not"),
        ({'classes': ['a', 'b'], 'confusion': [[1, 2]]}, "'confusion' has 1 rows, 'classes' has 2"),
        ({'per_class': [0.5]}, "'per_class' is not an accuracy, or null, for each class"),
        ({'per_class': {'a': '0.5'}}, "'per_class' is not an accuracy, or null, for each class"),
    ],
)
def test_numbers_that_cannot_be_are_one_line_that_names_the_file(
    tmp_path, capsys, changes, message
):
    content = write(tmp_path / 'a.json', [1, 2, 3, 4])
    (tmp_path / 'b.json').write_text(json.dumps(content | changes))
    assert compare.main([str(tmp_path / 'a.json'), str(tmp_path / 'b.json')]) == 2
    printed = capsys.readouterr()
    assert (
        printed.err.startswith(f'{tmp_path}/b.json: ')
        and message in printed.err
        and printed.err.count('\n') == 1
        and not printed.out
    )


def test_a_name_from_a_file_stays_in_its_line(tmp_path, capsys):
    write(tmp_path / 'a.json', [1, 2], 'trx\n[9]  99%\x1b[2J')
    assert compare.main([str(tmp_path / 'a.json')] * 2) == 0
    printed = capsys.readouterr().out
    assert r'trx\n[9]  99%\x1b[2J' in printed and printed.count('\n') == 3 and '\x1b' not in printed


def test_paths_that_cannot_be_read_are_one_line(tmp_path, capsys):
    write(tmp_path / 'a.json', [1, 2])
    (tmp_path / 'cut.json').write_bytes((tmp_path / 'a.json').read_bytes()[:50])
    for path, message in (
        ('gs://bucket/a.json', 'gs:// addresses are not read or written here'),
        (
            f'{tmp_path}/cut.json',
            'cut.json: not a results file (it is damaged or cut (line 1, column ',
        ),
        (f'{tmp_path}/a.json/b.json', 'no such file'),
        ('x' * 300, 'File name too long'),
    ):
        assert compare.main([f'{tmp_path}/a.json', path]) == 2
        printed = capsys.readouterr()
        assert (
            message in printed.err
            and printed.err.count('\n') == 1
            and 'Errno' not in printed.err
            and not printed.out
        )


def test_one_file_or_an_absent_one(tmp_path, capsys):
    assert compare.main(['a.json']) == 2
    assert capsys.readouterr().err.startswith('usage: python -m fsar_jax.compare')
    assert compare.main([str(tmp_path / 'a.json')] * 2) == 2
    assert 'a.json: no such file, evaluate that run first\n' in capsys.readouterr().err
