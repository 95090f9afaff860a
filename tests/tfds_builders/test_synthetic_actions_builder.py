"""Rendered clips through real files into records, with the truth that belongs to them."""

import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fsar_jax import build
from fsar_jax.data.dataset import open_dataset
from fsar_jax.data.frames import decode_jpeg
from tfds_builders.synthetic_actions import motions, renderer
from tfds_builders.synthetic_actions.synthetic_actions_dataset_builder import (
    Builder,
    SyntheticActionsConfig,
)

REPOSITORY = pathlib.Path(build.__file__).parents[1]
SMALL = ('--size=32', '--num_frames=10')


def run(data_dir, *flags, config='misaligned', processes=0):
    return build.build(
        build.parse(
            [
                f'--dataset=synthetic_actions/{config}',
                f'--dir={data_dir}',
                f'--processes={processes}',
                *flags,
            ]
        )
    )


def records_of(directory):
    """Bytes of everything in a dataset directory."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp('data')
    run(data_dir, *SMALL, '--clips_per_class=2')
    return data_dir


def test_the_splits_are_those_of_the_public_benchmarks(small):
    seen = []
    for split, classes in (('train', 64), ('val', 12), ('test', 24)):
        dataset = open_dataset('synthetic_actions/misaligned', small, split)
        assert dataset.class_names == list(motions.CLASSES)
        names = [dataset.class_names[label] for label in dataset.labels]
        assert sorted(set(names)) == sorted(motions.SPLITS[split]) and len(set(names)) == classes
        assert len(dataset) == 2 * classes and all(names.count(name) == 2 for name in set(names))
        assert [video_id.rsplit('/', 1)[0] for video_id in dataset.video_ids] == names
        seen += dataset.video_ids
    assert len(set(seen)) == 200


def test_records_are_the_rendered_clips(small):
    """Chroma at half resolution is most of what is lost: the brightness is nearly unchanged."""
    dataset = open_dataset('synthetic_actions/misaligned', small, 'test')
    settings = renderer.ClipSettings(32, 10, 12, 'misaligned')
    to_grey, differences = np.array([0.299, 0.587, 0.114]), []
    for position in range(0, len(dataset), 5):
        record = dataset.read(position)
        label = int(record['label'])
        name, number = record['video_id'].rsplit('/', 1)
        assert motions.CLASSES[label] == name
        clip = renderer.render_clip(name, (0, label, int(number)), settings)
        stored = np.stack([decode_jpeg(frame) for frame in record['frames']])
        assert (
            stored.shape == clip.frames.shape
            and record['fps'] == 12
            and record['decode_errors'] == 0
        )
        differences.append(np.abs(stored @ to_grey - clip.frames @ to_grey).mean())
        assert (record['action_start'], record['action_end']) == (
            clip.action_start,
            clip.action_end,
        )
        np.testing.assert_array_equal(record['boxes'], clip.boxes)
    assert np.mean(differences) < 2 and np.max(differences) < 4


def test_the_truth_follows_dropped_and_resized_frames():
    source_settings = renderer.ClipSettings(64, 32, 12, 'untrimmed')
    make = Builder(
        config=SyntheticActionsConfig(name='untrimmed', max_frames=8, short_side=32),
        data_dir='unused',
    ).record_maker()
    from_list = Builder(config='untrimmed', data_dir='unused').list_videos().splits['test']
    for source in from_list[::97]:
        record = make(source)
        clip = renderer.render_clip(*source.origin, source_settings)
        kept = record['frame_index']
        assert record['num_frames'] == len(kept) == 8 and (
            record['width'],
            record['source_frames'],
        ) == (32, 32)
        inside = [
            i for i, place in enumerate(kept) if clip.action_start <= place <= clip.action_end
        ]
        assert (record['action_start'], record['action_end']) == (inside[0], inside[-1])
        np.testing.assert_allclose(record['boxes'], clip.boxes[kept] / 2)


@pytest.mark.slow
def test_one_process_or_two_the_bytes_are_the_same(small, tmp_path):
    directory = run(tmp_path, *SMALL, '--clips_per_class=2', processes=2)
    assert records_of(directory) == records_of(small / 'synthetic_actions' / 'misaligned' / '1.0.0')


@pytest.mark.slow
def test_the_seed_and_the_config_change_the_clips(small, tmp_path):
    original = open_dataset('synthetic_actions/misaligned', small, 'val').read(0)['frames']
    run(tmp_path, *SMALL, '--clips_per_class=1', '--seed=1')
    run(tmp_path, *SMALL, '--clips_per_class=1', config='aligned')
    assert (
        open_dataset('synthetic_actions/misaligned', tmp_path, 'val').read(0)['frames'] != original
    )
    assert open_dataset('synthetic_actions/aligned', tmp_path, 'val').read(0)['frames'] != original


def test_what_is_built_is_not_built_again(small, capsys):
    directory = run(small, *SMALL, '--clips_per_class=2')
    assert f'synthetic_actions/misaligned is built already: {directory}' in capsys.readouterr().out
    with pytest.raises(ValueError, match='clips_per_class is 2, asked for 40'):
        run(small, *SMALL)


@pytest.mark.slow
def test_no_tensorflow_in_a_build_and_a_read(tmp_path):
    program = f"""
import sys
from fsar_jax import build
from fsar_jax.data.dataset import open_dataset
build.main()
open_dataset('synthetic_actions/shifted', {str(tmp_path)!r}, 'train').read(0)
assert 'tensorflow' not in sys.modules, 'tensorflow was imported'
"""
    flags = (
        '--dataset=synthetic_actions/shifted',
        f'--dir={tmp_path}',
        '--processes=0',
        '--clips_per_class=1',
        *SMALL,
    )
    done = subprocess.run(
        [sys.executable, '-c', program, *flags],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert 'train    64 classes      64 videos, 10 to 10 frames' in done.stdout


def children(pid):
    return [
        int(child)
        for task in pathlib.Path(f'/proc/{pid}/task').iterdir()
        for child in (task / 'children').read_text().split()
    ]


def is_running(pid):
    """Not gone, and not a zombie that nobody waits for, as in a container without an init."""
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(') ')[2][0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks at /proc')
def test_a_killed_build_leaves_no_process_and_is_done_again(tmp_path):
    flags = ['--dataset=synthetic_actions/misaligned', f'--dir={tmp_path}', *SMALL]
    process = subprocess.Popen(
        [sys.executable, '-m', 'fsar_jax.build', *flags, '--clips_per_class=200', '--processes=1'],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder = tmp_path / 'synthetic_actions' / 'misaligned'
    deadline = time.monotonic() + 60
    while not list(folder.rglob('*.array_record*')):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers and (folder / 'incomplete').exists()
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, 'workers outlive the build'
        time.sleep(0.05)
    run(tmp_path, *SMALL, '--clips_per_class=1')
    assert sorted(path.name for path in folder.iterdir()) == ['.lock', '1.0.0']
    assert len(open_dataset('synthetic_actions/misaligned', tmp_path, 'train')) == 64
