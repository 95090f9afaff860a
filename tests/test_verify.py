"""Damage to a built dataset: reading refuses it, `verify` finds all of it, and its exit status
tells."""

import json
import shutil
import subprocess
import sys

import pytest
from array_record.python import array_record_module

from fsar_jax import build, verify
from fsar_jax.checksums import SUMS, sha256_of, write_sums
from fsar_jax.data.dataset import (
    EmptySplitError,
    NoSplitError,
    VideoDataset,
    open_dataset,
    version_directory,
)

NAME = 'video_folder/tiny'
SHARD = 'video_folder-{}.array_record-00000-of-00001'


@pytest.fixture
def copy(tiny_data, tmp_path):
    """(data_dir, the dataset's directory) of a copy that a test may damage."""
    shutil.copytree(tiny_data / NAME, tmp_path / 'data' / NAME)
    return tmp_path / 'data', version_directory(NAME, tmp_path / 'data')


def records_of(path):
    reader = array_record_module.ArrayRecordReader(str(path))
    records = [reader.read([number])[0] for number in range(reader.num_records())]
    reader.close()
    return records


def write_records(path, records):
    writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1,uncompressed')
    for record in records:
        writer.write(record)
    writer.close()


def change(path, edit):
    """Rewrites a JSON file; `edit` changes its content in place."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def flip(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def without_sums(directory):
    """As a build of an older version is."""
    (directory / SUMS).unlink()
    change(directory / 'metadata.json', lambda metadata: metadata.pop('made_with'))


def status(data_dir, *flags, capsys):
    """(exit status, what the command printed), called in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['verify', f'--dataset={NAME}', f'--dir={data_dir}', *flags])
        code = verify.main()
    return code, capsys.readouterr().out


def test_a_whole_dataset_is_read_to_the_end(copy, capsys, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        verify,
        'decode_jpeg',
        lambda data, decode=verify.decode_jpeg: decoded.append(len(data)) or decode(data),
    )
    code, text = status(copy[0], capsys=capsys)
    assert code == 0 and text.endswith('\nnothing is damaged\n') and len(decoded) == 40 * 8
    decoded.clear()
    code, text = status(copy[0], '--fast', capsys=capsys)
    assert code == 0 and 'nothing is lost' in text and not decoded


def test_the_checksums_are_those_of_sha256sum(copy):
    directory = copy[1]
    lines = (directory / SUMS).read_text().splitlines()
    names = {path.name for path in directory.iterdir()}
    assert {line[66:] for line in lines} == names - {SUMS} and SHARD.format('test') in names
    assert all(line[:66] == sha256_of(directory / line[66:]) + '  ' for line in lines)


def test_no_flipped_bit_is_overlooked(copy, capsys):
    """One in each file, and in a shard in a record, between the records, and in its end."""
    data_dir, directory = copy
    shard = directory / SHARD.format('val')
    size = shard.stat().st_size
    for path in sorted(directory.iterdir()):
        whole = path.read_bytes()
        for place in (
            (1000, size // 2, size - 70000, size - 3) if path == shard else (len(whole) // 2,)
        ):
            flip(path, place)
            try:
                code, text = status(data_dir, capsys=capsys)
            except ValueError as error:
                code, text = 1, str(error)
            assert code == 1 and path.name in text, (path.name, place)
            path.write_bytes(whole)
    assert status(data_dir, capsys=capsys)[0] == 0


def test_a_list_of_checksums_that_is_cut_is_damage(copy, capsys):
    data_dir, directory = copy
    lines = (directory / SUMS).read_text().splitlines(keepends=True)
    for kept in (lines[:-1], lines[1:], []):
        (directory / SUMS).write_text(''.join(kept))
        code, text = status(data_dir, capsys=capsys)
        assert code == 1 and f'files are not in {SUMS}, which is cut' in text
    assert '7 files are not in' in text


def test_a_list_of_checksums_that_is_lost_is_damage(copy, capsys):
    data_dir, directory = copy
    (directory / SUMS).unlink()
    code, text = status(data_dir, capsys=capsys)
    assert code == 1 and str(directory / SUMS) in text and 'DAMAGED' in text


def test_exchanged_class_names_are_refused_when_opened(copy):
    """Every record still fits the index, but episodes would draw the classes in another order."""
    data_dir, directory = copy
    path = directory / 'label.labels.txt'
    first, second, *others = path.read_text().split('\n')
    path.write_text('\n'.join([second, first, *others]))
    with pytest.raises(
        ValueError,
        match=f'^{path} is not the one that was built, by its checksum in SHA256SUMS: see what is '
        'damaged with',
    ):
        open_dataset(NAME, data_dir, 'test')


def test_an_older_build_is_read_as_far_as_it_can_be(copy, capsys):
    data_dir, directory = copy
    without_sums(directory)
    code, text = status(data_dir, capsys=capsys)
    assert code == 0 and f'built before there was a {SUMS}' in text
    flip(directory / SHARD.format('test'), 1000)  # in the first record: ArrayRecord's own checksum
    code, text = status(data_dir, capsys=capsys)
    assert (
        code == 1
        and '1 records cannot be read' in text
        and f'record 0 of {directory / SHARD.format("test")}' in text
    )


def test_a_frame_that_does_not_decode_is_named_and_the_rest_is_read(copy, capsys):
    """Written by a program, so that all checksums are right: only decoding finds it, as evaluation
    would."""
    data_dir, directory = copy
    shard = directory / SHARD.format('test')
    records = records_of(shard)
    for number in (2, 5):
        at = records[number].index(b'\xff\xd8') + 30
        records[number] = records[number][:at] + bytes(300) + records[number][at + 300 :]
    write_records(shard, records)
    write_sums(directory)
    code, text = status(data_dir, capsys=capsys)
    assert code == 1 and '\n2 frames cannot be decoded:\n' in text and '12' in text.splitlines()[4]
    for number in (2, 5):
        assert (
            f"  {shard.name}, record {number}, video 'test {number // 4}/{number % 4}', frame 0: a "
            "frame of " in text
        )


def test_ten_of_a_kind_are_named_and_all_are_counted(copy, capsys):
    data_dir, directory = copy
    change(
        directory / 'metadata.json',
        lambda metadata: metadata['videos']['train']['video_id'].reverse(),
    )
    without_sums(directory)
    code, text = status(data_dir, capsys=capsys)
    assert (
        code == 1 and '16 records are not those of the index:' in text and '... and 6 more' in text
    )
    assert sum(line.startswith('  record ') for line in text.splitlines()) == 10


def test_a_truncated_or_lost_shard_ends_with_status_1(copy, capsys):
    data_dir, directory = copy
    shard = directory / SHARD.format('test')
    whole = shard.read_bytes()
    for flags in ((), ('--fast',)):
        shard.write_bytes(whole[: len(whole) // 2])
        code, text = status(data_dir, *flags, capsys=capsys)
        assert (
            code == 1
            and f'1 record files are not whole, build it again with --overwrite:\n  {shard.name}'
            in text
            and '16 of' not in text
        )
        shard.unlink()
        code, text = status(data_dir, *flags, capsys=capsys)
        assert code == 1 and f'{shard.name} is not there' in text
        # Before an hour of training, not at the first record.
        with pytest.raises(OSError, match='is not there'):
            open_dataset(NAME, data_dir, 'test')


def test_the_command_exits_with_the_status_and_one_line(copy, tmp_path):
    command = [sys.executable, '-m', 'fsar_jax.verify', f'--dataset={NAME}']
    run = lambda data_dir: subprocess.run(
        [*command, f'--dir={data_dir}'], capture_output=True, text=True
    )
    flip(copy[1] / SHARD.format('test'), 1000)
    assert run(copy[0]).returncode == 1
    ended = run('gs://bucket/data')
    assert ended.returncode == 1 and ended.stderr.startswith(
        'error: --dir=gs://bucket/data: gs:// addresses are not'
    )
    assert ended.stderr.count('\n') == 1


@pytest.mark.parametrize('same_length', [True, False])
def test_another_splits_shard_is_refused(copy, capsys, same_length):
    """val has as many videos as test: only the records themselves tell."""
    data_dir, directory = copy
    without_sums(directory)
    shutil.copy(
        directory / SHARD.format('val' if same_length else 'train'),
        directory / SHARD.format('test'),
    )
    if not same_length:
        with pytest.raises(
            OSError,
            match='holds 16 records, not 12: see what is damaged with python -m fsar_jax.verify',
        ):
            open_dataset(NAME, data_dir, 'test')
    with pytest.raises(ValueError) as caught:
        VideoDataset(directory, NAME, 'test').read(1)
    other = "'val 0/1' (label 7" if same_length else "'train 0/1' (label 3"
    assert (
        f'record 1 of {directory / SHARD.format("test")} is of video {other}, 8 frames), '
        'metadata.json says '
        f"'test 0/1' (label 0, 8 frames)" in str(caught.value)
    )
    assert str(caught.value).endswith(
        f'python -m fsar_jax.verify --dataset={NAME} --dir={data_dir}'
    )
    code, text = status(data_dir, capsys=capsys)
    assert (
        code == 1
        and ('12 records are not those' if same_length else 'holds 16 records, not 12') in text
    )


@pytest.mark.parametrize('key, value', [('label', 1), ('num_frames', 7)])
def test_a_label_or_count_that_is_not_the_records_is_refused(copy, key, value):
    data_dir, directory = copy
    change(
        directory / 'metadata.json',
        lambda metadata: metadata['videos']['test'][key].__setitem__(3, value),
    )
    dataset = open_dataset(NAME, data_dir, 'test')
    assert dataset.read(2)['video_id'] == 'test 0/2'
    with pytest.raises(ValueError, match="record 3 of .* is of video 'test 0/3'"):
        dataset.read(3)


def drop_an_entry(metadata):
    for values in metadata['videos']['test'].values():
        del values[5]


def of_test(key, place, value):
    return lambda metadata: metadata['videos']['test'][key].__setitem__(place, value)


@pytest.mark.parametrize(
    'edit, message',
    [
        (drop_an_entry, 'metadata.json lists 11 videos, dataset_info.json 12 records'),
        (
            lambda metadata: metadata['videos'].pop('test'),
            'metadata.json lists 0 videos, dataset_info.json 12 records',
        ),
        (
            lambda metadata: metadata['videos']['test']['label'].pop(),
            '12 ids, 11 labels, 12 counts of frames',
        ),
        (of_test('label', 2, 10), "gives video 'test 0/2' the label 10, there are 10 classes"),
        (of_test('label', 2, -1), 'a label that is not a whole number of at least 0'),
        (of_test('label', 2, 1.5), 'a label that is not a whole number'),
        (of_test('label', 2, True), 'a label that is not a whole number'),
        (of_test('label', 2, 2**32 + 1), 'a label that is not a whole number'),
        (of_test('num_frames', 2, 0), 'a num_frames that is not a whole number of at least 1'),
        (of_test('video_id', 2, 'test 0/1'), "id 'test 0/1' occurs twice"),
        (of_test('video_id', 2, 7), 'a video id that is not text'),
        (of_test('video_id', 2, '\ud800'), 'a video id that is not text'),
        (lambda metadata: metadata.pop('settings'), 'it has no settings'),
        (
            lambda metadata: metadata['videos']['test'].pop('label'),
            'not the lists video_id, label, num_frames',
        ),
        (lambda metadata: metadata.update(videos=[]), 'it has no videos'),
        (
            lambda metadata: metadata.update(expected={'test': {'videos': 'many'}}),
            'expected, split test',
        ),
    ],
)
def test_an_index_that_contradicts_itself_is_refused_when_opened(copy, edit, message):
    data_dir, directory = copy
    change(directory / 'metadata.json', edit)
    with pytest.raises(ValueError) as caught:
        open_dataset(NAME, data_dir, 'test')
    said = str(caught.value)
    assert message in said and '\n' not in said and str(directory) in said
    assert said.endswith(
        f'python -m fsar_jax.build --dataset={NAME} --dir={data_dir} --videos=FOLDER '
        '--short_side=32 --overwrite'
    )


@pytest.mark.parametrize(
    'file', ['dataset_info.json', 'features.json', 'metadata.json', 'label.labels.txt']
)
@pytest.mark.parametrize('damage', ['lost', 'empty', 'cut', 'foreign', 'binary', 'list'])
def test_a_damaged_file_of_a_dataset_is_named_in_one_line(copy, file, damage):
    data_dir, directory = copy
    path = directory / file
    whole = path.read_bytes()
    content = {
        'empty': b'',
        'cut': whole[: len(whole) // 2],
        'foreign': b'{"a": {"b": 1}}',
        'binary': b'\xff\xfe\x00',
        'list': b'[1, 2]',
    }
    path.unlink() if damage == 'lost' else path.write_bytes(content[damage])
    with pytest.raises((ValueError, OSError)) as caught:
        open_dataset(NAME, data_dir, 'test').read(0)
    said = str(caught.value)
    # A directory without it is no finished build.
    if damage == 'lost' and file == 'dataset_info.json':
        assert said.startswith(f"dataset '{NAME}' is not in {data_dir}: build it with ")
        return
    assert (
        file in said
        and str(directory) in said
        and '\n' not in said
        and 'python -m fsar_jax.build --dataset=' in said
    )
    if damage == 'cut' and file.endswith('.json'):
        assert f'{path} is damaged or cut (line ' in said


@pytest.mark.parametrize(
    'file, content',
    [
        ('dataset_info.json', b'{"a": 1}'),
        ('dataset_info.json', None),
        ('features.json', b'{"a": 1}'),
        ('metadata.json', b''),
        ('label.labels.txt', None),
    ],
)
def test_a_build_over_a_damaged_dataset_names_what_is_damaged_and_overwrite_mends_it(
    tmp_path, tiny_data, file, content
):
    clips, data_dir = tiny_data.parent / 'tiny_clips', tmp_path / 'data'
    shutil.copytree(tiny_data / NAME, data_dir / NAME)
    path = version_directory(NAME, data_dir) / file
    path.unlink() if content is None else path.write_bytes(content)
    flags = [
        f'--dataset={NAME}',
        f'--videos={clips}',
        f'--dir={data_dir}',
        '--processes=0',
        '--short_side=32',
    ]
    with pytest.raises(
        (ValueError, OSError), match=f'{file}.*--overwrite( to build it again)?$'
    ) as caught:
        build.build(build.parse(flags))
    assert '\n' not in str(caught.value)
    build.build(build.parse([*flags, '--overwrite']))
    assert verify.examine(NAME, data_dir)[1]


@pytest.mark.parametrize('folder', ['d[x]*?', '~root', 'a b;c', '{DATASET}', 'données', "it's"])
def test_a_data_directory_may_have_any_name(tiny_data, tmp_path, folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_data / NAME, tmp_path / folder / NAME)
    assert open_dataset(NAME, folder, 'test').read(3)['video_id'] == 'test 0/3'
    assert status(f'./{folder}' if folder != '~root' else tmp_path / folder, capsys=capsys)[0] == 0


def test_commands_in_errors_can_be_typed(tiny_data, tmp_path):
    import shlex

    folder = tmp_path / "it's [mine]"
    shutil.copytree(tiny_data / NAME, folder / NAME)
    (folder / NAME / '1.0.0' / SHARD.format('test')).unlink()
    with pytest.raises(OSError, match='is not there') as caught:
        open_dataset(NAME, folder, 'test')
    assert '\n' not in str(caught.value)
    words = shlex.split(
        str(caught.value).partition('see what is damaged with ')[2].partition(';')[0]
    )
    assert words == ['python', '-m', 'fsar_jax.verify', f'--dataset={NAME}', f'--dir={folder}']


def test_another_format_is_no_damage(copy, capsys):
    data_dir, directory = copy
    change(directory / 'dataset_info.json', lambda info: info.update(fileFormat='tfrecord'))
    with pytest.raises(ValueError, match='holds tfrecord files, which tfds.load reads'):
        status(data_dir, capsys=capsys)


def test_empty_and_absent_splits_are_no_damage(tiny_data, capsys):
    with pytest.raises(EmptySplitError, match='skipped.tsv'):
        open_dataset('video_folder/no_val', tiny_data, 'val')
    with pytest.raises(NoSplitError, match='it has train, val, test'):
        open_dataset('video_folder/no_val', tiny_data, 'dev')
    text, whole = verify.examine('video_folder/no_val', tiny_data)
    assert whole and "split 'val' of dataset 'video_folder/no_val' is empty" in text


@pytest.mark.parametrize('name', ['', '../data', '/etc', 'a/../..', 'x\0y', 'a/'])
def test_names_that_are_no_folder_of_the_data_directory_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match='is not the name of a dataset'):
        open_dataset(name, tmp_path, 'test')
