"""The tests of VIM, Fig. 19 to 21, as commands: a run on a few clips of each training class, and a
finished run on another dataset and with more classes in an episode."""

import json

import pytest
from tiny_run import error_of, main_here, tiny_flags

from fsar_jax.data import episodes as lists
from fsar_jax.data.dataset import open_dataset
from fsar_jax.data.episodes import draw_episode

# The shapes are those of tests/test_main.py, whose compiled programs it takes.
RUN = {'train.num_steps': 2, 'episode.query': 1, 'data.train_clips_per_class': 2}


@pytest.mark.slow
def test_a_run_on_two_clips_of_each_class(tiny_data, tmp_path, monkeypatch):
    drawn = []

    def recording(*arguments):
        episode = draw_episode(*arguments)
        dataset = arguments[0]
        drawn.extend(dataset.video_ids[p] for p in [*episode.support.flat, *episode.query.flat])
        return episode

    monkeypatch.setattr(lists, 'draw_episode', recording)
    flags = tiny_flags('strm', tiny_data, tmp_path / 'run', RUN)
    printed = main_here(*flags)
    assert 'video_folder/tiny: 4 classes, 8 clips, at most 2 of each class' in printed

    results = json.loads((tmp_path / 'run/results.json').read_text())
    assert results['config']['data']['train_clips_per_class'] == 2
    kept = results['trained_on']['train']['limited_to']
    assert results['trained_on']['train']['present'] == 16  # of the split; 8 are trained on
    assert {name: len(ids) for name, ids in kept.items()} == {f'train {i}': 2 for i in range(4)}
    whole = open_dataset('video_folder/tiny', tiny_data, 'train')
    class_of = {
        video: whole.class_names[label]
        for video, label in zip(whole.video_ids, whole.labels, strict=True)
    }
    assert all(class_of[video] == name for name, ids in kept.items() for video in ids)
    trained = {video for video in drawn if video.startswith('train')}
    assert trained <= {video for ids in kept.values() for video in ids} and len(trained) > 5
    assert 'limited_to' not in results['trained_on']['val']

    # It goes on with the same clips alone.
    for other in (3, None):
        more = {**RUN, 'train.num_steps': 3, 'data.train_clips_per_class': other}
        error = error_of(*tiny_flags('strm', tiny_data, tmp_path / 'run', more))
        assert f'data.train_clips_per_class=2 there, {other} here' in error

    # The finished run on another dataset, and with more classes in an episode.
    evaluate = ('--config=configs/strm.py', f'--workdir={tmp_path / "run"}', '--mode=evaluate')
    main_here(*evaluate, '--config.data.dataset=video_folder/no_val', '--config.episode.way=3')
    (other,) = (tmp_path / 'run').glob('results.*no_val*.json')
    elsewhere = json.loads(other.read_text())
    assert (elsewhere['dataset'], elsewhere['way']) == ('video_folder/no_val', 3)
    assert elsewhere['params_hash'] == results['params_hash']
    assert elsewhere['trained_on'] == results['trained_on'] and elsewhere['chance'] == 1 / 3
