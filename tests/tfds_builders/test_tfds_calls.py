"""What users of TFDS type, without TensorFlow: builders by name, data sources, decoders. Only the
documented calls of TFDS. Those that need TensorFlow are in test_with_tensorflow.py."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_run import REPOSITORY, write_tiny_clips

from fsar_jax import build, verify
from fsar_jax.checksums import write_sums
from fsar_jax.data.dataset import open_dataset
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.data.frames import decode_jpeg, encode_jpeg
from fsar_jax.data.frames_feature import Frames, TakeFrames
from fsar_jax.ingest import workers

NAMES = {
    'activitynet100',
    'hmdb51_arn',
    'kinetics100_cmn',
    'ssv2_full_otam',
    'ssv2_small_cmn',
    'synthetic_actions',
    'ucf101_arn',
    'video_folder',
}


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp('clips')
    write_tiny_clips(folder)
    return folder


@pytest.fixture(scope='module')
def old_data(tiny_data, tmp_path_factory):
    """video_folder/tiny as older versions built it: other features, the same records."""
    data_dir = tmp_path_factory.mktemp('old')
    shutil.copytree(tiny_data / 'video_folder' / 'tiny', data_dir / 'video_folder' / 'tiny')
    directory = data_dir / 'video_folder' / 'tiny' / '1.0.0'
    described = json.loads((directory / 'features.json').read_text())
    features = described['featuresDict']['features']
    of = 'tensorflow_datasets.core.features'
    features['frames'] = {
        'pythonClassName': f'{of}.sequence_feature.Sequence',
        'sequence': {
            'feature': {'pythonClassName': f'{of}.text_feature.Text', 'text': {}},
            'length': '-1',
        },
    }
    del features['decode_errors']  # the first versions did not count them
    (directory / 'features.json').write_text(json.dumps(described))
    write_sums(directory)
    return data_dir


@pytest.mark.parametrize('module', ('tfds_builders', 'tfds_builders.video_folder'))
def test_importing_registers(module):
    code = (
        f'import sys, {module}, tensorflow_datasets as tfds\n'
        f'assert {NAMES!r} <= set(tfds.list_builders(with_community_datasets=False))\n'
        'assert tfds.builder_cls("video_folder").name == "video_folder"\n'
        'assert not {"tensorflow", "jax"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, check=True)


def test_a_built_dataset_by_its_name(tiny_data):
    importlib.import_module('tfds_builders')
    builder = tfds.builder('video_folder/tiny', data_dir=tiny_data)
    builder.download_and_prepare()  # nothing is left to do
    ours = open_dataset('video_folder/tiny', tiny_data, 'train')
    source = builder.as_data_source('train')
    assert len(source) == len(ours) == builder.info.splits['train'].num_examples
    example, record = source[3], ours.read(3)
    assert example['frames'].dtype == np.uint8
    assert example['frames'].shape == (8, record['height'], record['width'], 3)
    for frame, data in zip(example['frames'], record['frames'], strict=True):
        np.testing.assert_array_equal(frame, decode_jpeg(data))
    assert example['video_id'].decode() == record['video_id']
    assert (
        builder.info.features['label'].int2str(example['label'])
        == ours.class_names[record['label']]
    )
    assert builder.info.features['frames'].shape == (None, None, None, 3)
    assert builder.info.features['frames'].np_dtype == np.uint8
    assert builder.info.supervised_keys == ('frames', 'label')


def test_the_other_ways_to_a_built_dataset(tiny_data):
    by_name = tfds.builder('video_folder/tiny', data_dir=tiny_data)
    expected = by_name.as_data_source('val')[0]['frames']
    for source in (
        tfds.data_source('video_folder/tiny', split='val', data_dir=tiny_data),
        tfds.data_source('video_folder/tiny', data_dir=tiny_data)['val'],
        tfds.builder('video_folder/tiny:1.0.0', data_dir=tiny_data).as_data_source('val'),
        tfds.builder_from_directory(by_name.data_path).as_data_source('val'),
        tfds.builder_from_directory(by_name.data_path).as_data_source('val[:50%]'),
    ):
        np.testing.assert_array_equal(source[0]['frames'], expected)


def test_decoders_keep_bytes_or_take_frames(tiny_data):
    builder = tfds.builder('video_folder/tiny', data_dir=tiny_data)
    ours = open_dataset('video_folder/tiny', tiny_data, 'test')
    data, frames = ours.read(1)['frames'], builder.as_data_source('test')[1]['frames']
    read = lambda decoder: builder.as_data_source('test', decoders={'frames': decoder})[1]['frames']
    assert list(read(tfds.decode.SkipDecoding())) == data
    np.testing.assert_array_equal(read(TakeFrames([4, 0, -1])), frames[[4, 0, -1]])
    np.testing.assert_array_equal(read(TakeFrames(slice(None, None, 3))), frames[::3])
    np.testing.assert_array_equal(read(TakeFrames(lambda n: [n // 2])), frames[[4]])
    for count in (1, 4, 8, 20):
        np.testing.assert_array_equal(
            read(TakeFrames(count)), frames[frame_indices(8, count, 'uniform')]
        )
    with pytest.raises(IndexError):
        read(TakeFrames([12]))
    with pytest.raises(ValueError, match='take at least 1 frame'):
        TakeFrames(0)

    @tfds.decode.make_decoder()
    def last(example, feature):
        return feature.decode_example_np(example[-1:])

    np.testing.assert_array_equal(read(last()), frames[-1:])


def test_take_frames_takes_what_numpy_takes():
    mask = lambda n: np.arange(n) % 2 == 0
    for which, expected in (
        (np.int64(2), [0, 7]),
        (slice(1, 6, 2), [1, 3, 5]),
        (np.array([3, 1], np.uint8), [3, 1]),
        (mask, [0, 2, 4, 6]),
        (mask(8).tolist(), [0, 2, 4, 6]),
        ([], []),
    ):
        assert TakeFrames(which).indices(8).tolist() == expected
    for wrong in (0, np.int64(0), '8', [1.7], 2.0, [[1]]):
        with pytest.raises(ValueError, match='TakeFrames'):
            TakeFrames(wrong)
    with pytest.raises(ValueError, match='a list of indices, not'):
        TakeFrames(lambda n: [0.5]).indices(8)


@pytest.mark.parametrize('build_of', ('tiny_data', 'old_data'))
def test_partial_decoding(build_of, request):
    builder = tfds.builder('video_folder/tiny', data_dir=request.getfixturevalue(build_of))
    whole = builder.as_data_source('test')[1]
    few = builder.as_data_source(
        'test',
        decoders=tfds.decode.PartialDecoding(
            {'label': True, 'frames': True, 'fps': False},
            decoders={'frames': tfds.decode.SkipDecoding()},
        ),
    )
    assert len(few) == len(builder.as_data_source('test')) == len(list(few))
    assert few[1].keys() == {'label', 'frames'} and few[1]['label'] == whole['label']
    np.testing.assert_array_equal(decode_jpeg(few[1]['frames'][2]), whole['frames'][2])
    assert few.__getitems__([1, 0])[0]['label'] == whole['label']
    every = builder.as_data_source(decoders=tfds.decode.PartialDecoding(['video_id']))
    assert every['test'][1] == {'video_id': whole['video_id']}
    with pytest.raises(ValueError, match="names 'labels': records have"):
        builder.as_data_source('test', decoders=tfds.decode.PartialDecoding(['labels']))


def test_datasets_of_older_versions_still_open(old_data, tiny_data):
    new = open_dataset('video_folder/tiny', tiny_data, 'test').read(0)
    old = open_dataset('video_folder/tiny', old_data, 'test').read(0)
    assert old['frames'] == new['frames'] and 'decode_errors' not in old
    assert verify.examine('video_folder/tiny', old_data)[1]
    by_name = tfds.builder('video_folder/tiny', data_dir=old_data).as_data_source('test')[0]
    assert by_name['frames'].shape == (8, new['height'], new['width'], 3)
    np.testing.assert_array_equal(by_name['frames'][5], decode_jpeg(new['frames'][5]))
    directory = old_data / 'video_folder' / 'tiny' / '1.0.0'
    # Its features.json says that the frames are bytes.
    plain = tfds.builder_from_directory(directory).as_data_source('test')[0]
    assert list(plain['frames']) == new['frames']


def test_a_build_by_download_and_prepare(clips, tmp_path):
    builder = tfds.builder('video_folder/mine', data_dir=tmp_path, videos=clips, processes=0)
    builder.download_and_prepare()
    assert builder.as_data_source('val')[0]['frames'].shape[0] == 8
    assert verify.examine('video_folder/mine', tmp_path)[1]
    args = ['--dataset=video_folder/mine', f'--videos={clips}', f'--dir={tmp_path}']
    assert build.build(build.parse(args)) == builder.data_path, 'one build, for both commands'
    again = tfds.builder('video_folder/mine', data_dir=tmp_path)
    assert again.info.splits['train'].num_examples == builder.info.splits['train'].num_examples


OVERWRITE = tfds.download.DownloadConfig(
    download_mode=tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS
)


@pytest.mark.slow
def test_tfds_may_replace_a_dataset(clips, tmp_path, capsys):
    """With other classes than before, by a builder that had failed, and over one of an older
    version; a build that fails leaves the old dataset there."""
    mine, data = tmp_path / 'clips', tmp_path / 'data'
    make = lambda: tfds.builder('video_folder/mine', data_dir=data, videos=mine, processes=0)
    for split in ('train', 'val', 'test'):
        (mine / split / f'{split} a').mkdir(parents=True)
        (mine / split / f'{split} a' / 'x.mp4').write_bytes(b'no video')
    builder = make()
    with pytest.raises(ValueError, match='all 3 were skipped'):
        builder.download_and_prepare()
    assert 'x.mp4' in capsys.readouterr().out
    shutil.rmtree(mine)
    shutil.copytree(clips, mine)
    builder.download_and_prepare()
    names = builder.info.features['label'].names
    shutil.copytree(next((mine / 'train').iterdir()), mine / 'train' / 'one more')

    directory = data / 'video_folder' / 'mine' / '1.0.0'
    described = json.loads((directory / 'features.json').read_text())
    del described['featuresDict']['features']['decode_errors']  # as older versions
    (directory / 'features.json').write_text(json.dumps(described))
    shutil.move(mine, tmp_path / 'away')
    with pytest.raises((OSError, ValueError)):
        make().download_and_prepare(download_config=OVERWRITE)
    assert make().info.features['label'].names == names  # still there
    shutil.copytree(tmp_path / 'away', mine)
    for path in mine.rglob('*.mp4'):
        path.write_bytes(b'no video')
    builder = make()
    with pytest.raises(ValueError, match='could be used'):
        builder.download_and_prepare(download_config=OVERWRITE)
    for old in (builder, make()):  # with its own classes, fields and index
        assert old.info.features['label'].names == names
        assert old.info.metadata['videos']['train']['video_id']
        assert old.as_data_source('train')[0].keys() == make().info.features.keys()
    directory.rename(directory.with_name('.1.0.0.replaced'))  # as a build that was killed leaves it
    make().download_and_prepare()
    assert make().info.features['label'].names == names
    shutil.rmtree(mine)
    shutil.move(tmp_path / 'away', mine)
    make().download_and_prepare(download_config=OVERWRITE)
    again = make()
    assert again.info.features['label'].names == sorted([*names, 'one more'])
    assert 'decode_errors' in again.as_data_source('train')[0]
    assert [path.name for path in directory.parent.iterdir()] == ['1.0.0']
    assert verify.examine('video_folder/mine', data)[1]


def test_tfds_may_update_the_description(tiny_data, tmp_path):
    """The checksum of what it wrote is renewed, and no other."""
    shutil.copytree(tiny_data / 'video_folder', tmp_path / 'video_folder')
    mode = tfds.download.GenerateMode.UPDATE_DATASET_INFO
    update = tfds.download.DownloadConfig(download_mode=mode)
    tfds.builder('video_folder/tiny', data_dir=tmp_path).download_and_prepare(
        download_config=update
    )
    assert verify.examine('video_folder/tiny', tmp_path)[1]
    [damaged] = (tmp_path / 'video_folder/tiny/1.0.0').glob('*-test.*-00000-of-00001')
    damaged.write_bytes(damaged.read_bytes()[:-1] + b'?')
    tfds.builder('video_folder/tiny', data_dir=tmp_path).download_and_prepare(
        download_config=update
    )
    assert not verify.examine('video_folder/tiny', tmp_path)[1]


def test_a_builder_leaves_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    tfds.builder('video_folder/none', data_dir=tmp_path / 'data')
    assert not list(tmp_path.iterdir())


def test_a_build_from_manual_dir(clips, tmp_path):
    shutil.copytree(clips, tmp_path / 'downloads' / 'manual' / 'here')
    builder = tfds.builder('video_folder/here', data_dir=tmp_path, processes=0)
    config = tfds.download.DownloadConfig(max_examples_per_split=1)
    builder.download_and_prepare(download_config=config)
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        'train': 1,
        'val': 1,
        'test': 1,
    }
    nothing = tfds.builder('video_folder/there', data_dir=tmp_path / 'empty')
    with pytest.raises(FileNotFoundError, match='no clips for video_folder/there: give videos='):
        nothing.download_and_prepare()
    with pytest.raises(ValueError, match='reads no videos'):
        tfds.builder('synthetic_actions/aligned', data_dir=tmp_path, videos=clips)


def test_a_benchmark_has_one_folder(small, tmp_path):
    videos, lists, lines, _ = small('ucf101_arn')
    builder = tfds.builder('ucf101_arn', data_dir=tmp_path, videos=videos, processes=0)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=lists))
    assert builder.data_path == tmp_path / 'ucf101_arn' / '1.0.0'
    assert open_dataset('ucf101_arn', tmp_path, 'val').video_ids == lines['val']
    for name in ('ucf101_arn', 'ucf101_arn/default', 'ucf101_arn:1.0.0'):
        assert len(tfds.data_source(name, split='test', data_dir=tmp_path)) == len(lines['test'])
    # Older versions put what tfds built into a folder default.
    old = tmp_path / 'old' / 'ucf101_arn' / 'default' / '1.0.0'
    shutil.copytree(builder.data_path, old)
    for name in ('ucf101_arn', 'ucf101_arn/default'):
        assert tfds.builder(name, data_dir=tmp_path / 'old').data_path == old


def test_frames_as_a_feature_of_another_builder():
    """Frames given as arrays are encoded; damage is said."""
    features = tfds.features.FeaturesDict({'frames': Frames(), 'label': np.int64})
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8)
    decoded = features.deserialize_example_np(
        features.serialize_example({'frames': frames, 'label': 2})
    )
    assert decoded['label'] == 2 and decoded['frames'].shape == frames.shape
    expected = [decode_jpeg(encode_jpeg(frame)) for frame in frames]
    np.testing.assert_array_equal(decoded['frames'], expected)
    feature = tfds.features.FeatureConnector.from_json(Frames(doc='clip').to_json())
    assert isinstance(feature, Frames) and feature.decode_example_np([]).shape == (0, 0, 0, 3)
    two_sizes = [encode_jpeg(frames[0]), encode_jpeg(frames[0, :16])]
    with pytest.raises(ValueError, match='frame 1 has 32x16 pixels, frame 0 has 32x24'):
        feature.decode_example_np(two_sizes)
    with pytest.raises(ValueError, match='not a readable JPEG'):
        feature.decode_example_np([b'no JPEG'])


def test_tfrecord_is_refused_without_tensorflow(clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow', None)
    args = ['--dataset=video_folder/x', f'--videos={clips}', f'--dir={tmp_path}']
    with pytest.raises(ValueError, match='tfrecord needs TensorFlow, which is not installed'):
        build.build(build.parse([*args, '--file_format=tfrecord']))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_workers_find_a_builder_that_tfds_build_imported(tmp_path, monkeypatch):
    """`tfds build` removes the folder above the builder's from sys.path again."""
    (tmp_path / 'my_clips').mkdir()
    (tmp_path / 'my_clips' / '__init__.py').touch()
    (tmp_path / 'my_clips' / 'maker.py').write_text('def double(source):\n    return 2 * source.x')
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        maker = importlib.import_module('my_clips.maker')
    assert str(tmp_path) not in sys.path
    source = workers_source(7)
    with workers.ordered_pool(1, maker.double) as run:
        assert list(run([source])) == [(14, None)]


class workers_source:
    origin = 'a file'

    def __init__(self, x):
        self.x = x
