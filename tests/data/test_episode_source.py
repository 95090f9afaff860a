"""fsar_jax.episodes: the episodes of main.py, as arrays for anyone."""

import pickle

import grain
import numpy as np
import pytest
from memory_videos import MemoryVideos, small_config

import fsar_jax
from fsar_jax import build
from fsar_jax.data import episodes as lists
from fsar_jax.data import loader
from fsar_jax.data.episode_source import EpisodeSource


@pytest.fixture(scope='module')
def dataset():
    return MemoryVideos([5, 4, 6, 4])


def test_training_episodes_are_those_of_a_training_run(dataset):
    config = small_config(data__flip=True)
    source = EpisodeSource(dataset, config, 8, training=True)
    batches = loader.training_batches(dataset, config, 0)
    steps = [next(batches) for _ in range(2)]  # of 4 episodes
    batches.close()
    flips = 0
    for i in range(8):
        step, row, episode = steps[i // 4], i % 4, source[i]
        for part in ('support', 'query'):
            clips, flip = step[part][0, row], step[f'{part}_flip'][0, row]
            clips = np.where(flip[..., None, None, None, None], clips[..., ::-1, :], clips)
            np.testing.assert_array_equal(episode[part], clips)
            flips += flip.sum()
        np.testing.assert_array_equal(episode['labels'], step['labels'][0, row])
        names = [dataset.class_names[label] for label in step['classes'][0, row]]
        assert episode['class_names'] == names  # the four classes have labels 0 to 3
    assert 10 < flips < 8 * 9 - 10


def test_test_episodes_are_those_of_an_evaluation_in_any_order_and_batch(dataset):
    config = small_config()
    source = EpisodeSource(dataset, config, 7, training=False)
    drawn = lists.draw_episodes(dataset, 3, 2, 1, 3, 7)
    whole = next(loader.episode_batches(dataset, config, drawn, 7))
    single = [source[i] for i in (6, 0, 1, 2, 3, 4, 5)]
    single = single[1:] + single[:1]
    batches = list(source.batch(3))
    assert [len(batch['labels']) for batch in batches] == [3, 3, 1]
    for key in ('support', 'query', 'labels'):
        assert whole[key].dtype == single[0][key].dtype
        np.testing.assert_array_equal([episode[key] for episode in single], whole[key])
        np.testing.assert_array_equal([episode[key] for episode in source], whole[key])
        np.testing.assert_array_equal(np.concatenate([b[key] for b in batches]), whole[key])
    names = [[dataset.class_names[label] for label in row] for row in drawn.classes]
    assert [episode['class_names'] for episode in single] == names
    np.testing.assert_array_equal([episode['classes'] for episode in single], drawn.classes)
    assert sum((batch['class_names'] for batch in batches), []) == names
    np.testing.assert_array_equal(source[-1]['query'], whole['query'][6])
    for beyond in (7, -8):
        with pytest.raises(IndexError, match=f'no episode {beyond}: there are 7, from 0'):
            source[beyond]


def test_grain_and_other_processes_take_it(dataset):
    source = EpisodeSource(dataset, small_config(), 5, training=False)
    for other in (grain.MapDataset.source(source), pickle.loads(pickle.dumps(source))):
        assert len(other) == 5
        np.testing.assert_array_equal(other[4]['support'], source[4]['support'])


@pytest.mark.slow
def test_a_built_dataset_by_name(tmp_path, monkeypatch):
    flags = ['--dataset=synthetic_actions/aligned', f'--dir={tmp_path}', '--size=32']
    flags += ['--num_frames=10', '--clips_per_class=2', '--processes=0']
    build.build(build.parse(flags))
    make = lambda **changes: fsar_jax.episodes(
        'synthetic_actions/aligned', 'val', **{'data_dir': tmp_path, 'image_size': 28} | changes
    )
    source = make()
    episode = source[0]
    assert (len(source), episode['support'].shape) == (10_000, (5, 1, 8, 28, 28, 3))
    assert episode['query'].shape == (5, 8, 28, 28, 3) and episode['query'].dtype == np.uint8
    assert len(set(episode['class_names'])) == 5
    # 8/7 of 28 is 32, the size that is stored: a crop of stored pixels.
    np.testing.assert_array_equal(episode['support'], make(resize=32)[0]['support'])
    assert make(image_size=48, way=2)[0]['support'].shape == (2, 1, 8, 48, 48, 3)
    monkeypatch.setenv('HOME', str(tmp_path))
    np.testing.assert_array_equal(make(data_dir='~')[0]['query'], episode['query'])
    assert not np.array_equal(make(seed=1)[0]['support'], episode['support'])
    for changes, message in (
        ({'way': 13}, '13-way episodes need 13'),
        ({'shot': 2}, 'has 2 clips, 2 support'),
        ({'num_episodes': 0}, 'num_episodes=0 must be at least 1'),
        ({'frames': 0}, 'frames=0'),
        ({'seed': -1}, 'seed=-1 must be at least 0'),
        ({'seed': 2**64}, 'seed=18446744073709551616 must be at most'),
        ({'num_workers': -1}, 'num_workers=-1 must be at least 0'),
        ({'query_classes': 6}, 'query_classes=6 must be at most 5'),
        ({'crop': 'corner'}, "'corner'"),
        ({'data_dir': 'gs://bucket/data'}, 'data_dir=gs://bucket/data: gs:// addresses'),
        ({'resize': 20}, 'image_size=28 is larger than'),
        ({'sampling': 'odd'}, "'odd'"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**changes)
    for name, value in (('way', 2.0), ('seed', 1.5), ('num_episodes', 2.5), ('image_size', (9, 9))):
        with pytest.raises(TypeError, match=f'{name}=.*must be a whole number'):
            make(**{name: value})
    with pytest.raises(ValueError, match='size of a batch=0 must be at least 1'):
        source.batch(0)
    batch = next(source.batch(np.int64(2)))
    assert batch['support'].shape == (2, 5, 1, 8, 28, 28, 3)
    assert make(way=np.int32(2))[0]['labels'].shape == (2,)
    # The settings that some presets change: frames drawn for each clip, one class asked for.
    jittered = make(test_jitter=True, frames=4, sampling='segment')
    same = make(test_jitter=False, frames=4, sampling='segment')
    assert not np.array_equal(jittered[0]['support'], same[0]['support'])
    np.testing.assert_array_equal(jittered[0]['support'], jittered[0]['support'])
    assert make(query_classes=1)[0]['query'].shape == (1, 8, 28, 28, 3)
    assert len(next(make(query_classes=1).batch(3))['labels'][0]) == 1
