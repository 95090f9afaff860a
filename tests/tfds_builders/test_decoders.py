"""The pixels of a dataset are of one decoder, and it says which."""

import json

import pytest

from fsar_jax import build
from fsar_jax.data.dataset import open_dataset
from fsar_jax.ingest import video_builder, video_files
from fsar_jax.ingest.frame_files import FrameFolder
from fsar_jax.ingest.shards import Shard
from fsar_jax.ingest.video_builder import VideoSource

NAME = 'synthetic_actions/aligned'
SMALL = (
    '--size=32',
    '--num_frames=8',
    '--clips_per_class=1',
    '--videos_per_shard=25',
    '--processes=0',
)
OTHER = 'av 99, libavformat 99, libavcodec 99, libswscale 99'


def run(data_dir, *flags):
    return build.build(build.parse([f'--dataset={NAME}', f'--dir={data_dir}', *SMALL, *flags]))


@pytest.fixture
def another_decoder(monkeypatch):
    """Function: from now on another decoder is installed, or the real one again."""

    def install(other):
        for module in (video_builder, build):
            monkeypatch.setattr(
                module,
                'decoder_generation',
                lambda: OTHER if other else video_files.decoder_generation(),
            )

    return install


def test_a_dataset_says_what_made_its_pixels(tmp_path, another_decoder, capsys):
    directory = run(tmp_path)
    made_with = json.loads((directory / 'metadata.json').read_text())['made_with']
    assert made_with['decoder'] == video_files.decoder_generation()
    assert made_with.items() >= video_files.decoder_versions().items() and 'pillow' in made_with
    assert open_dataset(NAME, tmp_path, 'test').made_with == made_with
    capsys.readouterr()
    run(tmp_path)
    assert 'made with' not in capsys.readouterr().out
    another_decoder(True)
    run(tmp_path)
    message = (
        f'made with {video_files.decoder_generation()}, and {OTHER} is installed here, which '
        'makes other pixels'
    )
    assert message in capsys.readouterr().out


def test_a_build_does_not_go_on_with_another_decoder(tmp_path, another_decoder):
    run(tmp_path, '--shards=0/2')
    folder = tmp_path / NAME / 'incomplete'
    before = {path.name: path.stat().st_ino for path in folder.glob('*-of-?????')}
    another_decoder(True)
    begun = f'begun with {video_files.decoder_generation()}, and {OTHER} is installed here'
    for flags in ((), ('--shards=0/2',)):
        with pytest.raises(ValueError, match=begun) as caught:
            run(tmp_path, *flags)
        assert '\n' not in str(caught.value) and '--overwrite' in str(caught.value)
    assert {path.name: path.stat().st_ino for path in folder.glob('*-of-?????')} == before, (
        'finished work was lost'
    )
    directory = run(tmp_path, '--overwrite')
    assert open_dataset(NAME, tmp_path, 'val').made_with['decoder'] == OTHER
    assert not any((directory / name).stat().st_ino == number for name, number in before.items())


@pytest.mark.slow
def test_slices_of_two_decoders_are_not_put_together(tmp_path, another_decoder):
    run(tmp_path, '--shards=0/2')
    another_decoder(True)
    run(tmp_path, '--shards=1/2')  # a slice of its own, on a machine that has another version
    for other in (False, True):
        another_decoder(other)
        with pytest.raises(
            ValueError,
            match='3 shards were made with .*, 2 shards were made with .*, and their pixels differ',
        ):
            run(tmp_path, '--finish')
    another_decoder(False)
    run(tmp_path, '--shards=1/2', '--overwrite')
    another_decoder(True)  # a machine that only ends the build decodes nothing
    run(tmp_path, '--finish')
    assert (
        open_dataset(NAME, tmp_path, 'test').made_with['decoder']
        == video_files.decoder_generation()
    )


@pytest.mark.slow
def test_shards_that_do_not_say_what_made_them_are_made_again(tmp_path):
    run(tmp_path, '--shards=0/1')
    folder = tmp_path / NAME / 'incomplete'
    for path in folder.glob('*.json'):
        note = json.loads(path.read_text())
        del note['made_with']
        path.write_text(json.dumps(note))
    before = {path.name: path.stat().st_ino for path in folder.glob('*-of-?????')}
    with pytest.raises(
        ValueError, match='does not say which decoder made its pixels .*without --finish'
    ):
        run(tmp_path, '--finish')
    directory = run(tmp_path)
    assert before and not any(
        (directory / name).stat().st_ino == number for name, number in before.items()
    )


def test_jpeg_files_need_no_decoder(tmp_path):
    frames = VideoSource('a/b', 0, FrameFolder(str(tmp_path)), 'b')
    absent = VideoSource('a/c', 0, None, 'c')
    made = video_builder._made_with(Shard('train', 0, 1, 'name', (frames, absent), ''))
    assert made['decoder'] is None and 'av' not in made
    decoded = video_builder._made_with(
        Shard('train', 0, 1, 'name', (frames, VideoSource('a/d', 0, 'd.mp4', 'd')), '')
    )
    assert decoded['decoder'] == video_files.decoder_generation()
    # As a benchmark of which some videos are JPEG files.
    assert video_builder._one_decoder([made, decoded]) == decoded
    assert video_builder._one_decoder([made, made]) == made


def test_versions_of_one_generation_are_all_named():
    one, two = ({'decoder': 'av 19', 'av': version} for version in ('19.0.1', '19.0.2'))
    assert video_builder._one_decoder([two, one, two]) == {
        'decoder': 'av 19',
        'av': '19.0.1, 19.0.2',
    }
