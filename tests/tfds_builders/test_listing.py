"""What people's folders hold besides videos, and names that differ from system to system."""

import io
import os
import pathlib
import shutil
import socket
import unicodedata
import zipfile

import benchmark_copies as copies
import numpy as np
import pytest
from PIL import Image, ImageOps

from fsar_jax.data.dataset import open_dataset
from fsar_jax.data.frames import decode_jpeg, encode_jpeg
from fsar_jax.ingest import frame_files, listing, workers
from fsar_jax.ingest.frame_files import FrameFolder, record_from_frames, zipped_videos
from fsar_jax.ingest.records import RecordSettings, record_from_file
from fsar_jax.ingest.skipped import Skipped, skipped_table, write_skipped
from fsar_jax.ingest.video_builder import VideoSource
from fsar_jax.ingest.video_files import VideoError, write_video
from fsar_jax.ingest.video_formats import SUFFIXES
from tfds_builders.video_folder.video_folder_dataset_builder import folder_hash, list_folder

NFC, NFD = 'café', unicodedata.normalize('NFD', 'café')
JPEG = encode_jpeg(np.full((24, 32, 3), 90, np.uint8))
SETTINGS = RecordSettings(short_side=24, max_frames=0, min_frames=1)


def touch(root, *names):
    for name in names:
        path = pathlib.Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'x')
    return root


def ids(videos):
    return {
        split: [source.video_id for source in sources] for split, sources in videos.splits.items()
    }


def skips(videos):
    return {skip.path: skip.reason for skip in videos.skipped}


def test_every_video_suffix_is_taken_and_a_systems_own_files_are_not_mentioned(tmp_path):
    clips = [f'clip{suffix.upper() if i % 2 else suffix}' for i, suffix in enumerate(SUFFIXES)]
    assert {
        '.mov',
        '.m4v',
        '.mpg',
        '.ts',
        '.flv',
        '.3gp',
        '.wmv',
        '.gif',
        '.mp4',
        '.avi',
        '.webm',
        '.mkv',
    } <= set(SUFFIXES)
    touch(tmp_path, *(f'train/jump/{clip}' for clip in clips))
    own = (
        '.DS_Store',
        'Thumbs.db',
        'desktop.ini',
        '._clip.mp4',
        '__MACOSX/clip.mp4',
        '@eaDir/clip.mp4',
    )
    before = folder_hash(tmp_path)
    touch(
        tmp_path, *(f'{folder}{name}' for folder in ('', 'train/', 'train/jump/') for name in own)
    )
    videos = list_folder(tmp_path)
    assert [source.name for source in videos.splits['train']] == sorted(
        clips
    ) and videos.skipped == []
    assert folder_hash(tmp_path) == before, (
        'opening a folder in the Finder would ask for another build'
    )


def test_what_is_no_video_is_listed_as_that(tmp_path):
    names = (
        'notes.txt',
        'cover.png',
        'thumb.jpg',
        'all.zip',
        'part.rar',
        'list.csv',
        'README',
        'model.bin',
    )
    touch(tmp_path, 'train/jump/a.mp4', *(f'train/jump/{name}' for name in names))
    videos = list_folder(tmp_path)
    assert ids(videos) == {'train': ['jump/a']}
    assert skips(videos) == {f'train/jump/{name}': 'not a video' for name in names}


@pytest.mark.parametrize('suffix', ('.mp4', '.avi', '.webm', '.mkv'))
def test_a_video_under_another_name_is_taken(suffix, tmp_path):
    write_video(tmp_path / f'clip{suffix}', np.zeros((3, 16, 16, 3), np.uint8))
    assert listing.starts_as_video(tmp_path / f'clip{suffix}')
    folder = tmp_path / 'clips' / 'train' / 'jump'
    folder.mkdir(parents=True)
    for name in ('clip', 'clip.video', 'clip.1'):
        shutil.copy(tmp_path / f'clip{suffix}', folder / name)
    videos = list_folder(tmp_path / 'clips')
    assert (
        ids(videos) == {'train': ['jump/clip', 'jump/clip.1', 'jump/clip.video']}
        and videos.skipped == []
    )


@pytest.mark.parametrize(
    'start, video',
    (
        (b'\0\0\0\x18ftypheic' + bytes(400), False),  # a phone's picture
        (b'\0\0\0\x18ftypM4A ' + bytes(400), False),
        (b'\0\0\0\x18ftypqt  ' + bytes(400), True),
        (b'RIFF\0\0\0\0WAVEfmt ', False),
        (b'G' + bytes(187) + b'G' + bytes(187) + b'G' + bytes(187), True),
        (b'GIF89a', True),
        (b'\0\0\1\xba', True),
        (b'\0\0\1\0', False),  # an icon
        (b'OggS' + bytes(24) + b'\x80theora', True),
        (b'OggS' + bytes(24) + b'OpusHead', False),
        (b'', False),
    ),
)
def test_containers_by_their_first_bytes(start, video, tmp_path):
    (tmp_path / 'x').write_bytes(start)
    assert listing.starts_as_video(tmp_path / 'x') is video


def test_a_class_in_two_splits_in_two_spellings_of_unicode(tmp_path):
    touch(tmp_path, f'train/{NFC}/a.mp4', f'test/{NFD}/a.mp4')
    assert len(os.listdir(tmp_path / 'train') + os.listdir(tmp_path / 'test')) == 2
    with pytest.raises(
        ValueError, match="class 'café' is in more than one split of .*share no class"
    ) as caught:
        list_folder(tmp_path)
    assert NFD not in str(caught.value)


def test_names_are_stored_in_nfc_and_files_read_by_their_own(tmp_path):
    touch(tmp_path, f'train/{NFD}/{NFD}.mp4')
    if os.listdir(tmp_path / 'train') != [NFD]:
        pytest.skip('this file system changes names')
    videos = list_folder(tmp_path)
    (source,) = videos.splits['train']
    assert (videos.class_names, source.video_id, source.name) == (
        [NFC],
        f'{NFC}/{NFC}',
        f'{NFC}.mp4',
    )
    assert source.origin == str(tmp_path / 'train' / NFD / f'{NFD}.mp4') and os.path.exists(
        source.origin
    )
    other = touch(tmp_path / 'other', f'train/{NFC}/{NFC}.mp4')
    (tmp_path / 'train').rename(tmp_path / 'one')
    shutil.copytree(tmp_path / 'one', tmp_path / 'again' / 'train')
    assert folder_hash(tmp_path / 'again') == folder_hash(other), (
        'a copy on another system is the same folder'
    )


def test_two_spellings_of_one_class_in_a_split_are_one_class(tmp_path):
    touch(
        tmp_path,
        f'train/{NFC}/a.mp4',
        f'train/{NFC}/b.mp4',
        f'train/{NFD}/b.mp4',
        f'train/{NFD}/c.mp4',
    )
    videos = list_folder(tmp_path)
    assert videos.class_names == [NFC]
    # plan() lists the second b as a duplicate id.
    assert ids(videos) == {'train': [f'{NFC}/a', f'{NFC}/b.mp4', f'{NFC}/b.mp4', f'{NFC}/c']}


def test_classes_that_differ_in_case_only(tmp_path):
    touch(tmp_path, 'one/train/Jump/a.mp4', 'one/test/jump/a.mp4')
    with pytest.raises(
        ValueError,
        match="class 'jump' is in more than one split of .*, train .there 'Jump'. and test",
    ):
        list_folder(tmp_path / 'one')
    touch(tmp_path, 'two/train/Jump/a.mp4', 'two/train/jump/a.mp4')
    with pytest.raises(ValueError, match="'Jump' and 'jump' of .* differ only in case"):
        list_folder(tmp_path / 'two')


def test_split_folders_in_capitals(tmp_path):
    touch(tmp_path, 'Train/jump/a.mp4', 'VAL/sit/a.mp4', 'test/wave/a.mp4')
    assert ids(list_folder(tmp_path)) == {'train': ['jump/a'], 'val': ['sit/a'], 'test': ['wave/a']}


def test_a_class_folder_that_must_not_be_looked_into(tmp_path, monkeypatch):
    touch(tmp_path, 'train/jump/a.mp4', 'train/run/a.mp4', 'test/wave/a.mp4')
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == 'run':
            raise PermissionError(13, 'Permission denied', path)
        return scan(path)

    monkeypatch.setattr(listing.os, 'scandir', refuse)
    videos = list_folder(tmp_path)
    assert ids(videos) == {'train': ['jump/a'], 'test': ['wave/a']}
    assert [(skip.path, skip.reason, skip.detail) for skip in videos.skipped] == [
        ('train/run', 'unreadable', 'Permission denied')
    ]


@pytest.mark.parametrize('linked', ('train', 'train/jump', 'jump'))
def test_clips_behind_a_link_are_part_of_the_folders_hash(linked, tmp_path):
    """Else a build with other clips there would be taken for the one that is there already."""
    elsewhere, root = touch(tmp_path / 'elsewhere', 'jump/a.mp4', 'run/a.mp4'), tmp_path / 'clips'
    (root / linked).parent.mkdir(parents=True)
    (root / linked).symlink_to(elsewhere if linked == 'train' else elsewhere / 'jump')
    touch(root, 'sit/a.mp4', 'wave/a.mp4') if linked == 'jump' else None
    before = folder_hash(root)
    assert 'jump/a' in sum(ids(list_folder(root)).values(), [])
    touch(elsewhere, 'jump/b.mp4')
    assert folder_hash(root) != before
    before = folder_hash(root)
    (elsewhere / 'jump/up').symlink_to(tmp_path)  # which may be a whole disk
    assert folder_hash(root) == before
    skipped = [
        skip
        for skip in list_folder(root).skipped
        if skip.reason == 'in a folder inside the class folder'
    ]
    assert [skip.name for skip in skipped] == ['up']


def test_pipes_sockets_and_links_among_clips(tmp_path, monkeypatch):
    folder = touch(tmp_path, 'train/jump/a.mp4') / 'train' / 'jump'
    os.mkfifo(folder / 'pipe.mp4')
    os.mkfifo(folder / 'pipe')
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # the path of a socket may have 108 bytes
        server.bind('socket.mp4')
    (folder / 'device.mp4').symlink_to('/dev/zero')
    (folder / 'gone.mp4').symlink_to('nowhere.mp4')
    (folder / 'round.mp4').symlink_to('round.mp4')
    (folder / 'folder.mp4').mkdir()
    videos = list_folder(tmp_path)
    # Whose reading says what is wrong.
    assert ids(videos) == {'train': ['jump/a', 'jump/gone', 'jump/round']}
    assert skips(videos) == {
        **{
            f'train/jump/{name}': 'not a video'
            for name in ('pipe', 'pipe.mp4', 'socket.mp4', 'device.mp4')
        },
        'train/jump/folder.mp4': 'in a folder inside the class folder',
    }
    reasons = {
        source.name: workers.try_source(read, source)[1].reason
        for source in videos.splits['train'][1:]
    }
    assert reasons == {'gone.mp4': 'missing', 'round.mp4': 'unreadable'}


def read(source):
    return record_from_file(source.origin, source.video_id, 0, SETTINGS)


def frames(folder, count=3, data=JPEG):
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f'{i}.jpg').write_bytes(data)
    return folder


def why(source):
    """(reason, detail) of a video of JPEG files that is no good."""
    with pytest.raises(VideoError) as caught:
        record_from_frames(source, 'id', 0, SETTINGS)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize('kind', ('pipe', 'device', 'folder', 'gone'))
def test_a_frame_that_is_no_file(kind, tmp_path):
    folder = frames(tmp_path / 'video')
    (folder / '1.jpg').unlink()
    {
        'pipe': os.mkfifo,
        'device': lambda path: os.symlink('/dev/zero', path),
        'folder': os.mkdir,
        'gone': lambda path: os.symlink('nowhere', path),
    }[kind](folder / '1.jpg')
    reason, detail = why(FrameFolder(str(folder)))
    assert (
        reason == ('missing' if kind == 'gone' else 'decode errors')
        and 'frame 1 of 3 (1.jpg)' in detail
    )


def test_a_frame_that_claims_more_than_there_is(tmp_path, monkeypatch):
    folder = frames(tmp_path / 'video')
    at = JPEG.index(b'\xff\xc0') + 5  # height and width of the frame header
    (folder / '2.jpg').write_bytes(JPEG[:at] + (65500).to_bytes(2, 'big') * 2 + JPEG[at + 4 :])
    assert why(FrameFolder(str(folder))) == (
        'too large',
        'frame 2 of 3 (2.jpg) claims 65500x65500 pixels',
    )
    (folder / '2.jpg').unlink()
    with open(folder / '2.jpg', 'wb') as file:
        file.truncate(5 << 30)
    assert why(FrameFolder(str(folder))) == (
        'decode errors',
        'frame 2 of 3 (2.jpg) claims 5,368,709,120 bytes',
    )

    def claims(path):
        raise MemoryError

    record, error = workers.try_source(claims, VideoSource('a/b', 0, 'b', 'b'))
    assert record is None and (error.reason, error.detail) == (
        'unreadable',
        'Cannot allocate memory',
    )


def zipped(path, names, change=lambda data: data):
    with zipfile.ZipFile(path, 'w') as archive:
        for name in names:
            archive.writestr(name, JPEG)
    path.write_bytes(change(path.read_bytes()))
    return path


def test_a_zip_entry_that_claims_4_gb_is_one_video(tmp_path):
    def claim(data):
        at = data.rindex(b'PK\1\2')  # of the last member: compressed and uncompressed size
        return data[: at + 20] + (2**32 - 2).to_bytes(4, 'little') * 2 + data[at + 28 :]

    path = zipped(tmp_path / 'frames.zip', ('jump/a/0.jpg', 'jump/a/1.jpg', 'jump/b/0.jpg'), claim)
    good, bad = (frames for _, _, frames in zipped_videos(path))
    assert record_from_frames(good, 'id', 0, SETTINGS)['frames'] == [JPEG, JPEG]
    assert why(bad) == ('decode errors', 'frame 0 of 1 claims 4,294,967,294 bytes')


def test_members_of_odd_names_and_of_one_name(tmp_path):
    path = tmp_path / 'frames.zip'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('../../jump/a/0.jpg', b'overwritten by the next')
        with pytest.warns(UserWarning, match='Duplicate name'):
            archive.writestr('../../jump/a/0.jpg', JPEG)
        archive.writestr('/jump/b/0.jpg', JPEG)
        archive.writestr('jump\\c\\0.jpg', JPEG)
    found = [(folder, video, len(frames.sizes)) for folder, video, frames in zipped_videos(path)]
    assert found == [('jump', 'a', 1), ('jump', 'b', 1), ('jump', 'c', 1)]
    for _, _, video in zipped_videos(path):
        assert record_from_frames(video, 'id', 0, SETTINGS)['frames'] == [JPEG]


def test_zips_that_are_encrypted_cut_or_pipes(tmp_path):
    encrypted = lambda data: data.replace(b'PK\1\2\x14\3\x14\0\0\0', b'PK\1\2\x14\3\x14\0\1\0')
    path = zipped(tmp_path / 'one.zip', ('jump/a/0.jpg',), encrypted)
    with pytest.raises(
        ValueError, match='one.zip: jump/a/0.jpg is encrypted: extract it and give the folder'
    ):
        list(zipped_videos(path))
    path = zipped(tmp_path / 'two.zip', ('jump/a/0.jpg',), lambda data: data[:-30])
    with pytest.raises(ValueError, match='two.zip is not a .zip, or its end is missing'):
        list(zipped_videos(path))
    moved = zipped(tmp_path / 'three.zip', ('jump/a/0.jpg',), lambda data: b'PK\0\0' + data[4:])
    ((*_, video),) = zipped_videos(moved)
    assert why(video) == ('decode errors', 'frame 0 of 1 is not where the index of the .zip has it')
    os.mkfifo(tmp_path / 'four.zip')
    with pytest.raises((OSError, ValueError)):
        list(zipped_videos(tmp_path / 'four.zip'))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_frames_are_stored_as_viewers_show_them(orientation, tmp_path):
    y, x = np.mgrid[:24, :32]
    image = Image.fromarray(np.stack([x * 7, y * 10, 200 - 3 * x], -1).astype(np.uint8))
    data, exif = io.BytesIO(), image.getexif()
    exif[frame_files.ORIENTATION] = orientation
    image.save(data, 'JPEG', quality=95, exif=exif)
    record = record_from_frames(
        FrameFolder(str(frames(tmp_path / 'video', 2, data.getvalue()))), 'id', 0, SETTINGS
    )
    shown = np.asarray(ImageOps.exif_transpose(Image.open(data)), int)
    assert (record['height'], record['width']) == shown.shape[:2]
    assert np.abs(decode_jpeg(record['frames'][1]).astype(int) - shown).mean() < 2
    assert (record['frames'][0] == data.getvalue()) is (orientation == 1)


@pytest.mark.parametrize('mode', ('L', 'CMYK'))
def test_grey_and_cmyk_frames(mode, tmp_path):
    y, x = np.mgrid[:24, :32]
    image = Image.fromarray(np.stack([x * 7, y * 10, 200 - 3 * x], -1).astype(np.uint8)).convert(
        mode
    )
    data = io.BytesIO()
    image.save(data, 'JPEG', quality=95)
    record = record_from_frames(
        FrameFolder(str(frames(tmp_path / 'video', 1, data.getvalue()))), 'id', 0, SETTINGS
    )
    assert (
        np.abs(
            decode_jpeg(record['frames'][0]).astype(int) - np.asarray(image.convert('RGB'), int)
        ).mean()
        < 4
    )
    with Image.open(io.BytesIO(record['frames'][0])) as stored:
        assert stored.mode == ('L' if mode == 'L' else 'RGB')


def test_a_png_under_the_name_of_a_jpeg(tmp_path):
    data = io.BytesIO()
    Image.new('RGB', (32, 24)).save(data, 'PNG')
    reason, detail = why(FrameFolder(str(frames(tmp_path / 'video', 1, data.getvalue()))))
    assert reason == 'decode errors' and detail.startswith(
        'frame 0 of 1 (0.jpg) is damaged, or not a JPEG file'
    )


def test_a_name_cannot_forge_a_line_of_a_table(tmp_path):
    evil = 'a.mp4\n  truncated  train/run/b.mp4\x1b[2J\tx\u202e'
    skipped = [Skipped('train', 'ju\nmp', evil, 'not a video', 'de\ttail\r\n')]
    write_skipped(tmp_path / 'skipped.tsv', skipped)
    lines = (tmp_path / 'skipped.tsv').read_text().splitlines()
    assert len(lines) == 2 and [len(line.split('\t')) for line in lines] == [5, 5]
    table = skipped_table(skipped)
    assert len(table.splitlines()) == 6 and all(line.isprintable() for line in table.splitlines())


def test_a_benchmark_with_names_of_another_system(small, tmp_path):
    """Videos with accents, of which macOS and Linux write other bytes; suffixes of other programs;
    notes beside the videos."""
    videos, lists, lines, class_of = small('ucf101_arn')
    copy = shutil.copytree(videos, tmp_path / 'UCF-101')
    folder = copy / 'ApplyEyeMakeup'
    first, second, third = sorted(folder.iterdir())
    first.rename(folder / f'{NFD}.avi')
    second.rename(second.with_suffix('.MOV'))
    third.rename(third.with_suffix(''))
    touch(folder, 'notes.txt', 'Thumbs.db', '.DS_Store')
    os.mkfifo(folder / 'pipe.avi')
    zipped(folder / 'more.zip', ('clip.avi',))
    directory = copies.build_copy('ucf101_arn', tmp_path, copy, lists)
    assert copies.skipped_in(directory) == {
        ('', 'ApplyEyeMakeup', 'more.zip'): ('not a video', 'a .zip without frames'),
        ('', 'ApplyEyeMakeup', 'notes.txt'): ('not a video', "a '.txt' file"),
        ('', 'ApplyEyeMakeup', 'pipe.avi'): ('not a video', 'a pipe, a socket or a device'),
    }
    stored = open_dataset('ucf101_arn', tmp_path, 'train').video_ids
    names = (NFC, second.stem, third.stem)
    assert {f'ApplyEyeMakeup/{name}' for name in names} <= set(stored)
