"""Accuracy, interval, hashes, and the file."""

import json
import statistics

import jax
import ml_collections
import numpy as np
import pytest
from tiny_evaluation import TinyDataset

from fsar_jax.config import default_config
from fsar_jax.data.dataset import content_hash
from fsar_jax.evaluation import evaluate, results


def make_config():
    return ml_collections.ConfigDict(
        {
            'seed': 3,
            'data': {'dataset': 'synthetic_actions/misaligned'},
            'episode': {'way': 2, 'shot': 1},
            'eval': {'seed': 3},
            'model': {
                'cardinalities': (2, 3),
                'weights': ml_collections.config_dict.placeholder(str),
            },
        }
    )


def make_results(seconds=1.0, split='test', config=None, made_with=None):
    # Three episodes, 2-way with 1 query per class; class 'push' was never drawn.
    outcome = evaluate.Outcome(
        logits=np.zeros((3, 2, 2), np.float32),
        correct=np.array([2, 1, 0]),
        classes=['drop', 'lift', 'push'],
        confusion=np.array([[2, 1, 0], [2, 1, 0], [0, 0, 0]]),
        episodes_hash='abc',
        seconds={'total': seconds},
    )
    dataset = TinyDataset(frames=1, clips=1)
    dataset.split = split
    dataset.made_with = dataset.made_with if made_with is None else made_with
    params = {'w': np.ones(2, np.float32)}
    model = evaluate.TrainedModel(None, {'params': params}, config or make_config(), None)
    description = evaluate.Description('trx', 'val accuracy at step 1200')
    return evaluate.summarise(outcome, dataset, model, description)


def test_interval_is_the_published_convention():
    correct = [5, 4, 3, 5, 0, 2]
    accuracies = [c / 5 for c in correct]
    mean, half_width = results.accuracy_with_interval(correct, 5)
    assert mean == pytest.approx(statistics.fmean(accuracies))
    assert half_width == pytest.approx(1.96 * statistics.pstdev(accuracies) / 6**0.5)
    # Two episodes, 0 and 1: sigma 1/2.
    assert results.accuracy_with_interval([0, 1], 1) == (0.5, pytest.approx(1.96 * 0.5 / 2**0.5))


def test_confusion_counts_row_true_column_answer():
    truth, answers = np.array([[0, 1], [0, 2]]), np.array([[0, 2], [1, 2]])
    slow = np.zeros((4, 4), int)
    for t, a in zip(truth.ravel(), answers.ravel()):
        slow[t, a] += 1
    np.testing.assert_array_equal(results.confusion_matrix(truth, answers, 4), slow)


def test_results_have_every_key_and_hand_computed_values():
    found = make_results()
    assert found['accuracy'] == 0.5 and found['queries'] == 2 and found['num_episodes'] == 3
    assert found['per_class'] == {'drop': 2 / 3, 'lift': 1 / 3, 'push': None}
    assert found['correct'] == [2, 1, 0] and found['chance'] == 0.5
    assert set(found) == {
        'method',
        'dataset',
        'split',
        'way',
        'shot',
        'queries',
        'seed',
        'num_episodes',
        'accuracy',
        'ci95',
        'chance',
        'per_class',
        'classes',
        'confusion',
        'episodes_hash',
        'selected_on',
        'videos_present',
        'params_hash',
        'content',
        'correct',
        'records',
        'config',
        'versions',
        'computed_on',
        'seconds',
    }
    assert found['computed_on'] == {
        'device': jax.devices()[0].device_kind,
        'float32_products': 'float32',
    }
    assert set(found['versions']) == {'python', 'jax', 'flax', 'numpy', 'fsar_jax', 'made_with'}
    assert found['config']['model'] == {'cardinalities': [2, 3], 'weights': None}


def test_repeated_runs_write_the_same_bytes_but_for_the_seconds(tmp_path):
    first, second, slower = (
        results.write_results(tmp_path / name, make_results(seconds)).read_text()
        for name, seconds in (('a', 1.0), ('b', 1.0), ('c', 2.0))
    )
    assert first == second
    assert [line for line in first.splitlines() if line not in slower.splitlines()] == [
        '    "total": 1.0'
    ]
    assert json.loads(first) == results.read_results(tmp_path / 'a') == make_results()


def test_the_results_say_what_made_the_pixels_and_what_was_evaluated():
    found = make_results()
    assert found['content'] == content_hash(TinyDataset(frames=1, clips=1))
    assert found['versions']['made_with'] == {'av': '19.0.0'}
    other = make_results(made_with={})
    assert other['versions']['made_with'] == {} and other['content'] != found['content']


def test_the_name_says_what_departs_from_the_run():
    config = default_config()
    config.data.dataset = 'synthetic_actions/shifted'
    name = lambda departures, split='test': results.file_name(
        make_results(config=config, split=split), departures
    )
    assert (name({}), name({}, 'val'), name({'eval.split': 'val'}, 'val')) == (
        'results.json',
        'results_val.json',
        'results_val.json',
    )
    assert name({'episode.shot': 2, 'eval.num_episodes': 5}) == 'results.shot=2.num_episodes=5.json'
    assert (
        name({'episode.query': 2, 'eval.query': 3, 'eval.seed': 4, 'seed': 5})
        == 'results.episode.query=2.eval.query=3.eval.seed=4.seed=5.json'
    )
    assert (
        name({'data.dataset': 'synthetic_actions/shifted'})
        == 'results.dataset=synthetic_actions-shifted.json'
    )
    assert (
        name({'eval.episodes_file': '/some/where/list 1.jsonl'})
        == 'results.episodes_file=list-1-abc.json'
    )
    assert (
        name({'eval.num_episodes': 5, 'content': '1a2b3c4d'})
        == 'results.num_episodes=5.content=1a2b3c4d.json'
    )
    long, other = (name({'data.dataset': f'video_folder/{"x" * 300}{end}'}) for end in 'ab')
    assert (
        len(long) <= 170 and long != other and long.startswith('results.dataset=video_folder-xxx')
    )


def test_nan_is_refused_and_leaves_the_old_file(tmp_path):
    results.write_results(tmp_path, make_results())
    with pytest.raises(
        ValueError,
        match=r"results.json is not written, NaN and infinity are not JSON compliant: ci95, "
        r"config.x.1$",
    ):
        results.write_results(
            tmp_path, {**make_results(), 'ci95': float('nan'), 'config': {'x': [1.0, float('inf')]}}
        )
    assert results.read_results(tmp_path)['ci95'] == make_results()['ci95']


def test_reading_something_else_is_one_line(tmp_path):
    with pytest.raises(
        FileNotFoundError, match='results.json: no such file, evaluate that run first'
    ):
        results.read_results(tmp_path / 'results.json')
    (tmp_path / 'cut.json').write_text('{"accuracy": 0.')
    with pytest.raises(ValueError, match='cut.json: not a results file'):
        results.read_results(tmp_path / 'cut.json')
    (tmp_path / 'other.json').write_text('{"accuracy": 0.5}')
    with pytest.raises(
        ValueError,
        match='no method, dataset, split, ci95, num_episodes, queries, episodes_hash, correct',
    ):
        results.read_results(tmp_path / 'other.json')


@pytest.mark.parametrize(
    'change, words',
    [
        ({'accuracy': 10**400}, "'accuracy' is 1000"),
        ({'chance': None}, "'chance' is null, not a number from 0 to 1"),
        ({'shot': None}, "'shot' is null, not a whole number"),
        ({'trained_on': {'train': None}}, "'trained_on' is {.*, not what is noted of each split"),
        ({'trained_on': ['x']}, "'trained_on' is .*, not what is noted of each split"),
    ],
)
def test_values_that_no_evaluation_writes_are_named(change, words, tmp_path):
    (tmp_path / 'results.json').write_text(json.dumps(make_results() | change))
    with pytest.raises(ValueError, match=words) as raised:
        results.read_results(tmp_path)
    assert '\n' not in str(raised.value)
