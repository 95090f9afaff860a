"""Episode draws and episode lists: pure, independent of record order, exchangeable."""

import hashlib
import json
import os

import numpy as np
import pytest
from memory_videos import MemoryVideos, small_config
from tiny_run import get_config

from fsar_jax.data import episodes as lists
from fsar_jax.data import loader
from fsar_jax.training import inputs

FIELDS = ('support', 'query', 'labels', 'classes')
WAY, SHOT, QUERY = 5, 2, 3
PINNED_DRAWS = [0.5241564633826448, 0.5762627820551913, 0.4182748910420203]
PINNED_HASH = '724f4cb819f66c54df5a9a79ab45549666f5adee76fb9062a2e5699cfd78030e'


@pytest.fixture(scope='module')
def dataset():
    return MemoryVideos([6, 5, 9, 5, 7, 30, 6], split='test')


def ids(dataset, episodes):
    """Episodes by name: what must not depend on the order of records or labels."""
    video_ids = np.array(dataset.video_ids)
    class_names = np.array(dataset.class_names)
    return (
        video_ids[episodes.support].tolist(),
        video_ids[episodes.query].tolist(),
        class_names[episodes.classes].tolist(),
    )


def assert_same(a, b):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


def test_shapes_and_meaning(dataset):
    drawn = lists.draw_episodes(dataset, WAY, SHOT, QUERY, seed=0, count=50)
    assert len(drawn) == 50
    assert drawn.support.shape == (50, WAY, SHOT) and drawn.query.shape == (50, WAY * QUERY)
    assert all(getattr(drawn, field).dtype == np.int32 for field in FIELDS)
    for support, query, labels, classes in zip(
        drawn.support, drawn.query, drawn.labels, drawn.classes
    ):
        assert labels.tolist() == [row for row in range(WAY) for _ in range(QUERY)], (
            'labels are class-major'
        )
        assert len(set(classes.tolist())) == WAY
        assert (dataset.labels[support] == classes[:, None]).all()
        assert (dataset.labels[query] == classes[labels]).all()
        used = [*support.ravel().tolist(), *query.tolist()]
        assert len(set(used)) == len(used), 'a clip is used twice in one episode'


def test_an_episode_depends_on_its_index_alone(dataset):
    whole = lists.draw_episodes(dataset, WAY, SHOT, QUERY, seed=7, count=30)
    later = lists.draw_episodes(dataset, WAY, SHOT, QUERY, seed=7, count=4, start=11)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(later, field), getattr(whole, field)[11:15])
    for index in (29, 3, 17):
        alone = lists.draw_episode(dataset, WAY, SHOT, QUERY, 7, index)
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(alone, field)[0], getattr(whole, field)[index])


def test_seed_split_and_index_each_change_the_draw(dataset):
    first = lists.draw_episodes(dataset, WAY, SHOT, QUERY, seed=0, count=20)
    other_seed = lists.draw_episodes(dataset, WAY, SHOT, QUERY, seed=1, count=20)
    other_split = lists.draw_episodes(
        MemoryVideos([6, 5, 9, 5, 7, 30, 6], split='val'), WAY, SHOT, QUERY, seed=0, count=20
    )
    for other in (other_seed, other_split):
        assert (first.support != other.support).any((1, 2)).all(), (
            'some episode is the same under another key'
        )
    assert len({episode.tobytes() for episode in first.support}) == 20


def test_streams_of_an_episode_are_apart():
    draws = [
        lists.episode_generator(0, 'train', index, stream).random(200)
        for index in (0, 1)
        for stream in (0, 1)
    ]
    assert len(np.unique(draws)) == 800


def test_the_draw_is_the_same_on_every_machine():
    # What this version draws; a change of it silently changes every published episode list.
    drawn = lists.episode_generator(0, 'test', 12, lists.CLIPS).random(3)
    np.testing.assert_allclose(drawn, PINNED_DRAWS, rtol=0, atol=1e-15)
    dataset = MemoryVideos([6, 5, 9, 5, 7], split='test')
    assert (
        lists.episodes_hash(dataset, lists.draw_episodes(dataset, 5, 1, 1, seed=0, count=100))
        == PINNED_HASH
    )


def test_more_queries_leave_classes_and_support_alone(dataset):
    few = lists.draw_episodes(dataset, WAY, SHOT, 1, seed=0, count=20)
    many = lists.draw_episodes(dataset, WAY, SHOT, 3, seed=0, count=20)
    np.testing.assert_array_equal(few.support, many.support)
    np.testing.assert_array_equal(few.query, many.query.reshape(20, WAY, 3)[:, :, 0])


def test_queries_of_a_few_classes_are_those_of_the_whole_episode(dataset, tmp_path):
    whole = lists.draw_episodes(dataset, WAY, SHOT, QUERY, seed=0, count=200)
    for classes in (1, 3):
        few = lists.draw_episodes(
            dataset, WAY, SHOT, QUERY, seed=0, count=200, query_classes=classes
        )
        np.testing.assert_array_equal(few.support, whole.support)
        np.testing.assert_array_equal(few.classes, whole.classes)
        assert few.query.shape == few.labels.shape == (200, classes * QUERY)
        assert few.labels.dtype == few.query.dtype == np.int32
        asked = few.labels.reshape(200, classes, QUERY)
        assert (asked == asked[..., :1]).all() and (np.diff(asked[..., 0]) > 0).all()
        of_class = whole.query.reshape(200, WAY, QUERY)[np.arange(200)[:, None], asked[..., 0]]
        np.testing.assert_array_equal(few.query.reshape(200, classes, QUERY), of_class)
        # Any class may be the one, whatever its place: five standard deviations of a binomial.
        share, counts = classes / WAY, np.bincount(asked[..., 0].ravel(), minlength=WAY)
        assert np.abs(counts - 200 * share).max() < 5 * np.sqrt(200 * share * (1 - share))
        lists.write_episodes(tmp_path / 'list', dataset, few)
        assert_same(lists.read_episodes(tmp_path / 'list', dataset), few)


def test_a_limited_split_has_some_clips_of_each_class():
    counts = [6, 5, 9, 2, 7, 30, 6]
    dataset = MemoryVideos(counts)
    ids_of = lambda videos: set(videos.video_ids)
    assert lists.limited(dataset, None, 0) is dataset
    kept = {n: lists.limited(dataset, n, 0) for n in (1, 4, 6)}
    for n, videos in kept.items():
        assert np.bincount(videos.labels).tolist() == [min(n, count) for count in counts]
        assert videos.clips_per_class == n and videos.whole is dataset
        assert videos.num_frames.shape == (len(videos),) and videos.split == 'train'
        for position in (0, len(videos) - 1):
            assert videos.read(position)['video_id'] == videos.video_ids[position]
    assert ids_of(kept[1]) < ids_of(kept[4]) < ids_of(kept[6])
    # A function of seed, split and class: of no record order, no label, and no other class.
    order = np.random.default_rng(0).permutation(sum(counts))
    assert ids_of(lists.limited(MemoryVideos(counts, order=order), 4, 0)) == ids_of(kept[4])
    alone = lists.limited(MemoryVideos([0, 0, 9, 0, 0, 30, 0]), 4, 0)
    assert ids_of(alone) < ids_of(kept[4])
    for other in (
        lists.limited(dataset, 4, 1),
        lists.limited(MemoryVideos(counts, split='val'), 4, 0),
    ):
        assert ids_of(other) != ids_of(kept[4])
    # Each clip of a class is as likely as another.
    one = MemoryVideos([10, 10])
    found = [lists.limited(one, 3, seed).video_ids for seed in range(300)]
    times = np.unique(np.concatenate(found), return_counts=True)[1]
    assert len(times) == 20 and np.abs(times - 90).max() < 5 * np.sqrt(300 * 0.3 * 0.7)


def test_a_limited_split_counts_what_was_too_short():
    dataset = MemoryVideos([6, 6], num_frames=lambda c, k: 2 if k == 0 else 8)
    config = small_config(episode__way=2)
    videos = lists.limited(loader.usable(dataset, config), 3, 0)
    assert len(videos) == 6 and videos.dropped.tolist() == [0, 1]
    assert not set(videos.video_ids) & {'class 00/0', 'class 01/0'}


def test_order_of_records_and_labels_is_irrelevant(dataset):
    counts = [6, 5, 9, 5, 7, 30, 6]
    shuffled = MemoryVideos(
        counts, split='test', order=np.random.default_rng(0).permutation(sum(counts))
    )
    relabelled = MemoryVideos(counts, split='test')
    permutation = np.random.default_rng(1).permutation(7)
    relabelled.labels = permutation[relabelled.labels].astype(np.int32)
    relabelled.class_names = [relabelled.class_names[label] for label in np.argsort(permutation)]
    first = lists.draw_episodes(dataset, WAY, SHOT, QUERY, seed=0, count=20)
    for other in (shuffled, relabelled):
        drawn = lists.draw_episodes(other, WAY, SHOT, QUERY, seed=0, count=20)
        assert ids(other, drawn) == ids(dataset, first)
        assert lists.episodes_hash(other, drawn) == lists.episodes_hash(dataset, first)


def test_classes_and_clips_are_drawn_uniformly():
    dataset = MemoryVideos([4] * 10)
    count = 4000
    drawn = lists.draw_episodes(dataset, 5, 1, 1, seed=0, count=count)
    classes = np.bincount(drawn.classes.ravel(), minlength=10)
    clips = np.bincount(np.concatenate([drawn.support.ravel(), drawn.query.ravel()]), minlength=40)
    # Five standard deviations of a binomial with the share of episodes that use a class, or a clip.
    for found, share in ((classes, 0.5), (clips, 0.25)):
        assert np.abs(found - count * share).max() < 5 * np.sqrt(count * share * (1 - share))
    first_row = np.bincount(drawn.classes[:, 0], minlength=10)
    assert np.abs(first_row - count / 10).max() < 5 * np.sqrt(count * 0.09), (
        'the row of a class in an episode is not random'
    )


def test_too_few_classes_or_clips_is_named():
    with pytest.raises(ValueError, match='memory train has 3 classes, 5-way episodes need 5'):
        lists.check_dataset(MemoryVideos([9, 9, 9]), 5, 1, 1)
    with pytest.raises(
        ValueError,
        match=r"class 'class 01' of memory train has 4 clips, 3 support \+ 2 query per class need "
        r"5, "
        'and so for 1 more classes: lower config.episode.shot',
    ):
        lists.check_dataset(MemoryVideos([9, 4, 2]), 3, 3, 2)
    with pytest.raises(ValueError, match='at least 2 classes .* got way=1'):
        lists.check_dataset(MemoryVideos([9, 9]), 1, 1, 1)
    with pytest.raises(ValueError, match="class 'class 01'"):
        lists.draw_episodes(MemoryVideos([9, 4]), 2, 3, 2, seed=0, count=1)


def test_a_list_of_episodes_says_itself_what_it_takes(monkeypatch):
    config = get_config('protonet')
    config.episode.update(way=2, shot=2, frames=4)
    monkeypatch.setattr(inputs, 'open_videos', lambda *_: MemoryVideos([9, 4, 2]))
    with pytest.raises(ValueError, match="class 'class 02' of memory train has 2 clips"):
        inputs.open_split(config, 'test', 1)
    config.eval.episodes_file = 'list.jsonl'  # it may leave the third class out
    assert len(inputs.open_split(config, 'test', 1)) == 15
    with pytest.raises(ValueError, match="class 'class 02' of memory train has 2 clips"):
        inputs.open_split(config, 'val', 1)


def test_dropped_clips_are_part_of_the_message():
    dataset = MemoryVideos([5, 5, 5], num_frames=lambda c, k: 3 if c == 1 and k else 12)
    view = loader.usable(dataset, small_config())
    with pytest.raises(
        ValueError,
        match=r"class 'class 01' of memory train has 1 clips \(4 dropped: fewer than "
        r"config.episode.frames",
    ):
        lists.check_dataset(view, 3, 1, 1)
    gone = loader.usable(
        MemoryVideos([5, 5, 5], num_frames=lambda c, k: 3 if c == 1 else 12), small_config()
    )
    with pytest.raises(
        ValueError, match=r"class 'class 01' of memory train has 0 clips \(5 dropped"
    ):
        lists.check_dataset(gone, 3, 1, 1)


def test_no_episodes_is_an_error(dataset):
    with pytest.raises(ValueError, match='asked for 0 episodes'):
        lists.draw_episodes(dataset, WAY, SHOT, QUERY, seed=0, count=0)


def test_a_list_goes_to_another_build_and_back(dataset, tmp_path):
    path = tmp_path / 'episodes.jsonl'
    first = lists.draw_episodes(dataset, WAY, SHOT, QUERY, seed=0, count=20)
    lists.write_episodes(path, dataset, first)
    assert_same(lists.read_episodes(path, dataset), first)
    # Another order, and clips that the first build did not have.
    other = MemoryVideos(
        [8, 7, 9, 5, 7, 31, 6], split='test', order=np.random.default_rng(3).permutation(73)
    )
    again = lists.read_episodes(path, other)
    assert ids(other, again) == ids(dataset, first)
    assert lists.episodes_hash(other, again) == lists.episodes_hash(dataset, first)
    assert lists.episodes_hash(dataset, first) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_hash_sees_every_clip_and_label(dataset):
    first = lists.draw_episodes(dataset, WAY, SHOT, QUERY, seed=0, count=5)
    np.testing.assert_array_equal(first.labels[:, -1], WAY - 1)
    hashes = {lists.episodes_hash(dataset, first)}
    for field in ('support', 'query', 'labels'):
        changed = lists.Episodes(**{name: getattr(first, name).copy() for name in FIELDS})
        array = getattr(changed, field)
        array.flat[-1] = array.flat[-1] - 1
        hashes.add(lists.episodes_hash(dataset, changed))
    assert len(hashes) == 4


def lines(dataset, **changes):
    drawn = lists.draw_episodes(dataset, 2, 1, 1, seed=0, count=2)
    video_ids = np.array(dataset.video_ids)
    rows = [
        {'support': video_ids[s].tolist(), 'query': video_ids[q].tolist(), 'labels': [0, 1]}
        for s, q in zip(drawn.support, drawn.query)
    ]
    rows[1].update(changes)
    return '\n'.join(map(json.dumps, rows))


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(support=[['nobody/1'], ['nobody/0']]),
            'names 2 clips that memory test does not have .*: nobody/0, nobody/1$',
        ),
        (dict(query=['class 00/0', 'class 00/0']), "line 2 uses clip 'class 00/0' twice"),
        (
            dict(support=[['class 00/0'], ['class 01/0']], query=['class 01/1', 'class 00/1']),
            'line 2: clips of one class in the list are of',
        ),
        (dict(labels=[0, 2]), r'line 2 has a label outside 0\.\.1'),
        (dict(labels=[0]), 'line 2 is not an episode .*query and labels are not'),
        (
            dict(support=['class 00/0', 'class 01/0']),
            r'line 2 is not an episode .*support is not \[way\]\[shot\]',
        ),
        (dict(support=[[1], [2]]), 'line 2 is not an episode .*video ids must be strings'),
        (
            dict(query=['class 00/0'], labels=[0]),
            'line 2 is 2-way 1-shot with 1 queries, line 1 is 2-way 1-shot with 2',
        ),
    ],
)
def test_a_wrong_list_says_what_is_wrong(dataset, tmp_path, changes, message):
    path = tmp_path / 'episodes.jsonl'
    path.write_text(lines(dataset, **changes))
    with pytest.raises(ValueError, match=message) as caught:
        lists.read_episodes(path, dataset)
    assert '\n' not in str(caught.value)


def test_absent_empty_and_malformed_lists(dataset, tmp_path):
    path = tmp_path / 'episodes.jsonl'
    with pytest.raises(
        FileNotFoundError, match='no episode list at .*: check config.eval.episodes_file'
    ):
        lists.read_episodes(path, dataset)
    path.write_text('')
    with pytest.raises(ValueError, match='holds no episodes'):
        lists.read_episodes(path, dataset)
    path.write_text('{"support": 3')
    with pytest.raises(ValueError, match='line 1 is not an episode'):
        lists.read_episodes(path, dataset)


def test_video_ids_must_be_unique(dataset, tmp_path):
    twice = MemoryVideos([6, 6], split='test')
    twice.video_ids[4] = twice.video_ids[2]
    with pytest.raises(ValueError, match="video id 'class 00/2' occurs twice in memory test"):
        lists.episodes_hash(twice, lists.draw_episodes(twice, 2, 1, 1, seed=0, count=1))


def test_a_byte_order_mark_blank_ends_and_windows_line_ends_are_no_errors(dataset, tmp_path):
    path = tmp_path / 'episodes.jsonl'
    text = lines(dataset)
    path.write_text(text)
    right = lists.read_episodes(path, dataset)
    for variant in (
        '\ufeff' + text,
        text + '\n',
        text + '\n\n \n',
        '\ufeff' + text.replace('\n', '\r\n') + '\r\n',
    ):
        path.write_bytes(variant.encode())
        assert_same(lists.read_episodes(path, dataset), right)


def as_line(text):
    """The second line of a list whose first is good."""
    return lambda dataset: lines(dataset).splitlines()[0] + '\n' + text


@pytest.mark.parametrize(
    'content, message',
    [
        (
            lambda dataset: lines(dataset, labels=[0, 2**32 + 1]),
            r'line 2 has a label outside 0\.\.1$',
        ),
        (lambda dataset: lines(dataset, labels=[0, -1]), r'line 2 has a label outside 0\.\.1$'),
        (lambda dataset: lines(dataset, labels=[0, 10**30]), r'line 2 has a label outside 0\.\.1$'),
        (
            lambda dataset: lines(dataset, labels=[0, 1.0]),
            'line 2 is not an episode .labels must be whole numbers',
        ),
        (
            lambda dataset: lines(dataset, labels=[0, True]),
            'line 2 is not an episode .labels must be whole numbers',
        ),
        (
            lambda dataset: lines(dataset, labels=[0, None]),
            'line 2 is not an episode .labels must be whole numbers',
        ),
        (
            lambda dataset: lines(dataset, labels=[0, float('nan')]),
            'line 2 is not an episode .labels must be whole numbers',
        ),
        (
            lambda dataset: lines(dataset, labels=[[0], [1]]),
            'line 2 is not an episode .labels must be whole numbers',
        ),
        (
            lambda dataset: lines(dataset, labels='01'),
            'line 2 is not an episode .it is not an object with the lists',
        ),
        (
            lambda dataset: lines(dataset, support=[['a'], ['b', 'c']]),
            r'line 2 is not an episode .support is not \[way\]\[shot\]',
        ),
        (
            lambda dataset: lines(dataset, support=[[['a']], [['b']]]),
            r'line 2 is not an episode .support is not \[way\]\[shot\]',
        ),
        (
            lambda dataset: lines(dataset, query=['a\x1b[2J\nerror: b', 'c']),
            r'names 2 clips .*: a\\x1b\[2J\\nerror: b, c$',
        ),
        (lambda dataset: lines(dataset, query=['\ud800', 'c']), r'names 2 clips .*: c, \\ud800$'),
        (lambda dataset: lines(dataset)[:-20], 'line 2 is not an episode .*column'),
        (as_line('[]'), 'line 2 is not an episode .it is not an object'),
        (
            as_line('{"support": [], "support": [], "query": [], "labels": []}'),
            'line 2 is not an episode .a key occurs twice',
        ),
        (as_line('[' * 200_000), 'line 2 is not an episode'),
        (
            as_line('{"support": ' + '[' * 900 + ']' * 900 + ', "query": [], "labels": []}'),
            'line 2 is not an episode',
        ),
        (as_line('{"labels": [' + '9' * 5000 + ']}'), 'line 2 is not an episode'),
        (as_line('\n' + '{}'), 'line 2 is empty'),
        (lambda dataset: lines(dataset).encode() + b'\n\x80\x04\x95', 'line 3 is not an episode'),
    ],
)
def test_every_damage_to_a_list_is_one_line_that_names_it(dataset, tmp_path, content, message):
    path = tmp_path / 'episodes.jsonl'
    written = content(dataset)
    path.write_bytes(written if isinstance(written, bytes) else written.encode())
    with pytest.raises(ValueError, match=message) as caught:
        lists.read_episodes(path, dataset)
    assert (
        str(caught.value).startswith(str(path))
        and str(caught.value).isprintable()
        and len(str(caught.value)) < 500
    )


def test_of_many_unknown_clips_ten_and_a_count_are_named(dataset, tmp_path):
    path = tmp_path / 'episodes.jsonl'
    with open(path, 'w') as file:
        for number in range(15_000):
            ids = [f'gone/{number}a', f'gone/{number}b']
            file.write(
                json.dumps(
                    {'support': [['class 00/0'], ['class 01/0']], 'query': ids, 'labels': [0, 1]}
                )
                + '\n'
            )
    with pytest.raises(
        ValueError, match='names 30000 clips that memory test does not have .* and 29,990 more$'
    ) as caught:
        lists.read_episodes(path, dataset)
    assert len(str(caught.value)) < 500


def test_what_is_no_file_is_refused_at_once(dataset, tmp_path):
    os.mkfifo(tmp_path / 'pipe')  # reading it would wait for ever
    (tmp_path / 'folder').mkdir()
    for name in ('pipe', 'folder'):
        with pytest.raises(ValueError, match=f'{name} is not a file: config.eval.episodes_file'):
            lists.read_episodes(tmp_path / name, dataset)
    (tmp_path / 'weights.pth').write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match='weights.pth line 1 is not an episode'):
        lists.read_episodes(tmp_path / 'weights.pth', dataset)


def test_a_list_that_cannot_be_written_leaves_the_old_one(dataset, tmp_path, monkeypatch):
    path = tmp_path / 'episodes.jsonl'
    path.write_text('old')
    monkeypatch.setattr(
        os, 'fsync', lambda file: (_ for _ in ()).throw(OSError(28, 'No space left on device'))
    )
    with pytest.raises(OSError, match='No space left'):
        lists.write_episodes(path, dataset, lists.draw_episodes(dataset, 2, 1, 1, seed=0, count=1))
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['episodes.jsonl']
