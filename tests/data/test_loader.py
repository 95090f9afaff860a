"""Batches: the right pixels, whatever the number of threads, workers, processes, or the step one
starts at."""

import mmap
import os
import pathlib
import re
import sys
import threading
import time
import types

import numpy as np
import pytest
from memory_videos import MemoryVideos, small_config

import fsar_jax.data
from fsar_jax import machine
from fsar_jax.data import episodes as lists
from fsar_jax.data import frames, loader
from fsar_jax.data.dataset import Videos
from fsar_jax.data.frame_sampling import frame_indices

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
KEYS = ('support', 'query', 'labels', 'classes', 'support_flip', 'query_flip', 'episode')


@pytest.fixture(scope='module')
def dataset():
    return MemoryVideos([5, 4, 6, 4])


def take(batches, count):
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def assert_same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b):
        assert set(left) == set(right)
        for key in left:
            np.testing.assert_array_equal(left[key], right[key], err_msg=key)


def flipped(batch, name):
    """What the device makes of a batch: clips whose flip bit is set are mirrored."""
    clips, flip = batch[name], batch[f'{name}_flip']
    return np.where(flip[..., None, None, None, None], clips[..., ::-1, :], clips)


def slow_view(dataset, position, config, rng):
    """The published order, frame by frame: every frame decoded, resized, then the clip flipped,
    then cropped."""
    clip = np.stack([frames.decode_jpeg(frame) for frame in dataset.read(position)['frames']])
    clip = frames.resize_short_side(clip, config.data.resize)
    clip = clip[frame_indices(len(clip), config.episode.frames, config.data.sampling, rng)]
    size, (height, width) = config.episode.image_size, clip.shape[1:3]
    x, y = round((width - size) / 2), round((height - size) / 2)
    if rng is not None and config.data.crop == 'random':
        x = int(rng.integers(0, width - size, endpoint=True))
        y = int(rng.integers(0, height - size, endpoint=True))
    if rng is not None and config.data.flip and rng.random() < 0.5:
        clip = clip[:, :, ::-1]
    return clip[:, y : y + size, x : x + size]


class Stored(Videos):
    """One video whose stored frames are given pixels: stands in for a lossless record."""

    name, split, class_names, video_ids = 'stored', 'train', ['a'], ['a/0']

    def __init__(self, clip):
        self.labels, self.num_frames = np.zeros(1, np.int32), np.array([len(clip)], np.int32)
        self.clip = clip

    def read(self, position):
        return {'frames': list(self.clip)}


class Draws:
    """Stands in for the generator of a clip's view: frames, crop x, crop y, flip, in this order."""

    def __init__(self, integers, random):
        self.next_integers, self.next_random = list(integers), random

    def integers(self, low, high, endpoint):
        assert endpoint and low <= self.next_integers[0] <= high
        return self.next_integers.pop(0)

    def random(self):
        assert not self.next_integers, 'the flip is drawn before the crop'
        return self.next_random


@pytest.mark.parametrize('case', ['test_uint8', 'train_flip', 'train_noflip'])
def test_pixels_equal_the_published_reader(case, monkeypatch):
    z = np.load(FIXTURES / 'pixels_84_a.npz')
    clip = z['in/frames']
    # The fixture starts after decoding.
    monkeypatch.setattr(frames, 'decode_jpeg', lambda frame: frame)
    config = small_config(
        episode__frames=len(clip), episode__image_size=84, data__resize=96, data__flip=True
    )
    clips, rng = loader.Clips(Stored(clip), config), None
    if case != 'test_uint8':
        x, y = z[f"in/crop_x_y_{case.removeprefix('train_')}"]
        rng = Draws([0, len(clip) - 1, x, y], random=0.1 if case == 'train_flip' else 0.9)
    out = clips.empty()
    flip = clips.read(0, out, rng)
    assert flip == (case == 'train_flip')
    out = out[:, :, ::-1] if flip else out
    np.testing.assert_array_equal(out.transpose(0, 3, 1, 2), z[f'out/{case}'])


@pytest.mark.parametrize(
    'resize, flip, crop', [(32, True, 'random'), (28, True, 'centre'), (36, False, 'random')]
)
def test_training_views_equal_the_slow_obvious_ones(dataset, resize, flip, crop):
    config = small_config(data__flip=flip, data__crop=crop, data__resize=resize)
    episode = config.episode
    seen = set()
    for step, batch in enumerate(take(loader.training_batches(dataset, config, 0), 2)):
        support, query = flipped(batch, 'support'), flipped(batch, 'query')
        for m in range(4):
            index = 4 * step + m
            assert batch['episode'][0, m] == index
            drawn = lists.draw_episode(
                dataset, episode.way, episode.shot, episode.query, config.seed, index
            )
            rng = lists.episode_generator(config.seed, 'train', index, lists.VIEWS)
            for ours, positions in (
                (support[0, m], drawn.support[0]),
                (query[0, m], drawn.query[0]),
            ):
                expected = [slow_view(dataset, p, config, rng) for p in positions.ravel()]
                np.testing.assert_array_equal(ours.reshape(-1, *ours.shape[-4:]), expected)
            np.testing.assert_array_equal(batch['labels'][0, m], drawn.labels[0])
        seen |= set(batch['support_flip'].ravel().tolist())
    assert seen == ({True, False} if flip else {False})


def test_shapes_types_and_layout(dataset):
    config = small_config(train__accumulation_steps=2)
    (batch,) = take(loader.training_batches(dataset, config, 0), 1)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        'support': ((2, 2, 3, 2, 4, 24, 24, 3), 'uint8'),
        'query': ((2, 2, 3, 4, 24, 24, 3), 'uint8'),
        'labels': ((2, 2, 3), 'int32'),
        'classes': ((2, 2, 3), 'int32'),
        'support_flip': ((2, 2, 3, 2), 'bool'),
        'query_flip': ((2, 2, 3), 'bool'),
        'episode': ((2, 2), 'int64'),
    }
    assert all(value.flags.c_contiguous for value in batch.values())


def test_training_classes_are_numbered_from_0_without_gaps():
    """A classifier has as many outputs as the split has classes, whatever their labels."""
    gaps = MemoryVideos([5, 0, 4, 0, 0, 6, 4])
    present = sorted(set(gaps.labels.tolist()))
    assert present == [0, 2, 5, 6]
    config, seen = small_config(), set()
    for batch in take(loader.training_batches(gaps, config, 0), 3):
        for m in range(4):
            drawn = lists.draw_episode(gaps, 3, 2, 1, config.seed, int(batch['episode'][0, m]))
            for row, number in enumerate(batch['classes'][0, m]):
                for position in drawn.support[0, row]:
                    assert present[number] == gaps.labels[position]
                seen.add(int(number))
            for label, position in zip(batch['labels'][0, m], drawn.query[0]):
                assert present[batch['classes'][0, m, label]] == gaps.labels[position]
    assert seen == {0, 1, 2, 3}


def test_augmentation_is_drawn_once_per_clip():
    still = MemoryVideos([5, 5, 5, 5], constant=True)
    (batch,) = take(loader.training_batches(still, small_config(data__flip=True), 0), 1)
    clips = flipped(batch, 'support')
    assert (clips == clips[..., :1, :, :, :]).all(), (
        'frames of a still clip differ: they were not augmented alike'
    )
    # ... and for each clip anew: the same video in different episodes is not always cut alike.
    offsets = {tuple(clip[0, 0, 0]) for clip in clips.reshape(-1, 4, 24, 24, 3)}
    assert len(offsets) > 12


def test_augmentation_does_not_choose_the_clips(dataset):
    plain = small_config(data__crop='centre', data__sampling='uniform')
    strong = small_config(data__flip=True, data__sampling='segment')
    first, second = (
        take(loader.training_batches(dataset, config, 0), 2) for config in (plain, strong)
    )
    for index in range(8):
        drawn = lists.draw_episode(dataset, 3, 2, 1, 3, index)
        expected = slow_view(dataset, drawn.support[0, 2, 1], plain, None)
        np.testing.assert_array_equal(first[index // 4]['support'][0, index % 4, 2, 1], expected)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a['episode'], b['episode'])
        assert (a['support'] != b['support']).any()


def test_threads_do_not_change_a_byte(dataset):
    one, two = (
        take(
            loader.training_batches(dataset, small_config(data__flip=True, data__num_threads=n), 0),
            3,
        )
        for n in (1, 2)
    )
    assert_same(one, two)


def test_worker_processes_do_not_change_a_byte(dataset):
    threads, worker = (
        take(
            loader.training_batches(dataset, small_config(data__flip=True, data__num_workers=n), 5),
            2,
        )
        for n in (0, 1)
    )
    assert_same(threads, worker)
    assert all(value.flags.c_contiguous for value in worker[0].values())


def test_starting_later_goes_on_exactly(dataset):
    whole = take(loader.training_batches(dataset, small_config(data__flip=True), 0), 5)
    for start in (1, 3):
        assert_same(
            take(loader.training_batches(dataset, small_config(data__flip=True), start), 5 - start),
            whole[start:],
        )


@pytest.mark.parametrize('parts', [1, 2])
def test_two_processes_make_the_batch_of_one(dataset, parts):
    config = small_config(data__flip=True, train__accumulation_steps=parts)
    whole = take(loader.training_batches(dataset, config, 2), 2)
    halves = [
        take(loader.training_batches(dataset, config, 2, process, 2), 2) for process in (0, 1)
    ]
    joined = [
        {key: np.concatenate([left[key], right[key]], axis=1) for key in KEYS}
        for left, right in zip(*halves)
    ]
    assert_same(joined, whole)
    assert whole[0]['episode'].ravel().tolist() == [8, 9, 10, 11]


def test_accumulation_regroups_the_same_episodes(dataset):
    (whole,) = take(loader.training_batches(dataset, small_config(), 1), 1)
    (parts,) = take(
        loader.training_batches(dataset, small_config(train__accumulation_steps=4), 1), 1
    )
    assert_same(
        [{key: value.reshape(1, 4, *value.shape[2:]) for key, value in parts.items()}], [whole]
    )


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_video_batches_are_the_test_views_in_order(dataset, workers):
    config = small_config(data__flip=True, data__num_workers=workers, data__resize=28)
    positions = np.array([7, 0, 7, 18, 3])
    batches = list(loader.video_batches(dataset, config, positions, batch_size=2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(
        np.concatenate(batches), [slow_view(dataset, p, config, None) for p in positions]
    )


def test_episode_batches_are_the_test_views_of_a_list(dataset):
    config = small_config(data__flip=True)
    episodes = lists.draw_episodes(dataset, 3, 2, 1, seed=0, count=3)
    batches = list(loader.episode_batches(dataset, config, episodes, batch_size=2))
    assert [len(batch['support']) for batch in batches] == [2, 1]
    np.testing.assert_array_equal(
        np.concatenate([batch['labels'] for batch in batches]), episodes.labels
    )
    for name, positions in (('support', episodes.support), ('query', episodes.query)):
        ours = np.concatenate([batch[name] for batch in batches])
        assert ours.shape == (*positions.shape, 4, 24, 24, 3)
        expected = [slow_view(dataset, p, config, None) for p in positions.ravel()]
        np.testing.assert_array_equal(ours.reshape(-1, 4, 24, 24, 3), expected)


def test_jitter_at_test_is_drawn_once_for_each_clip(dataset):
    fixed = small_config(data__flip=True)
    jittered, other = (fixed.copy_and_resolve_references().unlock() for _ in range(2))
    jittered.eval, other.eval = {'seed': 5}, {'seed': 6}
    jittered.data.test_jitter = other.data.test_jitter = True
    positions = np.array([7, 0, 18, 7, 3])
    views = lambda config: np.concatenate(
        list(loader.video_batches(dataset, config, positions, batch_size=2))
    )
    ours = views(jittered)
    for position, view in zip(positions, ours, strict=True):
        rng = lists.named_generator(5, 'train', dataset.video_ids[position], lists.TEST_FRAMES)
        chosen = frame_indices(int(dataset.num_frames[position]), 4, 'trx', rng)
        # Centre crop and no flip, whatever draws the frames.
        whole = slow_view(dataset, position, small_config(episode__frames=12), None)
        np.testing.assert_array_equal(view, whole[chosen])
    np.testing.assert_array_equal(ours[0], ours[3])
    assert (ours != views(fixed)).any((1, 2, 3, 4)).sum() >= 3
    assert (ours != views(other)).any((1, 2, 3, 4)).sum() >= 3
    episodes = lists.draw_episodes(dataset, 3, 2, 1, seed=0, count=2)
    (batch,) = loader.episode_batches(dataset, jittered, episodes, batch_size=2)
    flat = episodes.query.ravel()
    alone = np.concatenate(list(loader.video_batches(dataset, jittered, flat, batch_size=8)))
    np.testing.assert_array_equal(batch['query'].reshape(alone.shape), alone)


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_training_episodes_with_queries_of_one_class(dataset, workers):
    config = small_config(data__num_workers=workers)
    with config.unlocked():
        config.episode.query_classes = 1
    (batch,) = take(loader.training_batches(dataset, config, 0), 1)
    (usual,) = take(loader.training_batches(dataset, small_config(), 0), 1)
    assert batch['query'].shape[:3] == (1, 4, 1) and batch['labels'].shape == (1, 4, 1)
    np.testing.assert_array_equal(batch['support'], usual['support'])
    np.testing.assert_array_equal(batch['classes'], usual['classes'])


def test_only_the_sampled_frames_are_decoded(monkeypatch):
    # Threads of an earlier test may still read frames of theirs.
    dataset = MemoryVideos([2], names=['read here alone'])
    own = {frame for video in (0, 1) for frame in dataset.read(video)['frames']}
    decode, decoded = frames.decode_jpeg, []
    monkeypatch.setattr(frames, 'decode_jpeg', lambda data: decoded.append(data) or decode(data))
    list(loader.video_batches(dataset, small_config(), [0, 1], batch_size=2))
    decoded = [data for data in decoded if data in own]
    assert len(decoded) == 8, 'two clips of four sampled frames each'


def test_usable_drops_short_clips_and_counts_them():
    dataset = MemoryVideos(
        [4, 4, 4], num_frames=lambda c, k: 3 if (c, k) in ((0, 1), (2, 3)) else 8
    )
    view = loader.usable(dataset, small_config())
    assert len(view) == 10 and view.dropped.tolist() == [0, 2]
    assert view.video_ids == [v for v in dataset.video_ids if v not in ('class 00/1', 'class 02/3')]
    assert [view.read(i)['video_id'] for i in range(10)] == view.video_ids
    assert view.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2] and (view.num_frames == 8).all()
    assert loader.usable(view, small_config()) is view
    assert len(loader.usable(dataset, small_config(data__short_videos='repeat'))) == 12


def test_training_uses_no_dropped_clip_and_repeat_uses_them():
    dataset = MemoryVideos([4, 4, 4], num_frames=lambda c, k: 2 if k == 0 else 8)
    read = dataset.read
    seen = []
    dataset.read = lambda position: seen.append(position) or read(position)
    take(loader.training_batches(dataset, small_config(), 0), 3)
    assert seen and not {0, 4, 8} & set(seen)
    config = small_config(data__short_videos='repeat')
    (batch,) = loader.video_batches(dataset, config, [4], batch_size=1)
    np.testing.assert_array_equal(batch[0][0], batch[0][1])
    assert (batch[0][1] != batch[0][2]).any()


def test_short_clips_are_never_used_by_accident():
    dataset = MemoryVideos([4, 4], num_frames=lambda c, k: 3 if c == 1 else 8)
    with pytest.raises(
        ValueError,
        match="video 'class 01/0' of memory train has 3 frames, fewer than "
        "config.episode.frames=4: take",
    ):
        loader.video_batches(dataset, small_config(), [0, 4], batch_size=2)
    with pytest.raises(
        ValueError, match='none of the 4 videos of memory train has config.episode.frames=4 frames'
    ):
        loader.usable(MemoryVideos([2, 2], num_frames=3), small_config())


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(episode__image_size=33),
            'config.episode.image_size=33 is larger than the short side of the frames, '
            'config.data.resize=32',
        ),
        (
            dict(train__accumulation_steps=3),
            'config.train.episodes_per_step=4 must be a multiple of '
            'config.train.accumulation_steps=3 x 1',
        ),
        (dict(episode__way=5), '5-way episodes need 5'),
        (dict(episode__query=3), "class 'class 01' of memory train has 4 clips"),
        (dict(data__sampling='dense'), "config.data.sampling='dense' is not one of"),
        (dict(data__crop='corner'), "config.data.crop='corner' is not one of 'random', 'centre'"),
        (
            dict(data__short_videos='pad'),
            "config.data.short_videos='pad' is not one of 'drop', 'repeat'",
        ),
    ],
)
def test_a_wrong_config_is_an_error_at_start_not_at_the_first_batch(dataset, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        loader.training_batches(dataset, small_config(**changes), 0)
    assert '\n' not in str(caught.value)


def test_positions_outside_the_dataset_are_an_error(dataset):
    with pytest.raises(
        ValueError, match=r'positions 0\.\.19 are outside the 19 videos of memory train'
    ):
        loader.video_batches(dataset, small_config(), [0, 19], batch_size=2)


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_record_names_the_video(workers):
    dataset = Damaged([3, 3])
    with pytest.raises(
        ValueError,
        match="video 'class 00/1' of memory train: a frame of 20 bytes is not a readable JPEG",
    ):
        list(
            loader.video_batches(
                dataset, small_config(data__num_workers=workers), [0, 1], batch_size=2
            )
        )


class Damaged(MemoryVideos):
    def read(self, position):
        record = super().read(position)
        return (
            record | {'frames': [frame[:20] for frame in record['frames']]}
            if position == 1
            else record
        )


def test_a_record_that_contradicts_the_metadata_is_an_error(dataset):
    short = MemoryVideos([3, 3])
    short.num_frames = short.num_frames + 1
    short.read = lambda position: {'frames': dataset.read(position)['frames']}
    with pytest.raises(
        ValueError,
        match="video 'class 00/0' .* record holds 12 frames, the metadata says 13: build the "
        "dataset again",
    ):
        list(loader.video_batches(short, small_config(), [0], batch_size=1))


def free_shared_memory(monkeypatch, free, platform='linux', may_be_written=True):
    """As on a machine with `free` bytes left in /dev/shm; None: there is no /dev/shm."""

    def statvfs(path):
        assert path == '/dev/shm'
        if free is None:
            raise FileNotFoundError(2, 'No such file or directory', path)
        return types.SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)

    monkeypatch.setattr(os, 'statvfs', statvfs)
    monkeypatch.setattr(os, 'access', lambda path, mode: may_be_written)
    monkeypatch.setattr(sys, 'platform', platform)


def test_too_little_shared_memory_is_an_error_before_a_worker_starts(dataset, monkeypatch):
    config = small_config(data__num_workers=2, data__prefetch=2)
    # 9 clips of 4 frames of 24 px, and some small arrays.
    each = 9 * 4 * 24 * 24 * 3 + 8 * mmap.PAGESIZE
    needed = (2 * (2 * 4 + 2) + 1) * each  # 8 episodes ahead are 4 per worker
    free_shared_memory(monkeypatch, needed - 1)
    with pytest.raises(
        ValueError,
        match=r'config.data.num_workers=2 with config.data.prefetch=2 keeps up to 1.9 MiB in '
        r'/dev/shm, '
        r'which has 1.9 MiB free: set config.data.num_workers=0 .*--shm-size=1g',
    ) as caught:
        loader.training_batches(dataset, config, 0)
    assert '\n' not in str(caught.value)
    loader.training_batches(dataset, small_config(), 0).close()  # threads need none
    # Nor do more than all elements.
    loader.video_batches(dataset, config, [0, 1, 2], batch_size=64).close()
    free_shared_memory(monkeypatch, -(-needed // 4096) * 4096)
    loader.training_batches(dataset, config, 0).close()
    with config.unlocked():
        config.eval = dict(val_episodes=5, cache=True, videos_per_batch=6, query=1)
    # Validation runs while training waits.
    clips = (2 * (2 * 6 + 2) + 1) * (4 * 24 * 24 * 3 + 8 * mmap.PAGESIZE)
    with pytest.raises(ValueError, match='keeps up to 3.0 MiB'):
        loader.training_batches(dataset, config, 0)
    free_shared_memory(monkeypatch, -(-(needed + clips) // 4096) * 4096)
    loader.training_batches(dataset, config, 0).close()
    free_shared_memory(monkeypatch, 1 << 40, may_be_written=False)
    with pytest.raises(
        ValueError, match='config.data.num_workers=2 needs /dev/shm, which may not be written'
    ):
        loader.training_batches(dataset, config, 0)
    free_shared_memory(monkeypatch, None)
    with pytest.raises(
        ValueError, match='config.data.num_workers=2 needs /dev/shm, which is not there'
    ):
        loader.training_batches(dataset, config, 0)
    free_shared_memory(monkeypatch, None, platform='darwin')  # has shared memory elsewhere
    loader.training_batches(dataset, config, 0).close()


@pytest.mark.parametrize(
    'code, why',
    [
        (-7, r'exit code -7 \(SIGBUS\): /dev/shm is full; set config.data.num_workers=0'),
        (-9, r'exit code -9 \(SIGKILL\), as when memory runs out'),
        (-11, r'exit code -11 \(SIGSEGV\): see what it printed above'),
        (3, 'exit code 3: see'),
    ],
)
@pytest.mark.skipif(sys.platform != 'linux', reason='numbers of signals')
def test_a_worker_that_dies_is_one_line(dataset, monkeypatch, code, why):
    def dies(*args):
        raise RuntimeError(
            f'Worker process was terminated unexpectedly with exit code {code}. Search the logs '
            'above for the source.'
        )
        yield

    monkeypatch.setattr(
        loader.grain,
        'MapDataset',
        types.SimpleNamespace(
            source=lambda source: types.SimpleNamespace(
                to_iter_dataset=lambda options: types.SimpleNamespace(
                    mp_prefetch=lambda *args, **kwargs: dies()
                )
            )
        ),
    )
    with pytest.raises(OSError, match=why) as caught:
        next(loader.training_batches(dataset, small_config(data__num_workers=1), 0))
    assert '\n' not in str(caught.value)


def test_without_what_only_linux_has_the_same_is_read(dataset, monkeypatch):
    right = take(loader.training_batches(dataset, small_config(data__num_threads=0), 0), 2)
    free_shared_memory(monkeypatch, None, platform='darwin')
    monkeypatch.setattr(
        machine.ctypes,
        'CDLL',
        lambda name: (_ for _ in ()).throw(OSError(f'dlopen({name}): no such file')),
    )
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    for a, b in zip(
        take(loader.training_batches(dataset, small_config(data__num_threads=0), 0), 2), right
    ):
        assert_same([a], [b])


def test_closing_ends_the_threads(dataset):
    def running():
        return [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith('grain-prefetch') and thread.is_alive()
        ]

    before = set(running())
    batches = loader.training_batches(dataset, small_config(), 0)
    next(batches)
    assert set(running()) - before
    batches.close()
    for thread in set(running()) - before:
        thread.join(timeout=10)
    assert not set(running()) - before
    with pytest.raises(StopIteration):
        next(batches)


def test_reading_continues_while_the_caller_is_busy(dataset):
    read, seen = dataset.read, []
    busy = MemoryVideos([5, 4, 6, 4])
    busy.read = lambda position: seen.append(position) or read(position)
    batches = loader.training_batches(busy, small_config(data__prefetch=2), 0)
    next(batches)
    ahead = 3 * 4 * 9  # this batch and two more, four episodes each, nine clips each
    deadline = time.monotonic() + 10
    while len(seen) < ahead and time.monotonic() < deadline:
        time.sleep(0.01)
    batches.close()
    assert len(seen) == ahead


def test_the_data_modules_do_not_import_jax():
    package = pathlib.Path(fsar_jax.__file__).parent
    wrong = [
        path.name
        for path in (*package.glob('data/*.py'), *package.glob('ingest/*.py'))
        if re.search(
            r'^\s*(import|from) (jax|flax|optax|fsar_jax\.(learner|training|weights))\b',
            path.read_text(),
            re.M,
        )
    ]
    assert not wrong, (
        'these run in loader workers, where jax costs a second and may claim the device'
    )
