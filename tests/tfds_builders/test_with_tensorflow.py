"""What TFDS does only with TensorFlow: `tfds build` in a builder's folder, tfds.load, tf.data.

fsar_jax does not depend on TensorFlow, so the suite's environment has none and these are skipped.
CONTRIBUTING.md says how they are run.
"""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_run import REPOSITORY, write_tiny_clips

import tfds_builders  # noqa: F401  registers the builders
from fsar_jax import build, verify
from fsar_jax.data.dataset import open_dataset
from fsar_jax.data.frames_feature import TakeFrames

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec('tensorflow') is None,
        reason='TensorFlow is not installed; CONTRIBUTING.md says how to run this',
    ),
]


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clips')
    write_tiny_clips(folder)
    return folder


@pytest.fixture(scope='module')
def tf_data(clips, tmp_path_factory):
    """A data directory with video_folder/tiny as TFRecord."""
    data_dir = tmp_path_factory.mktemp('tf_data')
    args = ['--dataset=video_folder/tiny', f'--videos={clips}', f'--dir={data_dir}']
    build.build(build.parse([*args, '--file_format=tfrecord', '--short_side=32', '--processes=0']))
    return data_dir


def tfds_build(folder, *flags):
    """`tfds build` typed inside a builder's folder."""
    done = subprocess.run(
        [sys.executable, '-m', 'tensorflow_datasets.scripts.cli.main', 'build', *flags],
        cwd=REPOSITORY / 'tfds_builders' / folder,
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY), 'CUDA_VISIBLE_DEVICES': ''},
        text=True,
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_tfds_build_in_the_folder_of_the_synthetic_actions(tmp_path):
    config = {'name': 'aligned', 'clips_per_class': 1, 'num_frames': 8, 'size': 32}
    tfds_build('synthetic_actions', f'--data_dir={tmp_path}', f'--config={json.dumps(config)}')
    name = 'synthetic_actions/aligned'
    assert sum(len(open_dataset(name, tmp_path, s)) for s in ('train', 'val', 'test')) == 100
    assert verify.examine(name, tmp_path)[1]
    args = [f'--dataset={name}', f'--dir={tmp_path / "ours"}', '--clips_per_class=1']
    directory = build.build(build.parse([*args, '--num_frames=8', '--size=32']))
    for path in directory.glob('*.array_record*'):
        assert path.read_bytes() == (tmp_path / name / '1.0.0' / path.name).read_bytes()


def test_tfds_build_of_a_folder_of_clips(clips, tmp_path):
    flags = [f'--data_dir={tmp_path}', f'--manual_dir={clips}', '--config=mine']
    tfds_build('video_folder', *flags)
    assert len(open_dataset('video_folder/mine', tmp_path, 'test'))
    assert verify.examine('video_folder/mine', tmp_path)[1]
    flags = ['--overwrite', '--file_format=tfrecord', '--max_examples_per_split=1']
    tfds_build('video_folder', f'--data_dir={tmp_path / "tf"}', f'--manual_dir={clips}', *flags)
    loaded = tfds.load('video_folder', split='train', data_dir=tmp_path / 'tf', download=False)
    assert len(loaded) == 1


def test_tfds_load_gives_the_pixels_of_the_data_source(tf_data, tiny_data):
    loaded, info = tfds.load('video_folder/tiny', split='test', data_dir=tf_data, with_info=True)
    ours = tfds.data_source('video_folder/tiny', split='test', data_dir=tiny_data)
    assert loaded.element_spec['frames'].shape.as_list() == [None, None, None, 3]
    examples = list(loaded.as_numpy_iterator())
    assert len(examples) == len(ours) == info.splits['test'].num_examples
    for example, expected in zip(examples, ours):
        assert example.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(example[key], value, err_msg=key)
    frames, label = next(
        iter(
            tfds.load('video_folder/tiny', split='test', data_dir=tf_data, as_supervised=True)
            .batch(2)
            .as_numpy_iterator()
        )
    )
    np.testing.assert_array_equal(frames, [ours[0]['frames'], ours[1]['frames']])
    assert label.tolist() == [ours[0]['label'], ours[1]['label']]


def test_decoders_of_tfds_load(tf_data, tiny_data):
    ours = tfds.data_source('video_folder/tiny', split='test', data_dir=tiny_data)[0]['frames']
    record = open_dataset('video_folder/tiny', tiny_data, 'test').read(0)
    load = lambda decoders: next(
        iter(
            tfds.load(
                'video_folder/tiny', split='test', data_dir=tf_data, decoders=decoders
            ).as_numpy_iterator()
        )
    )
    skipped = load({'frames': tfds.decode.SkipDecoding()})
    assert skipped['frames'].tolist() == record['frames']
    for which in (3, [0, -1], slice(1, 6, 2), lambda n: [n - 2]):
        taken = TakeFrames(which)
        np.testing.assert_array_equal(
            load({'frames': taken})['frames'], ours[taken.indices(len(ours))]
        )
    few = load(
        tfds.decode.PartialDecoding(
            {'frames': True, 'label': True}, decoders={'frames': tfds.decode.SkipDecoding()}
        )
    )
    assert few.keys() == {'frames', 'label'} and few['frames'].tolist() == record['frames']


def test_tfds_load_builds(clips, tmp_path):
    loaded = tfds.load(
        'video_folder/new',
        data_dir=tmp_path,
        builder_kwargs={'file_format': 'tfrecord', 'videos': clips, 'processes': 0},
    )
    assert loaded.keys() == {'train', 'val', 'test'}
    assert next(iter(loaded['val']))['frames'].dtype.name == 'uint8'


def test_builder_from_directory_as_dataset(tf_data):
    builder = tfds.builder_from_directory(tf_data / 'video_folder' / 'tiny' / '1.0.0')
    example = next(builder.as_dataset(split='val').as_numpy_iterator())
    assert example['frames'].ndim == 4 and example['frames'].dtype == np.uint8


def test_what_tfrecord_is_not_for_is_said(tf_data, clips):
    with pytest.raises(ValueError, match='holds tfrecord files, which tfds.load reads'):
        open_dataset('video_folder/tiny', tf_data, 'test')
    args = ['--dataset=video_folder/tiny', f'--videos={clips}', f'--dir={tf_data}']
    with pytest.raises(ValueError, match='file_format is tfrecord, asked for array_record'):
        build.build(build.parse([*args, '--short_side=32']))
