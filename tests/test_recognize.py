"""The command `recognize`: what it prints and writes, long recordings, and wrong input."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_run import random_variables, tiny_config

from fsar_jax import recognize
from fsar_jax.data.frames import encode_jpeg
from fsar_jax.ingest.clip_folders import list_clips
from fsar_jax.ingest.records import RecordSettings
from fsar_jax.ingest.video_files import frames_at, open_recording, write_video
from fsar_jax.learner import create_learner
from fsar_jax.recognition import recognizer
from fsar_jax.recognition.answers import Window
from fsar_jax.recognition.models import Model, PretrainedFeatures
from fsar_jax.recognition.timelines import ahead, frame_times, merged, window_starts
from fsar_jax.training.state import example_episode

COLOURS = {'red': (220, 30, 30), 'green': (30, 220, 30), 'blue': (30, 30, 220)}


def frames_of(name, count, seed=0):
    noise = np.random.default_rng(seed).normal(0, 10, (count, 32, 40, 3))
    return np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """examples/<class>/: two .mp4 each, but of blue one video and one folder of frames; new/: a
    clip of each class as .avi, .mp4 and frames, a text, and a broken file."""
    folder = tmp_path_factory.mktemp('recognize')
    for name in COLOURS:
        (folder / 'examples' / name).mkdir(parents=True)
        write_video(folder / 'examples' / name / '1.mp4', frames_of(name, 12, 1))
    for name in ('red', 'green'):
        write_video(folder / 'examples' / name / '2.mp4', frames_of(name, 9, 2))
    for place in ('examples/blue/frames', 'new/of_blue'):
        (folder / place).mkdir(parents=True)
        for i, frame in enumerate(frames_of('blue', 11, len(place))):
            (folder / place / f'{i}.jpg').write_bytes(encode_jpeg(frame))
    write_video(folder / 'new' / 'of_red.avi', frames_of('red', 20, 3))
    write_video(folder / 'new' / 'of_green.mp4', frames_of('green', 3, 3))
    (folder / 'new' / 'broken.mp4').write_bytes(b'not a video at all')
    (folder / 'new' / 'notes.txt').write_text('of the day')
    return folder


@pytest.fixture(scope='module')
def features():
    config = tiny_config('protonet', {'data.sampling': 'segment', 'data.flip': False})
    return model_of(config, PretrainedFeatures)


def model_of(config, kind):
    learner = create_learner(config.model)
    variables = random_variables(learner, *example_episode(config))
    records = RecordSettings(short_side=32, min_frames=1)
    return kind(learner, variables, config, records, '', 'features of the tests')


@pytest.fixture(autouse=True)
def no_download(features, monkeypatch):
    monkeypatch.setattr(recognizer, 'load_model', lambda workdir: features)


def run(*arguments, capsys):
    recognize.main([*map(str, arguments), '--processes=0'])
    return capsys.readouterr()


def test_it_prints_a_row_per_clip_and_writes_json_and_a_page(folder, tmp_path, capsys):
    page, answers = tmp_path / 'page.html', tmp_path / 'answers.json'
    printed = run(
        f'--examples={folder}/examples', f'--clips={folder}/new', f'--out={page}',
        f'--json={answers}', capsys=capsys,
    )  # fmt: skip
    rows = {line.split()[0]: line.split()[1:] for line in printed.out.splitlines() if line}
    assert rows['of_red.avi'][0] == 'red' and rows['of_green.mp4'][0] == 'green'
    assert rows['of_blue'][0] == 'blue' and rows['of_blue'][1].endswith('%')
    assert rows['broken.mp4'][:4] == ['cannot', 'be', 'read:', 'not']
    assert rows['clip'] == ['answer', 'probability', 'score', 'runner-up', 'margin']
    assert 'examples: blue 2, green 2, red 2' in printed.out
    assert 'Expected accuracy on these classes: 100%' in printed.out
    assert "notes.txt is left out: a '.txt' file" in printed.err
    content = json.loads(answers.read_text())
    found = {pathlib.Path(a['clip']).name: a for a in content['answers']}
    assert found['of_red.avi']['label'] == 'red' and 'error' in found['broken.mp4']
    assert sum(found['of_red.avi']['probabilities'].values()) == pytest.approx(1)
    assert content['expected_accuracy'] == 1 and content['model']['preprocessing']['frames'] == 4
    assert 'of_green.mp4' in page.read_text()


def test_saved_examples_are_taken_up_and_added_to(folder, tmp_path, capsys):
    saved = tmp_path / 'mine.safetensors'
    run(f'--examples={folder}/examples', f'--save={saved}', capsys=capsys)
    assert load_file(saved)['embedding/frames'].shape[:2] == (6, 4)
    (tmp_path / 'more' / 'grey').mkdir(parents=True)
    write_video(tmp_path / 'more' / 'grey' / '1.mp4', np.full((9, 32, 40, 3), 128, np.uint8))
    printed = run(
        f'--load={saved}', f'--examples={tmp_path}/more', '--clips', folder / 'new/of_red.avi',
        capsys=capsys,
    )  # fmt: skip
    assert 'examples: blue 2, green 2, red 2, grey 1' in printed.out
    assert any(line.split()[:2] == ['of_red.avi', 'red'] for line in printed.out.splitlines())


def test_only_saved_examples_are_written_over(folder, tmp_path, capsys):
    exported = tmp_path / 'model.safetensors'
    save_file({'x': np.zeros(3, np.float32)}, exported)
    before = exported.read_bytes()
    with pytest.raises(ValueError, match='exists and holds something else: name another file'):
        run(f'--examples={folder}/examples', f'--save={exported}', capsys=capsys)
    assert exported.read_bytes() == before
    for _ in range(2):
        run(f'--examples={folder}/examples', f'--save={tmp_path}/mine.safetensors', capsys=capsys)


def test_files_that_are_no_clips_are_one_note(folder, tmp_path, capsys):
    (tmp_path / 'new').mkdir()
    for number in range(30):
        (tmp_path / 'new' / f'{number:02}.txt').write_text('')
    write_video(tmp_path / 'new' / 'red.mp4', frames_of('red', 9, 0))
    printed = run(f'--examples={folder}/examples', f'--clips={tmp_path}/new', capsys=capsys)
    (line,) = [line for line in printed.err.splitlines() if '.txt' in line]
    assert line.startswith('note: ') and "and 25 more are left out: a '.txt' file" in line


# ── Long recordings ───────────────────────────────────────────────────────────────────────────────


def test_the_timeline_finds_when_each_action_is(folder, tmp_path, capsys):
    """Ten seconds of red, six of blue, four of green; segments end within half a window of that."""
    parts = [frames_of(name, 5 * s, 7) for name, s in (('red', 10), ('blue', 6), ('green', 4))]
    write_video(tmp_path / 'long.mp4', np.concatenate(parts), fps=5)
    run(
        f'--examples={folder}/examples', f'--clips={tmp_path}/long.mp4', '--window=2s',
        '--stride=500ms', f'--json={tmp_path}/t.json', f'--out={tmp_path}/t.html', capsys=capsys,
    )  # fmt: skip
    [timeline] = json.loads((tmp_path / 't.json').read_text())['timelines']
    assert timeline['duration'] == pytest.approx(20) and len(timeline['windows']) == 37
    assert [s['label'] for s in timeline['segments']] == ['red', 'blue', 'green']
    bounds = [(s['start'], s['end']) for s in timeline['segments']]
    np.testing.assert_allclose(bounds, [(0, 10), (10, 16), (16, 20)], atol=0.5)
    assert timeline['windows'][-1]['end'] == pytest.approx(20)
    assert 'long.mp4' in (tmp_path / 't.html').read_text()


@pytest.mark.parametrize('kind', [Model, PretrainedFeatures])
def test_a_window_over_the_whole_is_the_clip_itself(folder, tmp_path, monkeypatch, kind, features):
    """64 frames, as many as are stored of a clip: the same frames, so the same probabilities."""
    model = model_of(features.config, kind)
    monkeypatch.setattr(recognizer, 'load_model', lambda workdir: model)
    mixed = [frames_of(name, n, 9) for name, n in (('red', 30), ('blue', 34))]
    write_video(tmp_path / 'clip.mp4', np.concatenate(mixed), fps=16)
    found = recognizer.Recognizer().fit(folder / 'examples')
    [window] = found.timeline(tmp_path / 'clip.mp4', window=9).windows
    expected = found.predict_proba(tmp_path / 'clip.mp4')[0]
    np.testing.assert_allclose(list(window.probabilities.values()), expected, rtol=1e-4)


def test_frames_are_those_shown_at_a_time(tmp_path):
    """Frame t has the grey 4 t; ten frames a second."""
    frames = np.broadcast_to((4 * np.arange(40))[:, None, None, None], (40, 32, 32, 3))
    write_video(tmp_path / 'a.mp4', frames.astype(np.uint8), fps=10)
    recording = open_recording(tmp_path / 'a.mp4')
    assert recording.seconds == pytest.approx(4)
    times = np.array([0, 0.05, 0.11, 0.95, 2.0, 2.01, 3.99, 9])
    shown = [frame.mean() / 4 for frame in frames_at(recording, times, lambda frame: frame)]
    np.testing.assert_allclose(shown[:4] + shown[5:], [0, 0, 1, 9, 20, 39, 39], atol=0.5)


def test_windows_start_at_every_stride_and_the_last_ends_with_the_recording():
    assert window_starts(10.0, 4.0, 2.0).tolist() == [0, 2, 4, 6]
    assert window_starts(10.5, 4.0, 2.0).tolist() == [0, 2, 4, 6, 6.5]
    assert window_starts(3.0, 4.0, 1.0).tolist() == [0]


def test_windows_share_the_frames_at_the_same_time():
    times, rows = frame_times(np.array([0.0, 1.0]), 2.0, np.array([0.25, 0.75]))
    np.testing.assert_allclose(times, [0.5, 1.5, 2.5])
    assert [row.tolist() for row in rows] == [[0, 1], [1, 2]]


def test_segments_meet_half_way_between_the_windows():
    window = lambda start, label: Window(start, start + 4, label, 'a', label is None, 0.5, {})
    segments = merged([window(0, 'a'), window(1, 'a'), window(2, None), window(3, 'b')], 7.0)
    assert [(s.start, s.end, s.label) for s in segments] == [
        (0, 3.5, 'a'),
        (3.5, 4.5, None),
        (4.5, 7, 'b'),
    ]


def test_an_error_of_the_other_thread_comes_after_its_items():
    def items():
        yield from range(3)
        raise OSError('gone')

    taken = []
    with pytest.raises(OSError, match='gone'):
        for item in ahead(items()):
            taken.append(item)
    assert taken == [0, 1, 2]


# ── Wrong input ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    'arguments, words',
    [
        ([], 'give --examples=DIR with <class>/<clip>'),
        (['--examples=E'], 'give the clips to recognise'),
        (['--examples=nowhere', '--clips=N'], 'nowhere does not exist: give a folder'),
        (['--examples=N/notes.txt', '--clips=N'], 'notes.txt is a file: give a folder'),
        (['--examples=EMPTY', '--clips=N'], 'holds nothing: put the examples of each class'),
        (['--examples=E/red', '--clips=N'], '2 files and no class folder'),
        (['--examples=ONE', '--clips=N'], '1 class to choose from'),
        (['--examples=SPLITS', '--clips=N'], 'holds the splits test, train: give one of them'),
        (['--examples=NOCLIP', '--clips=N'], "class 'b' has no clip (a.txt: a '.txt' file)"),
        (['--examples=E', '--clips=nowhere'], 'nowhere: there is no such file or folder'),
        (['--examples=E', '--clips=EMPTY'], 'holds no clip (it is empty)'),
        (['--examples=E', '--clips=SOUND'], "holds no clip (a.mp3: a '.mp3' file)"),
        (['--examples=E', '--clips=SOUND/a.mp3'], 'none of the 1 clips could be read'),
        (['--examples=E', '--clips=N', '--stride=1s'], '--stride goes with --window'),
        (['--examples=E', '--clips=N', '--window=4 hours'], 'is no length of time'),
        (['--examples=nowhere', '--clips=N', '--window=0.001ms'], 'window=1e-06 must be a number'),
        (['--examples=E', '--clips=N', '--window=4', '--stride=1ms'], 'stride=0.001 must be'),
        (['--examples=E', '--clips=N/of_blue', '--window=4s'], 'none of the 1 clips'),
        (['--examples=E', '--clips=N', '--unknown-below=40'], 'a probability from 0 to 1'),
        (['--examples=E', '--clips=N', '--out=nowhere/a.html'], 'in a folder that does not exist'),
        (['--examples=E', '--clips=N', '--out=a.pdf'], 'does not end in .html'),
        (['--load=N/notes.txt', '--clips=N'], 'notes.txt'),
        (['--examples=E', '--clips=N', '--workdir=gs://b/run'], 'are not read or written here'),
    ],
)
def test_wrong_input_is_one_line(folder, tmp_path, arguments, words, capsys):
    for place in ('EMPTY', 'ONE/a', 'SPLITS/train', 'SPLITS/test', 'SOUND', 'NOCLIP/a', 'NOCLIP/b'):
        (tmp_path / place).mkdir(parents=True)
    for place in ('ONE/a', 'NOCLIP/a'):
        write_video(tmp_path / place / '1.mp4', frames_of('red', 9))
    (tmp_path / 'NOCLIP/b/a.txt').touch()
    (tmp_path / 'SOUND/a.mp3').write_bytes(b'ID3' + bytes(100))
    places = {'E': folder / 'examples', 'N': folder / 'new'}
    expand = lambda value: str(
        places[value.split('/')[0]] / value.partition('/')[2]
        if value.split('/')[0] in places
        else tmp_path / value
        if value.split('/')[0].isupper()
        else value
    )
    given = [f'{flag}={expand(value)}' for flag, _, value in (a.partition('=') for a in arguments)]
    with pytest.raises((ValueError, OSError)) as raised:
        recognize.main(given + ['--processes=0'] * bool(given))
    assert words in str(raised.value) and '\n' not in str(raised.value)


def test_no_two_outputs_are_one_file_and_none_is_a_clip(folder, tmp_path):
    given = [f'--examples={folder}/examples', f'--clips={folder}/new']
    (tmp_path / 'link').symlink_to(tmp_path)
    same = [f'--out={tmp_path}/a.html', f'--json={tmp_path}/link/a.html']
    with pytest.raises(ValueError, match='--out and --json both name .*: give each its own file'):
        recognize.main(given + same)
    clip = folder / 'new/of_green.mp4'
    before = clip.read_bytes()
    with pytest.raises(ValueError, match='--clips and --json both name .*of_green.mp4'):
        recognize.main([*given, f'--json={clip}'])
    assert clip.read_bytes() == before
    model = tmp_path / 'a.safetensors'
    model.touch()
    with pytest.raises(ValueError, match='--load and --json both name'):
        recognize.main([f'--load={model}', given[1], f'--json={model}'])
    example = folder / 'examples/red/1.mp4'
    frame = next((folder / 'new/of_blue').iterdir())
    for output, words in (
        (example, '--examples and --json both'),
        (frame, 'is a frame of --clips'),
    ):
        before = output.read_bytes()
        with pytest.raises(ValueError, match=words):
            recognize.main([*given, f'--json={output}'])
        assert output.read_bytes() == before
    # What else lies there may be written again, and loaded examples may be written back.
    shutil.copytree(folder / 'examples', tmp_path / 'examples')
    saved = f'--save={tmp_path}/examples/x.safetensors'
    for _ in range(2):
        recognize.main([f'--examples={tmp_path}/examples', saved, '--processes=0'])
    recognize.main([f'--load={tmp_path}/examples/x.safetensors', saved, '--processes=0'])
    for flag in ('save', 'json'):
        with pytest.raises(ValueError, match=f'--workdir and --{flag} both name'):
            recognize.main([*given, f'--workdir={model}', f'--{flag}={model}'])


def test_clips_of_relative_and_absolute_paths(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    clips = ['new/of_red.avi', folder / 'new/of_green.mp4']
    printed = run(f'--examples={folder}/examples', '--clips', *clips, capsys=capsys)
    rows = {line.split()[0]: line.split()[1] for line in printed.out.splitlines() if line}
    assert rows['new/of_red.avi'] == 'red' and 'green' in rows.values()


def test_flags_that_are_given_twice_add_up(folder, tmp_path, capsys):
    shutil.copytree(folder / 'examples' / 'blue', tmp_path / 'more' / 'blue 2')
    (tmp_path / 'more' / 'blue 2' / '1.mp4').unlink()
    shutil.copytree(folder / 'examples', tmp_path / 'first')
    for name in ('blue', 'red'):
        shutil.rmtree(tmp_path / 'first' / name)
    printed = run(
        f'--examples={tmp_path}/first', f'--examples={tmp_path}/more',
        f'--clips={folder}/new/of_red.avi', f'--clips={folder}/new/of_green.mp4', capsys=capsys,
    )  # fmt: skip
    assert 'examples: green 2, blue 2 1' in printed.out
    assert 'of_red.avi ' in printed.out and 'of_green.mp4 ' in printed.out


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root reads all')
def test_a_folder_that_cannot_be_listed_is_called_that(tmp_path):
    (tmp_path / 'sub').mkdir(mode=0)
    with pytest.raises(ValueError, match='cannot be listed'):
        list_clips([tmp_path])


def test_a_class_folder_whose_name_is_no_text(folder, tmp_path, capsys):
    shutil.copytree(folder / 'examples', tmp_path / 'examples')
    (tmp_path / 'examples' / 'red').rename(tmp_path / 'examples' / os.fsdecode(b'caf\x82'))
    with pytest.raises(ValueError, match=r"name of class 'caf\\udc82' is not UTF-8: rename it"):
        run(f'--examples={tmp_path}/examples', f'--clips={folder}/new', capsys=capsys)


def test_linked_folders_among_the_clips_are_followed_but_not_in_circles(folder, tmp_path):
    (tmp_path / 'clips').mkdir()
    (tmp_path / 'clips' / 'linked').symlink_to(folder / 'new')
    (tmp_path / 'clips' / 'again').symlink_to(tmp_path / 'clips')
    clips, left_out = list_clips([tmp_path / 'clips'])
    names = sorted(pathlib.Path(clip).relative_to(tmp_path).as_posix() for clip in clips)
    files = ('broken.mp4', 'of_blue', 'of_green.mp4', 'of_red.avi')
    assert names == [f'clips/linked/{name}' for name in files]
    assert (str(tmp_path / 'clips' / 'again'), 'a link to a folder that it lies in') in left_out


def test_a_folder_of_frames_has_no_times(folder, capsys):
    with pytest.raises(ValueError, match='none of the 1 clips could be read'):
        run(
            f'--examples={folder}/examples', f'--clips={folder}/new/of_blue', '--window=1s',
            capsys=capsys,
        )  # fmt: skip
    assert 'a folder of frames has no times: give the video itself' in capsys.readouterr().out


@pytest.mark.parametrize(
    'text, expected', [('4s', 4), ('500ms', 0.5), ('1.5min', 90), ('2', 2), (None, None)]
)
def test_lengths_of_time(text, expected):
    assert recognize.seconds(text, '--window') == expected


def test_the_command_file_starts_without_jax():
    """The processes that read videos import it again."""
    code = 'import sys, fsar_jax.recognize; sys.exit("jax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
