"""Cached evaluation against the published way and a slow loop; padding, several devices, what is
recorded."""

import copy
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_evaluation import TRACES, TinyDataset, TinyLearner, make_config, make_variables
from tiny_run import SAMPLER, random_variables, tiny_config, with_devices
from tiny_scan import TinyScan

from fsar_jax import mesh as meshes
from fsar_jax.data import episodes as episode_lists
from fsar_jax.data import loader
from fsar_jax.evaluation import embeddings
from fsar_jax.evaluation import evaluate as evaluation
from fsar_jax.learner import create_learner
from fsar_jax.samplers.sampler import Sampler


@pytest.fixture(scope='module')
def setting():
    config, learner, dataset = make_config(), TinyLearner(), TinyDataset()
    variables = make_variables(learner, config)
    return evaluation.TrainedModel(learner, variables, config, meshes.episode_mesh()), dataset


def draw(dataset, config, count):
    e = config.episode
    return episode_lists.draw_episodes(
        dataset, e.way, e.shot, config.eval.query, config.eval.seed, count
    )


def close(a, b, least=0.0):
    """To 1e-5 of the largest logit, or to `least`."""
    np.testing.assert_allclose(a, b, rtol=0, atol=max(least, 1e-5 * np.abs(b).max()))


def test_cached_equals_published_way_equals_one_episode_at_a_time(setting):
    model, dataset = setting
    learner, variables, config, _ = model
    episodes = draw(dataset, config, 11)  # not divisible by the chunk of 8
    cached = evaluation.evaluate_episodes(model, dataset, episodes)
    published = evaluation.evaluate_episodes(model, dataset, episodes, cache=False)
    assert cached.logits.shape == published.logits.shape == (11, 3, 3)
    close(cached.logits, published.logits)
    apply = jax.jit(learner.apply)
    for i in range(11):
        support, query = (
            np.concatenate(list(loader.video_batches(dataset, config, positions.ravel(), 1)))
            for positions in (episodes.support[i], episodes.query[i])
        )
        slow = apply(variables, support.reshape(3, 2, *support.shape[1:]), query).logits
        close(cached.logits[i], np.asarray(slow))
    np.testing.assert_array_equal(cached.correct, published.correct)
    np.testing.assert_array_equal(cached.confusion, published.confusion)
    assert 11 < cached.correct.sum() < 33  # neither chance (11) nor perfect


def tiny_model(mesh, method, changes, **episode):
    """A method with tiny networks, which is trained enough that each of its stages has an
    effect."""
    config = make_config()
    with config.unlocked():
        config.episode.update(episode)
        config.data.resize = max(config.data.resize, config.episode.image_size)
        changes = {'model.classifier.classes': 4, **changes}
        config.model = tiny_config(method, changes, width=4).model
    learner, e = create_learner(config.model), config.episode
    if method == 'vim':
        learner = learner.clone(sampler=learner.sampler.clone(scan_network=TinyScan()))
    clips = np.zeros((e.way, e.shot, e.frames, e.image_size, e.image_size, 3), np.uint8)
    variables = random_variables(learner, clips, clips[:, 0])
    return evaluation.TrainedModel(learner, variables, config, mesh)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['otam', 'ta2n', 'hyrsm', 'mastaf', 'vim'])
def test_cached_equals_published_way_for_every_matcher(setting, shallow, method):
    (_, _, _, mesh), dataset = setting
    model = tiny_model(mesh, method, SAMPLER if method == 'vim' else {})
    episodes = draw(dataset, model.config, 3)
    cached, published = (
        evaluation.evaluate_episodes(model, dataset, episodes, cache) for cache in (True, False)
    )
    close(cached.logits, published.logits, 2e-6)  # in float32, 1 − cosine is no more exact
    assert np.ptp(cached.logits, axis=-1).min() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes, kept',
    [
        # Averaged over places where the matcher takes frames, as maps where a stage takes maps.
        ({'sampler.at_test': False}, (6, 1, 1, 16)),
        ({'sampler.variant': 'code', 'enrichment.temporal_transform': True}, (6, 2, 2, 16 + 192)),
    ],
)
def test_frames_that_look_alike_in_all_episodes_are_embedded_once(
    setting, shallow, changes, kept, monkeypatch
):
    (_, _, _, mesh), dataset = setting
    changes = {f'model.{name}': value for name, value in changes.items()}
    model = tiny_model(mesh, 'vim', SAMPLER | changes, image_size=32)
    config, episodes = model.config, draw(dataset, model.config, 3)
    store = embeddings.embed_videos(model, dataset, [3, 4], 'embed_frames')
    assert store['frames'].shape == (2, *kept)
    done, progress = [], evaluation.Progress
    for module in (embeddings, evaluation):
        monkeypatch.setattr(module, 'Progress', lambda *x: (done.append(x[1]), progress(*x))[-1])
    logits = []
    for gigabytes in (8.0, 0.0):
        config.eval.frame_cache_gb = gigabytes
        logits.append(evaluation.evaluate_episodes(model, dataset, episodes).logits)
    assert done == ['embedding', 'matching', 'embedding', 'encoding and matching']
    close(*logits)
    assert np.ptp(logits[1], axis=-1).min() > 1e-4


@pytest.mark.slow
def test_a_sampler_that_only_resamples_is_left_out_where_it_is_off_in_tests(setting, shallow):
    """VIM's Table 5 (SA + Ada) tested as in Table 17: all frames as they are, nothing to choose."""
    (_, _, _, mesh), dataset = setting
    changes = {'temporal': False, 'at_test': False, 'variant': 'paper', 'spatial': 'amplify'}
    changes = {f'model.sampler.{name}': value for name, value in changes.items()}
    model = tiny_model(mesh, 'vim', SAMPLER | changes, image_size=32)
    episodes = draw(dataset, model.config, 3)
    found = evaluation.evaluate_episodes(model, dataset, episodes).logits
    assert np.ptp(found, axis=-1).min() > 1e-4
    model.config.eval.frame_cache_gb = 0.0
    close(found, evaluation.evaluate_episodes(model, dataset, episodes).logits)


class LitLikeTheSupport(Sampler):
    """A sampler with the methods that fsar_jax/samplers asks for and no others: all clips of an
    episode are darkened by how bright its support is."""

    per_episode = True

    def scan(self, videos, train=False):
        return {'videos': videos.astype(jnp.float32) / 255}

    def sample_episode(self, support, query, train=False):
        light = support['videos'].mean()
        return {'frames': support['videos'] * light}, {'frames': query['videos'] * light}


def test_a_sampler_of_episodes_needs_only_its_two_methods(setting, shallow):
    (_, _, _, mesh), dataset = setting
    model = tiny_model(mesh, 'protonet', {})
    model = model._replace(learner=model.learner.clone(sampler=LitLikeTheSupport()))
    episodes = draw(dataset, model.config, 3)
    cached, published = (
        evaluation.evaluate_episodes(model, dataset, episodes, cache).logits
        for cache in (True, False)
    )
    close(cached, published, 2e-6)
    assert np.ptp(cached, axis=-1).min() > 1e-4


def test_each_video_is_loaded_once_and_only_if_it_occurs(setting):
    model, dataset = setting
    config = model.config
    episodes = draw(dataset, config, 2)
    used = np.union1d(episodes.support, episodes.query)
    assert len(used) < len(dataset)
    dataset.reads.clear()
    evaluation.evaluate_episodes(model, dataset, episodes)
    assert set(dataset.reads) == set(used.tolist())
    repeats = config.eval.videos_per_batch - 1  # at most, to fill the last batch
    assert len(dataset.reads) <= len(used) + repeats


def test_embeddings_have_a_row_per_video_in_order(setting):
    model, dataset = setting
    stored = embeddings.embed_videos(model, dataset)
    assert jax.tree.map(jnp.shape, stored) == {'frames': (20, 4, 6), 'video': (20, 6)}
    some = embeddings.embed_videos(model, dataset, positions=[13, 2])
    jax.tree.map(lambda a, b: close(b, np.asarray(a)[[13, 2]]), stored, some)


def test_counts_and_confusion_by_a_slow_loop(setting):
    model, dataset = setting
    episodes = draw(dataset, model.config, 11)
    outcome = evaluation.evaluate_episodes(model, dataset, episodes)
    assert outcome.classes == ['action 0', 'action 2', 'action 3', 'action 5', 'action 7']
    confusion, correct = np.zeros((5, 5), int), np.zeros(11, int)
    for i in range(11):
        for label, scores, position in zip(
            episodes.labels[i], outcome.logits[i], episodes.query[i]
        ):
            name = dataset.class_names[dataset.labels[position]]
            answer = dataset.class_names[episodes.classes[i][int(np.argmax(scores))]]
            confusion[outcome.classes.index(name), outcome.classes.index(answer)] += 1
            correct[i] += int(np.argmax(scores)) == label
    np.testing.assert_array_equal(outcome.confusion, confusion)
    np.testing.assert_array_equal(outcome.correct, correct)


def test_nothing_is_traced_again_for_the_next_chunk_or_the_next_checkpoint(setting):
    model, dataset = setting
    learner = TinyLearner(features=6, name='counted')  # compiled by no other test

    def traces(episodes, variables):
        before = dict(TRACES)
        counted = model._replace(learner=learner, variables=variables)
        evaluation.evaluate_episodes(counted, dataset, episodes)
        return {name: TRACES[name] - before[name] for name in TRACES}

    episodes = draw(dataset, model.config, 50)  # 7 chunks, 4 batches of videos
    variables = model.variables
    first = traces(episodes, variables)
    assert first == {'embed': 2, 'match': 1}  # once for the shape, once to compile
    assert traces(episodes, jax.tree.map(lambda x: 2 * x, variables)) == {'embed': 1, 'match': 0}


def test_as_many_episodes_are_matched_at_once_as_have_room(setting, monkeypatch, capsys):
    model, dataset = setting
    episodes = draw(dataset, model.config, 9)
    whole = evaluation.evaluate_episodes(model, dataset, episodes)
    clips = episodes.support[0].size + episodes.query[0].size
    kept = embeddings.storage(model, embeddings.batch_of_clips(dataset, model), 9)
    of_clip = embeddings.bytes_of(kept.shapes) / embeddings.batch_size(model)
    asked = model.config.eval.episodes_per_chunk
    for room, count, chunk in (
        (2.9, 1000, 2),
        (1e6, 1000, asked),
        (0, 1000, 1),
        (4.5, 3, 3),
        (0, 1, 1),
    ):
        monkeypatch.setattr(embeddings, 'free_memory_of', lambda device: 4 * room * clips * of_clip)
        embeddings.say.cache_clear()
        assert embeddings.episodes_at_once(model, kept, clips, count) == chunk
        said = f'matching at most {chunk} episodes at once, not' in capsys.readouterr().out
        assert said == (chunk < min(asked, count))
    monkeypatch.setattr(embeddings, 'free_memory_of', lambda device: 4 * 2.9 * clips * of_clip)
    few = evaluation.evaluate_episodes(
        model._replace(config=with_room(model.config)), dataset, episodes
    )
    np.testing.assert_allclose(few.logits, whole.logits, rtol=1e-5, atol=1e-5)


def with_room(config):
    """Its embeddings fit, whatever is free."""
    config = config.copy_and_resolve_references()
    config.eval.embeddings = 'replicated'
    return config


def test_results_of_a_split(setting):
    model, dataset = setting
    description = evaluation.Description('tiny', 'val accuracy at step 3')

    def run(**changes):
        config = make_config(**changes)
        return evaluation.evaluate(model._replace(config=config), dataset, 11, description)

    found = run()
    episodes = draw(dataset, model.config, 11)
    outcome = evaluation.evaluate_episodes(model, dataset, episodes)
    assert found['correct'] == outcome.correct.tolist()
    assert found['queries'] == 3 and found['chance'] == pytest.approx(1 / 3)
    assert found['accuracy'] == pytest.approx(outcome.correct.mean() / 3)
    assert found['episodes_hash'] == episode_lists.episodes_hash(dataset, episodes)
    assert found['selected_on'] == 'val accuracy at step 3' and found['method'] == 'tiny'
    assert found['versions']['made_with'] == {'av': '19.0.0'}
    assert found['records'] == {'short_side': 8}
    assert set(found['seconds']) == {'embed', 'match', 'total'}
    assert {**run(), 'seconds': None} == {**found, 'seconds': None}
    without_cache = run(cache=False)
    assert set(without_cache['seconds']) == {'episodes', 'total'}
    others = {'seconds': None, 'config': None}
    assert {**without_cache, **others} == {**found, **others}


def test_an_episode_list_from_a_file(setting, tmp_path):
    model, dataset = setting
    episodes = draw(dataset, model.config, 5)
    episode_lists.write_episodes(tmp_path / 'list.jsonl', dataset, episodes)
    model = model._replace(config=make_config(episodes_file=str(tmp_path / 'list.jsonl')))
    found = evaluation.evaluate(model, dataset, 11)
    assert found['num_episodes'] == 5
    assert found['episodes_hash'] == episode_lists.episodes_hash(dataset, episodes)
    val_set = copy.copy(dataset)
    val_set.split = 'val'
    val = evaluation.evaluate(model, val_set, 3)
    assert val['num_episodes'] == 3  # the list is for eval.split only
    model.config.episode.way = 4
    message = 'holds 3-way 2-shot episodes of 3 queries, the config asks for 4-way 2-shot with 4'
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(model, dataset, 11)


def test_diverged_parameters_are_an_error_not_chance(setting):
    model, dataset = setting
    broken = model._replace(variables=jax.tree.map(lambda x: x * jnp.nan, model.variables))
    episodes = draw(dataset, model.config, 11)
    with pytest.raises(
        ValueError, match='logits of 11 of 11 episodes are not finite, first in episode 0'
    ):
        evaluation.evaluate_episodes(broken, dataset, episodes)


ON_THESE_DEVICES = '''
    import json, sys
    import jax, numpy as np
    from test_evaluation import draw, tiny_model
    from tiny_evaluation import TinyDataset, TinyLearner, make_config, make_variables
    from tiny_run import SAMPLER, shallow_networks
    from fsar_jax.evaluation import embeddings
    from fsar_jax.evaluation import evaluate as evaluation
    from fsar_jax.mesh import episode_mesh

    def logits_of(model, layout, **settings):
        model.config.eval.update(embeddings=layout, **settings)
        episodes = draw(odd, model.config, 11)
        return evaluation.evaluate_episodes(model, odd, episodes).logits

    learner, dataset, odd = TinyLearner(), TinyDataset(), TinyDataset(clips=5)
    variables = make_variables(learner, make_config())
    found = []
    for settings in ({}, {'cache': False}, {'embeddings': 'sharded'}):
        model = evaluation.TrainedModel(
            learner, variables, make_config(**settings), episode_mesh()
        )
        found.append(evaluation.evaluate(model, dataset, 11))
    copies, parts = (logits_of(model, layout) for layout in ('replicated', 'sharded'))
    np.testing.assert_array_equal(copies, parts)

    clips = embeddings.batch_of_clips(odd, model)
    kept = embeddings.storage(model, clips, 25)
    store = embeddings.embed_into_storage(model, odd, np.arange(25), kept)
    whole = embeddings.embed_videos(model, odd)
    rows = embeddings.row_of_each(25, embeddings.batch_size(model), 8)
    for part, copy in zip(*map(jax.tree.leaves, (store, whole))):
        # four batches of eight clips, of which each device keeps one
        assert {shard.data.shape[0] for shard in part.addressable_shards} == {4}
        np.testing.assert_array_equal(np.asarray(part)[rows], copy)

    # What fits a device decides: copies of 25 clips are 25 * 30 float32 on each.
    for room, where in ((3000, 'a copy'), (2999, 'a part'), (374, 'embeds its clips again')):
        embeddings.say.cache_clear()
        close = logits_of(model, 'auto', embeddings_gb=room / 1e9) - copies
        assert np.abs(close).max() < 1e-5 and (where == 'embeds its clips again' or not close.any())
        print('room', room, where)
    if '--vim' in sys.argv:
        with shallow_networks():
            vim = tiny_model(episode_mesh(), 'vim', SAMPLER | {'model.sampler.at_test': False})
        for frames in (8.0, 0.0):
            copies, parts = (
                logits_of(vim, layout, frame_cache_gb=frames)
                for layout in ('replicated', 'sharded')
            )
            np.testing.assert_array_equal(copies, parts)
            assert np.ptp(copies) > 1e-3
    print(json.dumps([jax.device_count(), *found]))
'''


@pytest.mark.slow
def test_eight_devices_give_the_counts_of_one(setting):
    """With copies of the embeddings on each, and with a part on each, which gives the same logits:
    also of a sampler that chooses among embedded frames, and of one that encodes in `match`."""
    model, dataset = setting
    tests = pathlib.Path(__file__).parents[1]
    env = {
        **os.environ,
        **with_devices(8),
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': os.pathsep.join(map(str, (tests.parent, tests, tests / 'evaluation'))),
    }
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(ON_THESE_DEVICES), '--vim'],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *said, last = done.stdout.splitlines()
    devices, *found = json.loads(last)
    one = evaluation.evaluate(model, dataset, 11)
    assert devices == 8 and len(found) == 3
    for eight in found:
        assert eight['correct'] == one['correct'] and eight['confusion'] == one['confusion']
        assert eight['params_hash'] == one['params_hash']
    before = {line: said[number - 1] for number, line in enumerate(said)}
    assert (
        before['room 3000 a copy'] == 'embeddings of 25 clips: 3.0 kB, a copy on each of 8 devices'
    )
    assert (
        before['room 2999 a part']
        == 'embeddings of 25 clips: 375 bytes, a part on each of 8 devices'
    )
    note = before['room 374 embeds its clips again']
    assert 'need 3.0 kB of a device, 375 bytes of each of 8 in parts, and 374 bytes are for' in note
    assert '9 such devices or' in note


def test_a_clip_is_sent_once_to_each_device_that_uses_it():
    """By a slow loop: what arrives at the device of an episode are the rows of its clips."""
    rng = np.random.default_rng(0)
    for devices, count, batch in ((1, 5, 3), (2, 9, 4), (4, 37, 8)):
        rows = embeddings.row_of_each(count, batch, devices)
        part = -(-count // batch) * batch // devices
        store = np.full(part * devices, -1)
        store[rows] = np.arange(count)
        assert sorted(store[store >= 0]) == list(range(count))  # each has a place of its own
        chunks, share = [], 2
        for _ in range(3):
            clips = rng.integers(0, count, (devices * share, 7))
            chunks.append((clips[:, :6].reshape(-1, 3, 2), clips[:, 6:]))
        found = embeddings.exchanges([(rows[s], rows[q]) for s, q in chunks], part, devices)
        assert len({x.send.shape for x in found}) == 1
        used = 0
        for (support, query), exchange in zip(chunks, found):
            for device in range(devices):
                mine = slice(device * share, (device + 1) * share)
                sent = exchange.send[:, device]  # [n, K]
                arrived = (store.reshape(devices, part)[np.arange(devices)[:, None], sent]).ravel()
                np.testing.assert_array_equal(arrived[exchange.support[mine]], support[mine])
                np.testing.assert_array_equal(arrived[exchange.query[mine]], query[mine])
                once = np.unique(
                    np.concatenate([exchange.support[mine].ravel(), exchange.query[mine].ravel()])
                )
                asked = np.union1d(support[mine], query[mine])
                assert len(once) == len(asked)
                used = max(used, np.bincount(rows[asked] // part).max())
        assert found[0].send.shape == (devices, devices, used)
