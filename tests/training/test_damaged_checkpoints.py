"""Whatever happens to the files of a checkpoint, what comes back is what was saved, or the damage
is named and another one counts."""

import errno
import hashlib
import json
import os
import pathlib
import resource
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import unicodedata

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from test_checkpoints import assert_same, make_state
from tiny_run import CPU, REPOSITORY, finish

from fsar_jax.named_arrays import by_name, state_hash
from fsar_jax.training import checkpoint_files, orbax_files
from fsar_jax.training.checkpoint_arrays import without_key
from fsar_jax.training.checkpoint_files import (
    CHECKSUMS_FILE,
    CONFIG_FILE,
    DamagedCheckpoint,
    saved_settings,
)
from fsar_jax.training.checkpoints import Checkpoints
from fsar_jax.training.orbax_files import check_directory, ocp

LIKE = jax.eval_shape(lambda: make_state(0))
ACCURACY = {1: 0.7, 2: 0.5, 3: 0.9}  # the newest is the best, too


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Checkpoints of steps 1 to 3."""
    directory = tmp_path_factory.mktemp('saved') / 'checkpoints'
    with Checkpoints(directory, config=ml_collections.ConfigDict({'seed': 0})) as checkpoints:
        for step, accuracy in ACCURACY.items():
            checkpoints.save(step, make_state(step), {'val_accuracy': accuracy})
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / 'checkpoints')


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def content_of(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob('*'))
        if path.is_file()
    }


def replaced_by(make):
    def damage(path):
        path.unlink()
        make(path)

    return damage


FILE_DAMAGE = {
    'flipped': lambda path: flip(
        path, int(hashlib.sha256(str(path.name).encode()).hexdigest(), 16) % 10_000
    ),
    'cut': lambda path: path.write_bytes(path.read_bytes()[:-1]),
    'empty': lambda path: path.write_bytes(b''),
    'missing': lambda path: path.unlink(),
    'a directory': replaced_by(lambda path: path.mkdir()),
    'a pipe': replaced_by(os.mkfifo),
}


def test_damage_to_any_file_is_named_and_the_checkpoint_before_counts(saved, tmp_path, capfd):
    """Of Orbax, which reads the damaged files of some without a word and prints tracebacks of
    others, nothing is heard."""
    files = sorted(
        path.relative_to(saved)
        for path in (saved / '3').rglob('*')
        if path.is_file() and path.stat().st_size
    )
    assert (
        len(files) >= 8
        and any(path.name == CHECKSUMS_FILE for path in files)
        and any(path.name == '_METADATA' for path in files)
    )
    kinds = list(FILE_DAMAGE)
    for index, file in enumerate(files):
        for kind in ('flipped', kinds[1 + index % (len(kinds) - 1)]):
            copy = shutil.copytree(saved, tmp_path / f'{index} {kind}')
            FILE_DAMAGE[kind](copy / file)
            with Checkpoints(copy) as checkpoints:
                state, step = checkpoints.resume(LIKE)
                assert checkpoints.steps == [1, 2] and checkpoints.best_step == 1
            out, err = capfd.readouterr()
            assert step == 2, (file, kind)
            assert_same(state, make_state(2))
            assert (
                out.startswith(f'note: checkpoint {copy}/3 is damaged (')
                and out.count('\n') == 1
                and err == ''
            ), (file, kind)


@pytest.mark.parametrize(
    'make',
    [
        lambda path: path.write_text('x'),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to('nowhere'),
        os.mkfifo,
        lambda path: (path / 'state').mkdir(parents=True),
    ],
    ids=['a file', 'empty', 'a dead link', 'a pipe', 'of empty directories'],
)
def test_a_step_that_is_no_checkpoint(make, copy, capfd):
    shutil.rmtree(copy / '3')
    make(copy / '3')
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.resume(LIKE)[1] == 2
        assert checkpoints.save(3, make_state(3), {'val_accuracy': 0.9})
    out, err = capfd.readouterr()
    assert (
        out.startswith(f'note: checkpoint {copy}/3 is damaged (')
        and out.count('\n') == 1
        and err == ''
    )
    with Checkpoints(copy, read_only=True) as checkpoints:
        assert_same(checkpoints.restore(LIKE)[0], make_state(3))
    assert sorted(os.listdir(copy)) == ['1', '2', '3', CONFIG_FILE]


def test_names_that_are_no_steps_are_left_alone(copy, capfd):
    for name in ('007', '²', '3.old', '4.5', '-1', 'five'):
        (copy / name).mkdir()
    for name in (
        '4.orbax-checkpoint-tmp',
        '4.orbax-checkpoint-tmp-17',
        '4.unfinished',
        '4.unfinished-2',
        '4.unfinished.orbax-checkpoint-tmp',
    ):
        (copy / name).mkdir()  # of saves that were killed, now and before
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.resume(LIKE)[1] == 3
    assert sorted(os.listdir(copy)) == sorted(
        ['-1', '007', '1', '2', '3', '3.old', '4.5', 'five', '²', CONFIG_FILE]
    )
    assert capfd.readouterr() == ('', '')


def test_where_all_are_damaged_nothing_starts_afresh(copy):
    for step in ACCURACY:
        flip(next((copy / str(step) / 'state' / 'd').iterdir()), 1000)
    before = content_of(copy)
    message = (
        rf'^all checkpoints in {copy} are damaged \(steps 1, 2, 3\): train again in another '
        r'--workdir, or put back a copy of them$'
    )
    with Checkpoints(copy) as checkpoints, pytest.raises(DamagedCheckpoint, match=message):
        checkpoints.resume(LIKE)
    with (
        Checkpoints(copy, read_only=True) as checkpoints,
        pytest.raises(DamagedCheckpoint, match=message),
    ):
        checkpoints.restore_best(LIKE)
    for step in ACCURACY:
        (copy / str(step) / CHECKSUMS_FILE).write_text('{}')
    with pytest.raises(DamagedCheckpoint, match=message):
        Checkpoints(copy, read_only=True)
    assert {
        **content_of(copy),
        **{name: before[name] for name in before if CHECKSUMS_FILE in name},
    } == before


def test_a_damaged_best_gives_way_to_the_next_best_and_is_named(copy, capfd):
    before = content_of(copy)
    flip(copy / '3' / 'state' / '_METADATA', 1000)  # its metrics are known
    with Checkpoints(copy, read_only=True) as checkpoints:
        assert checkpoints.best_step == 3
        state, metrics = checkpoints.restore_best(LIKE)
        assert_same(state, make_state(1))
        assert (
            metrics == {'val_accuracy': 0.7}
            and checkpoints.best_step == 1
            and checkpoints.damaged_and_better == [3]
        )
        with pytest.raises(
            FileNotFoundError, match=r'no checkpoint of step 3 in .* \(there: 1, 2\)'
        ):
            checkpoints.restore(LIKE, 3)
    flip(copy / '2' / CHECKSUMS_FILE, 1000)  # its metrics are not: it may have been better
    with Checkpoints(copy, read_only=True) as checkpoints:
        checkpoints.restore_best(LIKE)
        assert checkpoints.best_step == 1 and checkpoints.damaged_and_better == [2, 3]
    assert (
        capfd.readouterr().out.count(
            '/3 is damaged (state/_METADATA is not what was written): it does not count\n'
        )
        == 2
    )
    assert {name for name, content in content_of(copy).items() if before[name] != content} == {
        '3/state/_METADATA',
        f'2/{CHECKSUMS_FILE}',
    }


def test_one_that_was_asked_for_is_named(copy):
    (copy / '2' / 'state' / 'manifest.ocdbt').unlink()
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(
            DamagedCheckpoint,
            match=rf'^checkpoint {copy}/2 is damaged \(state/manifest.ocdbt is missing\)$',
        ):
            checkpoints.restore(LIKE, 2)
        assert checkpoints.steps == [1, 3]


def test_keep_counts_good_ones_and_the_damaged_one_stays_until_its_step_is_whole_again(
    copy, monkeypatch
):
    flip(copy / '2' / 'state' / '_METADATA', 1000)
    flip(copy / '3' / 'state' / '_METADATA', 1000)
    with Checkpoints(copy, keep=2) as checkpoints:
        assert checkpoints.resume(LIKE)[1] == 1
        with monkeypatch.context() as patch:
            patch.setattr(
                checkpoint_files,
                'write_whole',
                lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
            )
            checkpoints.save(3, make_state(3), {'val_accuracy': 0.9})
            with pytest.raises(OSError, match='No space left on device'):
                checkpoints.wait()
        assert checkpoints.steps == [1] and sorted(os.listdir(copy)) == ['1', '2', '3', CONFIG_FILE]
        for step in (3, 4, 5):
            assert checkpoints.save(step, make_state(step), {'val_accuracy': 0.1})
        checkpoints.wait()
        assert checkpoints.steps == [1, 4, 5]  # two, and the best
        assert sorted(os.listdir(copy)) == ['1', '2', '4', '5', CONFIG_FILE]


def test_a_state_that_is_not_the_one_saved_is_damage(copy):
    """Also where the files are right: the checksum of the state is taken before Orbax has it, and
    after."""
    record = json.loads((copy / '3' / CHECKSUMS_FILE).read_text())['record']
    record['state'] = json.loads((copy / '2' / CHECKSUMS_FILE).read_text())['record']['state']
    (copy / '3' / CHECKSUMS_FILE).write_bytes(checkpoint_files.sealed(record))
    with (
        Checkpoints(copy) as checkpoints,
        pytest.raises(DamagedCheckpoint, match='the checksum of the state is another one'),
    ):
        checkpoints.restore(LIKE, 3)


def test_the_checksum_covers_every_array_and_name():
    state = {
        name: np.asarray(leaf)
        for name, leaf in by_name(jax.tree.map(without_key, make_state(1))).items()
    }
    sums = {state_hash(state)}
    for name, leaf in state.items():
        other = leaf.copy().reshape(-1)
        other.view(np.uint8)[-1] ^= 1
        sums |= {
            state_hash(state | {name: other.reshape(leaf.shape)}),
            state_hash(state | {name: leaf[None]}),
        }
        sums.add(
            state_hash(
                {key: value for key, value in state.items() if key != name} | {name + '2': leaf}
            )
        )
    assert len(sums) == 1 + 3 * len(state) and len(state) >= 8


def test_checkpoints_from_before_checksums_are_taken_with_a_note(tmp_path, capfd):
    state = {'params': {'kernel': jnp.arange(6.0).reshape(2, 3)}, 'step': jnp.int32(4)}
    with ocp.training.Checkpointer(tmp_path) as before:
        before.save_checkpointables(4, {'state': state}, metrics={'val_accuracy': 0.5})
        before.save_checkpointables(6, {'state': state})
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.steps, checkpoints.best_step) == ([4, 6], 4)
        restored, metrics = checkpoints.restore(state, 4)
        assert_same(restored, state)
        assert metrics == {'val_accuracy': 0.5}
        assert checkpoints.resume(state)[1] == 6
    out, err = capfd.readouterr()
    assert (
        f'note: checkpoint {tmp_path}/4 is from before checksums were kept: taken as it is\n' in out
        and err == ''
    )
    (tmp_path / '6' / 'state' / '_METADATA').unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.resume(state)[1] == 4


def test_threads_and_open_files_do_not_grow_with_the_saves(tmp_path):
    """A thread and three files a save ended a run after 330 checkpoints. A few come and go, with
    the garbage collector."""
    open_now = lambda: np.array(
        [
            threading.active_count(),
            len(os.listdir('/proc/self/fd')) if os.path.exists('/proc/self/fd') else 0,
        ]
    )
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in range(1, 21):
            checkpoints.save(step, {'x': jnp.float32(step)})
            checkpoints.wait()
            if step == 5:
                before = open_now()
        assert (open_now() - before < [8, 12]).all()  # not 15 and 45


def test_a_save_that_fails_is_one_line_and_the_next_succeeds(copy, capfd):
    """The system refuses to write more than 100 kB to a file, in the threads of Orbax and
    TensorStore."""
    like = {
        str(index): np.zeros(200_000, np.float32) for index in range(40)
    }  # many: some still write when the first has failed
    large = {
        name: np.random.default_rng(0).normal(size=200_000).astype(np.float32) for name in like
    }
    shutil.rmtree(copy)
    with Checkpoints(copy) as checkpoints:
        checkpoints.save(1, like)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(
                OSError,
                # the second where a thread that reads such a file back is the first to fail
                match=rf'the checkpoint of step 2 cannot be written to {copy} '
                r'\((File too large|[^\n]*(local file|NOT_FOUND)[^\n]*)\); '
                r'those of steps 1 are whole',
            ):
                checkpoints.save(2, large)
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.steps == [1]
        assert checkpoints.save(2, large)
    assert capfd.readouterr() == ('', '') and sorted(os.listdir(copy)) == ['1', '2']
    with Checkpoints(copy, read_only=True) as checkpoints:
        assert_same(checkpoints.restore(like)[0], large)


def test_a_full_disk_is_named_whatever_surrounds_its_words():
    words = 'RESOURCE_EXHAUSTED: Error writing "' + 300 * 'x' + '": No space left on device [errno]'
    for kind in (ValueError, RuntimeError, OSError):
        assert checkpoint_files.reason(kind(words)) == 'No space left on device'


def test_a_kill_between_two_renames_loses_nothing(copy, monkeypatch):
    rename = pathlib.Path.rename

    class Kill(BaseException):
        pass

    def killed(path, to):
        if '.unfinished-' in path.name and to.name == '3':
            raise Kill
        return rename(path, to)

    # As when its accuracy is added to a step.
    manifest = checkpoint_files.read_manifest(copy / '3')
    monkeypatch.setattr(Checkpoints, 'is_unscored', lambda self, step: step == 3)
    monkeypatch.setattr(pathlib.Path, 'rename', killed)
    with pytest.raises(Kill), Checkpoints(copy) as checkpoints:
        checkpoints.save(3, make_state(3), {'val_accuracy': 1.0})
        checkpoints.wait()
    monkeypatch.undo()
    assert not (copy / '3').exists()
    (copy / 'mine.damaged').write_text('no step')
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.latest_step == 3
        assert_same(checkpoints.restore(LIKE)[0], make_state(3))
    assert checkpoint_files.read_manifest(copy / '3') == manifest
    assert (copy / 'mine.damaged').exists()


def test_late_threads_of_a_failed_save_do_not_stop_the_next(copy, monkeypatch):
    save_async, drafts = orbax_files.save_async, []

    def save(draft, *args, **kwargs):
        for earlier in drafts:  # a thread of the failed save writes one more file
            late = earlier.with_name(earlier.name + orbax_files.UNFINISHED) / 'state'
            late.mkdir(parents=True)
            (late / 'd').write_bytes(b'late')
        drafts.append(draft)
        if len(drafts) == 1:
            raise OSError('no')
        return save_async(draft, *args, **kwargs)

    monkeypatch.setattr(orbax_files, 'save_async', save)
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(OSError, match='the checkpoint of step 4 cannot be written'):
            checkpoints.save(4, make_state(4))
        assert checkpoints.save(4, make_state(4))
        checkpoints.wait()
        assert sorted(os.listdir(copy)) == ['1', '2', '3', '4', CONFIG_FILE]
        assert_same(checkpoints.restore(LIKE)[0], make_state(4))


def test_a_directory_that_vanishes_under_a_run_is_one_line(copy, capfd):
    with Checkpoints(copy) as checkpoints:
        shutil.rmtree(copy)
        copy.write_text('a file')
        with pytest.raises(
            OSError,
            match=rf'the checkpoint of step 4 cannot be written to {copy} \(.*Not a directory',
        ):
            checkpoints.save(4, make_state(4))
            checkpoints.wait()
    assert capfd.readouterr() == ('', '')


def test_what_cannot_be_written_is_told_before_training(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        Checkpoints(tmp_path / 'file' / 'checkpoints')
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match=f'No space left on device: .*{tmp_path}'):
        Checkpoints(tmp_path)
    assert os.listdir(tmp_path) == ['file']


@pytest.mark.slow
def test_odd_names_work(tmp_path, monkeypatch):
    """Every name is another run's: none reads or drops the checkpoints of the others."""
    names = [
        '{a,b}',
        '%20',
        'a b',
        ' lead',
        'trail ',
        '#x',
        'new\nline',
        '\t',
        unicodedata.normalize('NFD', 'é'),
        unicodedata.normalize('NFC', 'é'),
        'trail.',
        '~',
        '-dash',
        'a:b',
        'a|b',
        '"\'',
        '$HOME',
        'a;b',
        'x' * 255,
        '日本',
        '\x1b[31m'.replace('[', ''),
        ']',
        '...',
        '&@=+,',
        '7',
        '7.unfinished',
        '7.orbax-checkpoint-tmp',
    ]
    for value, name in enumerate(names):
        with Checkpoints(tmp_path / name / 'checkpoints') as checkpoints:
            checkpoints.save(7, {'x': jnp.float32(value)})
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'link').symlink_to('日本')
    for value, name in [*enumerate(names), (names.index('日本'), 'link')]:
        with Checkpoints(pathlib.Path(name) / 'checkpoints') as checkpoints:
            state, step = checkpoints.resume({'x': jnp.float32(0)})
        assert (state['x'], step) == (value, 7), name


@pytest.mark.parametrize(
    'name, message',
    [
        ('a[x]', r"has '\[' in it"),
        ('a*', r"has '\*' in it"),
        ('a?', r"has '\?' in it"),
        ('a\\b', 'in it, which Orbax takes'),
        ('gs:', "has ':/' in it"),
        (os.fsdecode(b'\xff'), 'is no UTF-8'),
        ('/'.join(['y' * 200] * 19), 'bytes, checkpoints can lie in paths of 3,800'),
    ],
)
def test_names_to_which_orbax_cannot_write_are_refused_before_training(name, message, tmp_path):
    for refuse in (check_directory, Checkpoints):
        with pytest.raises(ValueError, match=message) as error:
            refuse(tmp_path / name / 'checkpoints')
        assert '\n' not in str(error.value) and str(error.value).isprintable()
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_place_of_the_directory_is_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'link').symlink_to(tmp_path / 'absent')
    for name in ('file', 'link'):
        with pytest.raises(ValueError, match='is a file, or a link to nothing: move it away'):
            check_directory(tmp_path / name)


def test_a_run_that_was_moved_to_an_odd_name_is_still_read(saved, tmp_path):
    for name in ('a[x]', 'a*', 'a?'):
        with Checkpoints(shutil.copytree(saved, tmp_path / name), read_only=True) as checkpoints:
            assert_same(checkpoints.restore_best(LIKE)[0], make_state(3))
    for name in ('a\\b', os.fsdecode(b'\xff')):
        with pytest.raises(ValueError, match='use another --workdir'):
            Checkpoints(shutil.copytree(saved, tmp_path / name), read_only=True)


def test_one_that_the_run_drops_while_it_is_evaluated_is_not_damaged(copy, capfd):
    with Checkpoints(copy, read_only=True) as checkpoints:
        shutil.rmtree(copy / '3')
        assert_same(checkpoints.restore_best(LIKE)[0], make_state(1))
        assert checkpoints.damaged_and_better == [] and capfd.readouterr() == (
            f'note: checkpoint {copy}/3 is gone\n',
            '',
        )


def test_a_pipe_instead_of_the_checksums_is_not_waited_for(copy):
    FILE_DAMAGE['a pipe'](copy / '3' / CHECKSUMS_FILE)
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.steps == [1, 2]


def test_one_without_checksums_is_not_taken_for_one_from_before_them(copy):
    for damage in FILE_DAMAGE.values():
        shutil.copytree(copy / '3', copy / '4')
        (copy / '4' / CHECKSUMS_FILE).unlink()
        damage(copy / '4' / '_CHECKPOINT_METADATA')
        with Checkpoints(copy) as checkpoints:
            assert checkpoints.latest_step == 3
        shutil.rmtree(copy / '4')


@pytest.mark.parametrize(
    'content',
    [b'', b'{"seed": ', b'[]', b'3', b'\xff\xfe{}', b'[' * 100_000],
    ids=['empty', 'cut', 'a list', 'a number', 'no UTF-8', 'lists in lists'],
)
def test_damaged_settings_name_the_file_and_what_to_do(content, copy):
    (copy / CONFIG_FILE).write_bytes(content)
    with pytest.raises(
        ValueError,
        match=rf'^{copy}/config.json is damaged .*: these are the settings of the run; put back a '
        r'copy, or delete',
    ) as error:
        saved_settings(copy)
    assert '\n' not in str(error.value)


def test_settings_are_the_old_or_the_new_never_half(copy, monkeypatch):
    before = (copy / CONFIG_FILE).read_bytes()
    monkeypatch.setattr(
        os,
        'fsync',
        lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    )
    monkeypatch.setattr(checkpoint_files, 'check_writable', lambda _: None)
    with Checkpoints(copy, config=ml_collections.ConfigDict({'seed': 1})) as checkpoints:
        with pytest.raises(OSError, match='No space left on device'):
            checkpoints.save(4, make_state(4))
    assert (copy / CONFIG_FILE).read_bytes() == before and sorted(os.listdir(copy)) == [
        '1',
        '2',
        '3',
        CONFIG_FILE,
    ]


TWO = '''
    import os, pathlib, sys
    import jax, jax.numpy as jnp, numpy as np
    directory, port, index = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    jax.distributed.initialize(f'127.0.0.1:{port}', 2, index)
    from fsar_jax import mesh as meshes
    from fsar_jax.processes import wait_for_all
    from fsar_jax.training import checkpoint_files as files
    from fsar_jax.training.checkpoints import Checkpoints
    mesh = meshes.episode_mesh()

    def state(step):
        values = step + np.arange(4.0, dtype=np.float32)
        rows = jax.make_array_from_callback((4,), meshes.along(mesh, 0), values.__getitem__)
        return {'params': meshes.replicate(mesh, np.full(3, step, np.float32)), 'rows': rows}

    def resumed():
        with Checkpoints(directory) as checkpoints:
            restored, step = checkpoints.resume(state(0))
            for name, leaf in state(step).items():
                assert leaf.sharding == restored[name].sharding
                found = restored[name].addressable_data(0)
                np.testing.assert_array_equal(leaf.addressable_data(0), found)
            checkpoints.save(step + 1, state(step + 1))
            checkpoints.wait()
            return step, checkpoints.steps

    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state(1), {'val_accuracy': 0.5})
        checkpoints.save(2, state(2), {'val_accuracy': 0.4})
    if index == 0:
        path = directory / '2' / 'state' / '_METADATA'
        path.write_bytes(path.read_bytes()[:-1])
    wait_for_all('one is damaged')
    assert resumed() == (1, [1, 2])
    assert resumed() == (2, [1, 2, 3])
    check = files.check_files
    def of_this_process(path, record):
        if index == 1 and path.name == '3':
            raise files.DamagedCheckpoint('checkpoint 3 cannot be read here')
        check(path, record)
    files.check_files = of_this_process                 # as one of them sees it
    assert resumed() == (2, [1, 2, 3])
    files.check_files = check
    def full(path, content):
        raise OSError(28, 'No space left on device')
    files.write_whole, write = full, files.write_whole
    files.check_writable = lambda _: None               # only process 0 writes the record
    try:
        resumed()
        raise AssertionError('the save should have failed')
    except OSError as error:
        print(error)
    files.write_whole = write
    assert resumed() == (3, [1, 2, 3, 4])
'''


@pytest.mark.slow
def test_two_processes_agree_on_what_is_damaged(tmp_path):
    """Each takes part in everything that the other does, or one of them would wait for ever."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    both = [
        subprocess.Popen(
            [sys.executable, '-c', textwrap.dedent(TWO), str(tmp_path), port, str(index)],
            cwd=REPOSITORY,
            env=CPU,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    (first, first_err), (second, second_err) = finish(*both, timeout=120)
    assert [process.returncode for process in both] == [0, 0], (
        first_err[-3000:],
        second_err[-3000:],
    )
    assert (
        first.count('is damaged (state/_METADATA is not what was written): it does not count') == 1
    )
    assert (
        'the checkpoint of step 4 cannot be written' in first and 'No space left on device' in first
    )
    assert 'the checkpoint of step 4 cannot be written' in second and 'another process' in second
    assert 'damaged' not in second
