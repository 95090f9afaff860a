"""The benchmarks start, and what they copy or replace is what it says."""

import functools
import re
import runpy
from types import SimpleNamespace

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from tiny_run import REPOSITORY, random_batch, random_variables, tiny_config
from tiny_scan import TinyScan

from fsar_jax import create_learner
from fsar_jax.analysis.picture_truth import TRUTH, Measure
from fsar_jax.data import loader
from fsar_jax.data.dataset import open_dataset
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.stages import frames_read


@functools.cache
def definitions(name):
    """What benchmarks/<name>.py defines. Its flags are removed again: absl takes each name once."""
    before = set(flags.FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / 'benchmarks')  # as for `python benchmarks/<name>.py`
        found = runpy.run_path(str(REPOSITORY / f'benchmarks/{name}.py'), run_name=name)
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    return found


@pytest.mark.parametrize(
    'changes', [{}, {'model.sampler.name': 'motion_guided', 'model.sampler.dense_frames': 6}]
)
def test_the_train_step_benchmark_feeds_what_the_loader_does(tiny_data, changes):
    config = tiny_config('protonet', {'data.dir': str(tiny_data), **changes})
    dataset = open_dataset('video_folder/tiny', tiny_data, 'train')
    batches = loader.training_batches(dataset, config, 0, frames=frames_read(config))
    described = lambda batch: jax.tree.map(lambda x: (x.shape, x.dtype), batch)
    loaded = described(next(batches))
    batches.close()
    assert (
        described(definitions('train_step')['batch_shapes'](config))
        == loaded
        == described(random_batch(config))
    )


@pytest.mark.parametrize(
    'loop',
    [
        lambda x: jax.lax.map(lambda each: each @ each, x),
        lambda x: jax.lax.map(lambda each: each @ each, x, batch_size=2),
        lambda x: jax.lax.scan(
            lambda total, each: (total + each @ each, None), jnp.zeros((16, 16)), x
        )[0],
    ],
)
def test_the_body_of_a_loop_is_counted_every_time(monkeypatch, loop):
    monkeypatch.syspath_prepend(REPOSITORY / 'benchmarks')
    from unrolled import loops_unrolled

    x = jax.ShapeDtypeStruct((6, 16, 16), jnp.float32)
    counted = lambda: jax.jit(lambda x: loop(x)).lower(x).cost_analysis()['flops']
    products = 6 * 2 * 16**3
    assert counted() < products / 2
    with loops_unrolled():
        assert products <= counted() < 1.2 * products
    assert counted() < products / 2


@pytest.mark.slow
def test_a_scan_network_with_labels_finds_the_frames():
    """Bright frames among dark ones, three of seven."""
    benchmark = definitions('scan_with_labels')
    rng = np.random.default_rng(0)
    labels = rng.permuted(np.tile([True] * 3 + [False] * 4, (40, 1)), axis=1)
    clips = rng.integers(0, 120, (40, 7, 16, 16, 3)) + 120 * labels[..., None, None, None]
    clips = clips.astype(np.uint8)
    scorer = benchmark['FrameScorer'](TinyScan(), 8, 16)
    found = benchmark['trained'](scorer, clips[:20], labels[:20], 40)
    chosen = benchmark['best_frames'](scorer, found, clips[20:], 3)
    np.testing.assert_array_equal(chosen, [np.flatnonzero(row) for row in labels[20:]])


def test_cut_at_truth_enlarges_the_square_around_the_boxes(tiny_data):
    benchmark = definitions('cut_at_truth')
    boxes = np.array([[20.0, 30, 30, 36], [22, 30, 40, 40], [0, 0, 0, 0]])
    assert benchmark['square_around'](boxes, 2) == (10, 15, 40)
    for seed in range(20):
        x, y, side = benchmark['square_around'](boxes, 2, np.random.default_rng(seed))
        assert side == 40 and x <= 20 and y <= 30 and x + side >= 40 and y + side >= 40
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[30:40, 20:40] = 255
    enlarged = benchmark['cut'](frame, (10, 15, 40))
    rows, columns = (np.flatnonzero(enlarged[..., 0].max(axis) > 127) for axis in (1, 0))
    assert abs(len(rows) - 16) <= 1 and abs(len(columns) - 32) <= 1
    assert abs(rows.mean() - 31.5) < 1.1 and abs(columns.mean() - 31.5) < 1.1
    dataset = open_dataset('video_folder/tiny', tiny_data, 'test')
    height = int(dataset.read(0)['height'])
    box = np.array([height / 4, height / 4, height / 2, height / 2], np.float32)
    dataset.read = lambda position, read=dataset.read: (
        (record := read(position))
        | {'boxes': np.tile(box, (len(record['frames']), 1)), 'action_start': 0, 'action_end': 3}
    )
    short = benchmark['evenly'](dataset, 4)
    clips, share = benchmark['cut_clips'](short, 2)
    assert share == 0.25 and len(clips.read(1)['frames']) == 4
    first = lambda clips: np.frombuffer(clips.read(1)['frames'][0], np.uint8)
    first_row = lambda clips: cv2.imdecode(first(clips), 1)[0]
    for variant, black in (('paper', False), ('code', True)):
        clips, share = benchmark['amplified_clips'](short, variant, height // 2)
        assert share > 2 * 0.25**2 and len(clips.read(1)['frames']) == 4
        assert (first_row(clips).mean() < 0.3 * first_row(short).mean()) == black


@pytest.mark.slow
def test_adaptation_with_labels_finds_what_the_support_shows():
    """Features with the class in them, so that frames of the query's own class are those that the
    support has: each form finds them on the classes that it trains on."""
    benchmark = definitions('adapt_with_labels')
    rng = np.random.default_rng(0)

    def episodes(step):
        rng = np.random.default_rng(step)
        labels = rng.permuted(np.tile([True, False], (4, 4, 8)), axis=2)
        classes = np.stack([rng.permutation(12)[:6] for _ in range(4)])
        own = np.concatenate([classes[:, :2]] * 2, 1)[..., None]
        other = np.concatenate([classes[:, 2:4], classes[:, 4:]], 1)[..., None]
        return looks[np.where(labels, own, other)], labels

    looks = rng.normal(size=(12, 16)).astype(np.float32)
    for form in benchmark['FORMS']:
        scorer = benchmark['Scorer'](form, 2, 32)
        params = benchmark['trained'](scorer, episodes, 400)
        share = float(benchmark['inside'](scorer, params, *episodes(1000)).split()[0])
        assert share > 0.65, form


def test_the_rules_of_frames_by_rule(tiny_data):
    """Which frames they take of a clip whose action is known, and that the clips they make hold
    those."""
    benchmark = definitions('frames_by_rule')
    rules, (n, start, end) = benchmark['rules'](8), (32, 11, 20)
    chosen = {name: np.asarray(rule(n, start, end)) for name, rule in rules.items()}
    for name, places in chosen.items():
        assert (
            places.shape == (8,)
            and (np.diff(places) >= 0).all()
            and 0 <= places[0]
            and places[-1] < n
        ), name
        assert rules[name](n, 0, n - 1)[-1] < n and rules[name](8, 7, 7)[0] >= 0, name
    inside = {name: ((start <= places) & (places <= end)).sum() for name, places in chosen.items()}
    assert inside['evenly inside the action'] == inside['its first and its last frame'] == 8
    assert (
        set(chosen['its first and its last frame']) == {11, 20}
        and inside['half before, half after it'] == 2
    )
    assert list(chosen['from 2 before it to 2 after it'][[0, -1]]) == [9, 22]
    dense = frame_indices(n, 20, 'trx')
    assert list(chosen['first 5 and last 3 of 20']) == [*dense[:5], *dense[-3:]]
    # Seven of the 20 are inside; the nearest other one is frame 10.
    assert list(chosen['of 20: all of the action']) == [10, 11, 13, 14, 16, 17, 19, 20]
    of_all = benchmark['rules'](8, 32)['of 32: all of the action'](n, start, end)
    assert list(of_all) == list(range(12, 20))
    assert list(chosen['first 8 of 20']) == list(dense[:8]) and list(
        chosen['middle 8 of 20']
    ) == list(dense[6:14])
    dataset = open_dataset('video_folder/tiny', tiny_data, 'test')
    dataset.read = lambda position, read=dataset.read: (
        read(position) | {'action_start': 2, 'action_end': 5}
    )
    records = [dataset.read(position) for position in range(len(dataset))]
    clips, share = benchmark['by_rule'](
        dataset, records, lambda n, start, end: [0, start, end, n - 1], 4
    )
    assert share == 0.5 and len(clips) == len(dataset) and set(clips.num_frames) == {4}
    stored = dataset.read(3)['frames']
    assert clips.read(3)['frames'] == [stored[i] for i in (0, 2, 5, 7)]


def test_pictures_and_truth_takes_the_mean_over_episodes():
    nan = float('nan')
    way = lambda values, true: Measure('window', 'way', np.array(values), np.array(true), TRUTH)
    near = lambda right: Measure('features', 'near', np.array(right), np.full(2, 0.5), 'chance')
    episodes = [
        [way([[1.0, 2.0], [3.0, nan]], [[2.0, 4.0], [6.0, 1.0]]), near([1.0, 0.0])],
        [way([[4.0, nan], [nan, nan]], [[8.0, 3.0], [nan, nan]]), near([1.0, 1.0])],
    ]
    first, second = definitions('pictures_and_truth')['summary'](episodes)
    assert first[:2] == ('window', 'way') and first[2] == 3.0  # of 2 and 4
    assert first[5] == 6.0 and first[6] == pytest.approx(1.0)
    assert second[2:] == (0.75, pytest.approx(1.96 * 0.25 / 2**0.5), 'chance', 0.5, None)


def tiny_ta2n(shots):
    """(config, learner, variables, support, query) of TA2N on random maps, 2-way."""
    config = tiny_config('ta2n')
    config.model.backbone.name = 'features'
    rng = np.random.default_rng(0)
    support, query = (
        rng.random(shape, np.float32) for shape in ((2, shots, 4, 4, 4, 8), (2, 4, 4, 4, 8))
    )
    learner = create_learner(config.model)
    variables = random_variables(learner, support, query)  # offsets start at zero
    return config, learner, variables, support, query


@pytest.mark.slow
@pytest.mark.parametrize('name', ['offsets zero', 'M identity'])
def test_a_replaced_part_of_ta2n_acts_as_its_row_says(name):
    """Against the same episode computed with the offsets or M set by hand."""
    benchmark = definitions('replaced_parts')
    config, learner, variables, support, query = tiny_ta2n(shots=1)
    rows = benchmark['rows'](config.model)
    assert list(rows) == list(benchmark['METHODS'])
    settings, method = rows[name]
    assert settings == {}
    # Not compiled as a whole: of two programs XLA may compute equal parts in another order.
    run = lambda: jax.tree.map(np.asarray, learner.apply(variables, support, query).auxiliary)
    trained = run()
    with benchmark['replacing'](*method):
        replaced = run()
    if name == 'offsets zero':
        assert np.abs(trained['offsets']).max() > 0 and np.abs(replaced['offsets']).max() == 0
        np.testing.assert_array_equal(replaced['evolution'], trained['evolution'])
    else:
        np.testing.assert_array_equal(
            replaced['evolution'], np.broadcast_to(np.eye(4), (2, 2, 4, 4))
        )
        assert np.abs(trained['evolution'] - replaced['evolution']).max() > 0.1
    np.testing.assert_array_equal(replaced['query_window'], trained['query_window'])


@pytest.mark.slow
def test_shots_stay_aligned_as_trained_where_m_is_replaced():
    """M between clips is replaced, not the one that aligns the shots of a class."""
    benchmark = definitions('replaced_parts')
    _, learner, variables, support, query = tiny_ta2n(shots=2)

    def run():
        prototypes = []

        def keep(call, given, named, context):
            found = call(*given, **named)
            if context.method_name == 'prototypes':
                prototypes.append(found[0])
            return found

        with nn.intercept_methods(keep):
            evolution = learner.apply(variables, support, query).auxiliary['evolution']
        return np.asarray(prototypes[-1]), np.asarray(evolution)

    trained, _ = run()
    with benchmark['replacing'](*benchmark['METHODS']['M uniform']):
        replaced, evolution = run()
    np.testing.assert_array_equal(replaced, trained)
    np.testing.assert_array_equal(evolution, 1 / 4)


@pytest.mark.parametrize(
    'method, changes, expected',
    [
        (
            'protonet',
            {'model.sampler.name': 'motion_guided'},
            {
                'metric otam': {'matcher.name': 'otam'},
                'evenly spaced frames': {'sampler.at_test': False},
            },
        ),
        ('otam', {}, {'metric prototypes': {'matcher.name': 'prototypes'}}),
        ('protonet', {}, {'metric otam': {'matcher.name': 'otam'}}),
        ('strm', {}, {}),
        (
            'protonet',
            {'model.sampler.name': 'task_adaptive', 'model.sampler.temporal': False},
            {
                'metric otam': {'matcher.name': 'otam'},
                'no amplification': {'sampler.spatial': 'none'},
            },
        ),
    ],
)
def test_only_parts_that_a_run_has_are_replaced(method, changes, expected):
    benchmark = definitions('replaced_parts')
    rows = benchmark['rows'](tiny_config(method, changes).model)
    assert {row: settings for row, (settings, _) in rows.items()} == expected


@pytest.mark.parametrize(
    'name', sorted(path.stem for path in (REPOSITORY / 'benchmarks').glob('*.py'))
)
def test_what_a_benchmark_imports_exists_and_its_usage_names_its_flags(name):
    found = definitions(name)
    usage = found['__doc__']
    if name not in ('unrolled', 'chosen_frames'):  # the others import these
        assert f'python benchmarks/{name}.py' in usage
        source = (REPOSITORY / f'benchmarks/{name}.py').read_text()
        for imported in re.findall(r'^import (\w+)$', source, re.MULTILINE):
            shared = REPOSITORY / f'benchmarks/{imported}.py'
            source += shared.read_text() if shared.exists() else ''
        defined = set(re.findall(r"DEFINE_\w+\(\s*'(\w+)'", source))
        assert set(re.findall(r'--(\w+)', usage)) <= defined | {'config'}


@pytest.mark.slow
def test_each_table_of_convolutions_has_its_layers(monkeypatch, capsys):
    main = definitions('convolutions')['main']
    small = {
        'LAYERS': [(4, 2, 3, 2)],
        'LARGER': [(4, 2, 3, 3, 2)],
        'CLIPS': [(4, 2, 3, 3, 2)],
        'DEPTHWISE': [(4, 2, 2, 3, 2)],
        'IMAGES': SimpleNamespace(value=2),
        'REPEATS': SimpleNamespace(value=1),
    }
    for name, value in small.items():
        monkeypatch.setitem(main.__globals__, name, value)
    main(None)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ['4']]
    assert len(rows) == 4
