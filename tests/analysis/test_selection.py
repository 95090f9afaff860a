"""Where chosen frames and saliency lie, by hand, and the report over episodes whose truth is
known."""

import json

import numpy as np
import pytest
from test_misalignment import KnownDataset
from tiny_evaluation import make_config
from tiny_run import SAMPLER, TinyScan, random_variables

from fsar_jax import samplers
from fsar_jax.analysis import episode_report, selection
from fsar_jax.analysis.selection import saliency_density
from fsar_jax.data import episodes as episode_lists
from fsar_jax.evaluation.evaluate import TrainedModel
from fsar_jax.learner import create_learner

pytestmark = pytest.mark.slow


def test_share_of_frames_inside_the_action():
    frames = np.array([[[0, 2, 5, 6], [3, 4, 5, 9]]])
    assert selection.share_inside(frames, np.array([[2, 3]]), np.array([[5, 3]])) == 3 / 8


def test_share_of_a_box():
    """A box of two columns and four rows of a frame of eight; saliency twice as high in it as
    elsewhere."""
    box = np.array([[2.0, 0.0, 4.0, 4.0], [np.nan] * 4])
    maps = np.ones((2, 8, 8))
    maps[0, :4, 2:4] = 2
    rows = np.tile(np.arange(8.0), (2, 1))
    columns = np.tile([0, 1, 2, 2.4, 2.8, 3.2, 5, 7], (2, 1))  # four of eight read the box
    found = selection.box_share(maps, rows, columns, box)
    assert {name: share[0] for name, share in found.items()} == {
        'saliency': 16 / 72,
        'amplified': 0.5 * 0.5,
        'frame': 8 / 64,
    }
    assert all(np.isnan(share[1]) for share in found.values())
    assert np.isnan(selection.box_share(0 * maps, rows, columns, box)['saliency']).all()


class EarlyAndLate(KnownDataset):
    """The action of even clips takes the stored frames 2 … 5, of odd ones 6 … 9."""

    def read(self, position):
        late = 4 * (position % 2)
        return super().read(position) | {
            'action_start': np.int32(2 + late),
            'action_end': np.int32(5 + late),
        }


def sampling_config(**sampler):
    config = make_config(measured_episodes=3)
    with config.unlocked():
        config.update_from_flattened_dict(SAMPLER)
        config.model.sampler.update(dense_frames=8, **{'name': 'task_adaptive', **sampler})
        config.model.backbone.width = 4
        config.episode.image_size = 12
    return config


def test_selection_by_hand():
    """Clips take the frames of their own action, and in the second episode the others; the centre
    crop takes two columns off the left of the frame, and of the boxes."""
    config, dataset = sampling_config(), EarlyAndLate()
    episodes = episode_lists.draw_episodes(dataset, 3, 2, 1, 0, 3)
    truth = episode_report.Truth.of(dataset, episodes)
    clips = np.concatenate([episodes.support.reshape(3, 6), episodes.query], 1)  # positions
    read = truth.stored(config)[0, 0]  # of 0 … 9, the same of all clips
    early, late = np.flatnonzero((read >= 2) & (read <= 5)), np.flatnonzero(read >= 6)
    is_late = clips % 2 == 1
    takes_late = np.stack([is_late[0], ~is_late[1], is_late[2]])
    # Three frames inside, or none.
    chosen = np.where(takes_late[..., None], [0, *late[:3]], [0, *early[:3]])
    maps = np.zeros((3, 9, 4, 12, 12), np.float32)
    maps[..., :4, :] = 1.0  # the object's rows, all columns
    auxiliary = {
        'support_indices': chosen[:, :6].reshape(3, 3, 2, 4),
        'query_indices': chosen[:, 6:],
        'support_saliency': maps[:, :6].reshape(3, 3, 2, 4, 12, 12),
        'query_saliency': maps[:, 6:],
    }
    found = episode_report.selection_measures(auxiliary, truth, config)
    assert found['places'] == pytest.approx(np.bincount(chosen.ravel(), minlength=8) / 27)
    assert found['saliency_density'] == pytest.approx(4 / 12)
    of_another = 0.75 * np.mean(takes_late[[2, 0, 1]] == is_late)  # those of the episode before
    assert found['inside_action'] == pytest.approx(
        {  # evenly spaced: frames 1, 3, 5, 8
            'chosen': 0.75 * 2 / 3,
            'of_another_clip': of_another,
            'evenly_spaced': np.where(is_late, 1 / 4, 2 / 4).mean(),
        }
    )
    assert abs(of_another - 0.75 * 2 / 3) > 0.05
    first = {name: x[:1] for name, x in auxiliary.items()}
    alone = episode_report.selection_measures(
        first,
        episode_report.Truth.of(dataset, episode_lists.draw_episodes(dataset, 3, 2, 1, 0, 1)),
        config,
    )
    assert (
        alone['inside_action']['chosen'] == 0.75
        and alone['inside_action']['of_another_clip'] is None
    )
    visible = read[chosen] != 4
    columns = 4 - np.maximum(0, 2 - clips % 5)
    columns = np.broadcast_to(columns[..., None], visible.shape)[visible].mean()
    assert found['inside_box']['saliency'] == pytest.approx(columns / 12)
    assert found['inside_box']['frame'] == pytest.approx(4 * columns / 144)
    assert found['inside_box']['amplified'] > 1.5 * found['inside_box']['frame']
    assert 'inside_box' not in episode_report.selection_measures(
        {name: x for name, x in auxiliary.items() if 'indices' in name}, truth, config
    )


@pytest.mark.parametrize(
    'changes', [{}, {'adaptive': False, 'temporal': False}, {'name': 'motion_guided'}]
)
def test_report_of_a_learner_that_chooses(changes, shallow, monkeypatch):
    """From the prediction to the section, with the sampler per episode, per video, and without
    saliency."""
    monkeypatch.setattr(samplers, 'create_scan_network', lambda name, **_: TinyScan())
    config, dataset = sampling_config(**changes), EarlyAndLate()
    episodes = episode_lists.draw_episodes(dataset, 3, 2, 1, 0, 3)
    learner = create_learner(config.model)
    clips = np.zeros((3, 2, 8, 12, 12, 3), np.uint8)
    variables = random_variables(learner, clips, clips[:, 0])
    model = TrainedModel(learner, variables, config, mesh=None)
    found = episode_report.measure(model, dataset, episodes)
    json.dumps(found, allow_nan=False)
    assert (
        sum(found['selection']['places']) == pytest.approx(4)
        and len(found['selection']['places']) == 8
    )
    inside = found['selection']['inside_action']
    if changes.get('temporal') is False:
        assert (
            inside['chosen'] == inside['evenly_spaced'] == inside['of_another_clip']
            and max(found['selection']['places']) == 1
        )
    assert ('inside_box' in found['selection']) == (changes.get('name') != 'motion_guided')
    assert 0 < found['misalignment']['truth']['temporal_overlap']['whole_clip'] <= 1


def test_density_of_saliency():
    one_of_six, even = np.zeros((2, 3)), np.full((2, 3), 0.2)
    one_of_six[1, 1] = 0.7
    maps = np.stack([one_of_six, even, np.zeros((2, 3)), [[0, 1, 2], [3, 4, 5]]])[:, None]
    np.testing.assert_allclose(saliency_density(maps), [[1 / 6], [1], [1], [0.5]])


def test_places_of_each_class():
    frames, labels = np.array([[0, 2], [0, 1], [1, 2]]), np.array([5, 5, 3])
    found = selection.places_by_class(frames, labels, 4)
    assert list(found) == [3, 5]
    np.testing.assert_array_equal(found[5], [1, 0.5, 0.5, 0])
    np.testing.assert_array_equal(found[3], [0, 1, 1, 0])


def test_what_changes_with_the_support_set():
    """Clip 7 is asked for in three episodes; the other two choices share three and two frames with
    the first, and two with each other."""
    frames = np.array([[[0, 1, 2, 3]], [[0, 1, 2, 9]], [[0, 1, 8, 7]], [[4, 5, 6, 7]]])
    clips = np.array([[7], [7], [7], [2]])
    found = selection.changed_by_support(frames, clips)
    assert found == pytest.approx((1 / 4 + 2 / 4 + 2 / 4) / 3)
    assert selection.changed_by_support(frames[2:], clips[2:]) is None


def test_the_push_of_a_loss_towards_the_action():
    """A push of 1 on each frame of the action beside noise that no two draws share; what every clip
    shows at a place is a habit, and does not count."""
    rng = np.random.default_rng(0)
    inside = rng.random((40, 6, 10)) < 0.3
    noise = rng.normal(0, 2, (2, 40, 6, 10))
    habit = rng.normal(0, 50, 10)
    found = selection.push_of_the_loss(inside + noise + habit, inside)
    variance = 0.3 * 0.7
    assert found['draws_agree'] == pytest.approx(variance / (variance + 4), abs=0.03)
    mean, half = found['towards_action']
    size = np.sqrt(2 / np.pi) * np.sqrt(4 + variance)
    assert mean == pytest.approx(1 / size, abs=2 * half) and 0.03 < half < 0.15
    assert 'towards_action' not in selection.push_of_the_loss(inside + noise)
    # Episodes whose frames all show the action say nothing, and alone leave it out.
    assert 'towards_action' not in selection.push_of_the_loss(noise, np.ones_like(inside))
    some = inside.copy()
    some[0] = True
    assert np.isfinite(selection.push_of_the_loss(inside + noise, some)['towards_action']).all()
    assert selection.push_of_the_loss(np.zeros((2, 1, 2, 3)))['draws_agree'] == 0
