"""The paired difference, and what it refuses."""

import json
import math

import pytest

from fsar_jax.training import compare


def write(path, answers, method='trx', **changes):
    content = {'method': method, 'dataset': 'd', 'split': 'test', 'accuracy': sum(answers) / 5 / len(answers), 'ci95': 0.01,
               'num_episodes': len(answers), 'queries': 5, 'episodes_hash': 'abc', 'correct': answers,
               **changes}
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
    a, b = write(tmp_path / 'a.json', [0, 4, 1, 3] * 50), write(tmp_path / 'b.json', [1, 5, 2, 4] * 50)
    assert compare.paired_difference(a, b) == (pytest.approx(0.2), pytest.approx(0, abs=1e-12), 200)


def test_each_file_is_compared_with_the_first(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ('a.json', 'b.json', 'c.json')]
    for path, method, answers in zip(paths, ('protonet', 'trx', 'strm'),
                                     ([2, 2, 2, 3], [3, 3, 3, 4], [2, 3, 2, 2])):
        write(tmp_path / path, answers, method)
    assert compare.main(paths) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('[1]  45.00% ± 1.00%  protonet') and len(lines) == 5
    assert lines[3] == '[2] − [1]  +20.00 ± 0.00 points, paired over 4 episodes: the interval excludes 0'
    assert lines[4] == '[3] − [1]  +0.00 ± 13.86 points, paired over 4 episodes: the interval includes 0'


@pytest.mark.parametrize('changes, message', [
    ({'episodes_hash': 'xyz'}, 'not the same episodes: episodes_hash is abc in one and xyz in the other'),
    ({'num_episodes': 3, 'correct': [1, 2, 3]}, 'episodes: num_episodes is 4 in one and 3 in the other'),
    ({'queries': 25}, 'not the same episodes: queries is 5 in one and 25 in the other'),
    ({'correct': [1, 2]}, "'correct' has 4 entries in one, 2 in another"),
])
def test_other_episodes_are_refused_in_one_line(tmp_path, capsys, changes, message):
    write(tmp_path / 'a.json', [1, 2, 3, 4])
    write(tmp_path / 'b.json', [1, 2, 3, 4], **changes)
    assert compare.main([str(tmp_path / 'a.json'), str(tmp_path / 'b.json')]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count('\n') == 1 and not said.out


def test_one_file_or_an_absent_one(tmp_path, capsys):
    assert compare.main(['a.json']) == 2
    assert capsys.readouterr().err.startswith('usage: python -m fsar_jax.training.compare')
    assert compare.main([str(tmp_path / 'a.json')] * 2) == 2
    assert 'a.json: no such file, evaluate that run first\n' in capsys.readouterr().err
