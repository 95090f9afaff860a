"""Where chosen frames and saliency lie, by hand, and the report over episodes whose truth is known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_misalignment import KnownDataset
from tiny_evaluation import make_config
from tiny_run import SAMPLER

from fsar_jax.data import episodes as episode_lists
from fsar_jax.learner import create_learner
from fsar_jax.training import episode_report, selection


def test_share_of_frames_inside_the_action():
    places = np.array([[[0, 2, 5, 6], [3, 4, 5, 9]]])
    assert selection.share_inside(places, np.array([[2, 3]]), np.array([[5, 3]])) == 3 / 8


def test_share_of_a_box():
    """A box of two columns and four rows of a frame of eight; saliency twice as high in it as elsewhere."""
    box = np.array([[2.0, 0.0, 4.0, 4.0], [np.nan] * 4])
    maps = np.ones((2, 8, 8))
    maps[0, :4, 2:4] = 2
    rows = np.tile(np.arange(8.0), (2, 1))
    columns = np.tile([0, 1, 2, 2.4, 2.8, 3.2, 5, 7], (2, 1))                      # four of eight read the box
    found = selection.box_share(maps, rows, columns, box)
    assert {name: share[0] for name, share in found.items()} == {'saliency': 16 / 72, 'amplified': 0.5 * 0.5, 'frame': 8 / 64}
    assert all(np.isnan(share[1]) for share in found.values())
    assert np.isnan(selection.box_share(0 * maps, rows, columns, box)['saliency']).all()


def sampling_config(**sampler):
    config = make_config(measured_episodes=3)
    with config.unlocked():
        config.update_from_flattened_dict(SAMPLER)
        config.model.sampler.update(dense_frames=8, **{'name': 'task_adaptive', **sampler})
        config.episode.image_size = 12
    return config


def test_selection_by_hand():
    """The action takes the stored frames 2 … 5; the centre crop takes two columns off the left of the frame, and of the boxes."""
    config, dataset = sampling_config(), KnownDataset()
    episodes = episode_lists.draw_episodes(dataset, 3, 2, 1, 0, 3)
    truth = episode_report.Truth.of(dataset, episodes)
    read = truth.stored(config)[0, 0]
    inside = (read >= 2) & (read <= 5)
    best, worst = np.sort(np.argsort(~inside, kind='stable')[:4]), np.sort(np.argsort(inside, kind='stable')[:4])
    chosen = np.broadcast_to(best, (3, 9, 4)).copy()
    chosen[1] = worst                                                              # of all clips of one episode
    maps = np.zeros((3, 9, 4, 12, 12), np.float32)
    maps[..., :4, :] = 1.0                                                         # the object's rows, all columns
    auxiliary = {'support_indices': chosen[:, :6].reshape(3, 3, 2, 4), 'query_indices': chosen[:, 6:],
                 'support_saliency': maps[:, :6].reshape(3, 3, 2, 4, 12, 12), 'query_saliency': maps[:, 6:]}
    found = episode_report.selection_measures(auxiliary, truth, config)
    good, bad = inside[best].mean(), inside[worst].mean()
    assert found['places'] == pytest.approx(np.bincount(chosen.ravel(), minlength=8) / 27)
    assert found['inside_action'] == pytest.approx({
        'chosen': (2 * good + bad) / 3, 'of_another_clip': (2 * good + bad) / 3, 'evenly_spaced': 2 / 4})     # frames 1, 3, 5, 8
    visible = read[chosen] != 4
    columns = 4 - np.maximum(0, 2 - np.concatenate([episodes.support.reshape(3, 6), episodes.query], 1) % 5)
    columns = np.broadcast_to(columns[..., None], visible.shape)[visible].mean()
    assert found['inside_box']['saliency'] == pytest.approx(columns / 12)
    assert found['inside_box']['frame'] == pytest.approx(4 * columns / 144)
    assert found['inside_box']['amplified'] > 1.5 * found['inside_box']['frame']
    assert 'inside_box' not in episode_report.selection_measures(
        {name: x for name, x in auxiliary.items() if 'indices' in name}, truth, config)


@pytest.mark.parametrize('changes', [{}, {'adaptive': False, 'temporal': False}, {'name': 'motion_guided'}])
def test_report_of_a_learner_that_chooses(changes):
    """From the prediction to the section, with the sampler per episode, per video, and without saliency."""
    config, dataset = sampling_config(**changes), KnownDataset()
    episodes = episode_lists.draw_episodes(dataset, 3, 2, 1, 0, 3)
    learner = create_learner(config.model)
    clips = jnp.zeros((3, 2, 8, 12, 12, 3), jnp.uint8)
    found = episode_report.measure(learner, jax.jit(learner.init)(jax.random.key(0), clips, clips[:, 0]), dataset, episodes, config)
    json.dumps(found, allow_nan=False)
    assert sum(found['selection']['places']) == pytest.approx(4) and len(found['selection']['places']) == 8
    inside = found['selection']['inside_action']
    if changes.get('temporal') is False:
        assert inside['chosen'] == inside['of_another_clip'] and max(found['selection']['places']) == 1
    assert ('inside_box' in found['selection']) == (changes.get('name') != 'motion_guided')
    assert 0 < found['misalignment']['truth']['temporal_overlap']['whole_clip'] <= 1
