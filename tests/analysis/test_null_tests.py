"""The null test of every alignment, where the truth is known: a part that follows its clip is worse
for another one, and a habit is not."""

import numpy as np
import pytest
from test_misalignment import KnownDataset
from tiny_evaluation import make_config

from fsar_jax.analysis.episode_report import Truth
from fsar_jax.analysis.null_tests import null_tests
from fsar_jax.data import episodes as episode_lists


class EarlyAndLate(KnownDataset):
    """The action of even clips takes the stored frames 0 … 4, of odd ones 5 … 9."""

    def read(self, position):
        late = 5 * (position % 2)
        return super().read(position) | {
            'action_start': np.int32(late),
            'action_end': np.int32(4 + late),
        }


def known(count=40):
    """Episodes, their truth, and which of their clips are late [E, clips]."""
    dataset, config = EarlyAndLate(), make_config()
    config.episode.image_size = 12
    config.model.enrichment.temporal_transform = True
    episodes = episode_lists.draw_episodes(dataset, 3, 2, 1, 0, count)
    clips = np.concatenate([episodes.support.reshape(count, -1), episodes.query], 1)
    return config, episodes, Truth.of(dataset, episodes), clips % 2 == 1


def by_class(x, labels):
    """[E, Q, …] of each query and its class → [E, Q, way, …], zeros for the other classes."""
    found = np.zeros((*labels.shape, 3, *x.shape[2:]))
    np.put_along_axis(found, labels.reshape(*labels.shape, *[1] * (x.ndim - 1)), x[:, :, None], 2)
    return found


def seen_as(episodes, **auxiliary):
    rng, count = np.random.default_rng(0), len(episodes)
    one_of_three = lambda *shape: rng.dirichlet(np.ones(3), shape)
    return {
        'class_probabilities': [(one_of_three(count, 3, 2, 4), one_of_three(count, 3, 4))],
        'auxiliary': auxiliary,
    }


def test_windows_of_another_clip():
    config, episodes, truth, late = known()
    windows = np.where(late[..., None], [0.5, 0.5], [0.5, -0.5])
    seen = seen_as(
        episodes, support_window=windows[:, :6].reshape(-1, 3, 2, 2), query_window=windows[:, 6:]
    )
    overlap = null_tests(seen, truth, episodes, config)['window']['overlap']
    assert overlap['own'] > overlap['whole_clip'] + 0.1 > overlap['of_another'] + 0.1
    habit = seen_as(
        episodes,
        support_window=np.full((40, 3, 2, 2), [0.9, 0]),
        query_window=np.full((40, 3, 2), [0.9, 0]),
    )
    overlap = null_tests(habit, truth, episodes, config)['window']['overlap']
    assert overlap['own'] == overlap['of_another']
    assert null_tests(habit, None, episodes, config) == {}


def test_offsets_of_another_pair():
    config, episodes, truth, _ = known()
    boxes = truth.boxes(config, truth.stored(config).astype(float))  # [E, clips, L, 4]
    centres = (boxes[..., :2] + boxes[..., 2:]) / config.episode.image_size
    support = centres[:, :6].reshape(40, 3, 2, 4, 2).mean(2)
    true = centres[:, 6:] - np.take_along_axis(support, episodes.labels[..., None, None], 1)
    config.model.matcher.name = 'action_coordination'
    sign = 1 if config.model.variant == 'code' else -1
    seen = seen_as(episodes, offsets=by_class(np.nan_to_num(sign * true), episodes.labels))
    found = null_tests(seen, truth, episodes, config)['offsets']
    assert found['displacement']['own'] == pytest.approx(0, abs=1e-6)
    assert found['displacement']['of_another'] > 0.5 * found['displacement']['before'] > 0
    own, of_another = found['correlation'].values()
    assert own == [pytest.approx(1), None]  # along y nothing differs
    assert abs(of_another[0]) < 0.4
    amplified = seen['auxiliary'] | {'query_saliency': np.ones(1)}
    assert null_tests(seen | {'auxiliary': amplified}, truth, episodes, config) == {}


def test_m_of_another_pair():
    """M takes, for each frame of the support, that of the query in which the action is as far."""
    config, episodes, truth, late = known()
    read = truth.stored(config)[0, 0]
    far = lambda is_late: np.clip((read - 5 * is_late) / 4, 0, 1)
    moves = np.zeros((40, 3, 4, 4))
    for e, q in np.ndindex(40, 3):
        query, support = far(late[e, 6 + q]), far(late[e, 2 * episodes.labels[e, q]])
        for row, wanted in enumerate(support):
            moves[e, q, row, np.abs(query - wanted).argmin()] = 1
    seen = seen_as(episodes, evolution=by_class(moves, episodes.labels))
    found = null_tests(seen, truth, episodes, config)['moves']
    assert found['apart']['own'] < 0.5 * found['apart']['of_another']
    assert found['apart']['own'] < 0.5 * found['apart']['frame_by_frame']
    even = seen_as(episodes, evolution=by_class(np.full_like(moves, 0.25), episodes.labels))
    found = null_tests(even, truth, episodes, config)['moves']
    assert found['apart']['own'] == pytest.approx(found['apart']['of_another'])
    assert found['aem']['own'] == pytest.approx(found['aem']['of_another'])
    assert set(null_tests(even, None, episodes, config)['moves']) == {'aem'}
