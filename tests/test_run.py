"""run.sh: which environment it makes, what it builds and what it starts. Python is a stand-in that
writes down its calls."""

import configparser
import re
import shutil
import subprocess
import sys

import pytest
from tiny_run import REPOSITORY

# Says its version, runs code given with -c, makes environments of itself, and writes down
# everything else.
STAND_IN = f'''#!/bin/bash
prelude=''
[ "$1" = -c ] && exec {sys.executable} -c "$prelude$2" "${{@:3}}"
[ "$1" = --version ] && exec echo "Python of $0"
echo "$@" >> calls
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
'''


@pytest.fixture
def checkout(tmp_path):
    """A copy of what run.sh reads, beside a folder of programs with python3."""
    for name in ('configs', 'fsar_jax'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    for name in ('run.sh', 'setup.cfg', 'lock.txt', 'lock-oldest.txt'):
        shutil.copy(REPOSITORY / name, tmp_path)
    add_python(tmp_path, 'python3')
    return tmp_path


def add_python(checkout, name, version=None):
    """A Python on the PATH; with a version (3, 9), one of that version."""
    (checkout / 'programs').mkdir(exist_ok=True)
    program = checkout / 'programs' / name
    program.write_text(
        STAND_IN
        if version is None
        else f'#!/bin/bash\n[ "$1" = --version ] && exec echo Python {version}\nexit 1\n'
    )
    program.chmod(0o755)
    return program


def start(checkout, *arguments, **environment):
    """run.sh to its end; what it called, and the process."""
    (checkout / 'calls').write_text('')
    path = f'{checkout}/programs:/usr/bin:/bin'
    done = subprocess.run(
        ['./run.sh', *arguments],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=100,
        env={'LC_ALL': 'C', 'PATH': path, 'HOME': str(checkout), **environment},
    )
    return (checkout / 'calls').read_text().splitlines(), done


def calls_of(checkout, *arguments, **environment):
    calls, done = start(checkout, *arguments, **environment)
    assert (done.returncode, done.stderr) == (0, '')
    return calls


def installed(calls):
    """(environments made, installations) among the calls."""
    return sum(call.startswith('-m venv') for call in calls), [
        call for call in calls if call.startswith('-m pip install')
    ]


def error_of(checkout, *arguments, **environment):
    _, done = start(checkout, *arguments, **environment)
    assert (
        done.returncode == 1
        and done.stderr.startswith('error: ')
        and len(done.stderr.splitlines()) == 1
    ), done.stderr
    return done.stderr


def build(dataset, directory='data'):
    return f'-m fsar_jax.build --dataset=synthetic_actions/{dataset} --dir={directory}'


@pytest.mark.slow
def test_the_dataset_of_the_config_is_built_where_it_is_an_embedded_one(checkout):
    calls_of(checkout)
    assert calls_of(checkout) == [build('misaligned'), 'main.py --config=configs/strm.py']
    assert calls_of(checkout, '--config=configs/vim.py', '--workdir=a b') == [
        build('untrimmed'),
        'main.py --config=configs/vim.py --workdir=a b',
    ]
    assert calls_of(
        checkout, '--config.data.dir=there', '--config.data.dataset=synthetic_actions/shifted'
    ) == [
        build('shifted', 'there'),
        'main.py --config=configs/strm.py --config.data.dir=there '
        '--config.data.dataset=synthetic_actions/shifted',
    ]
    assert calls_of(checkout, '--config', 'configs/strm.py:ssv2') == [
        'main.py --config configs/strm.py:ssv2'
    ]
    assert calls_of(checkout, '--config.epsode.shot=5') == [
        'main.py --config=configs/strm.py --config.epsode.shot=5'
    ]


@pytest.mark.slow
@pytest.mark.parametrize('directory', ['data', 'a [x] b', '~/data'])
def test_what_is_built_is_not_built_again(checkout, directory):
    flags = [] if directory == 'data' else [f'--config.data.dir={directory}']
    calls_of(checkout, *flags)
    there = checkout / directory.removeprefix('~/') / 'synthetic_actions/misaligned/incomplete'
    there.mkdir(parents=True)
    (there / 'dataset_info.json').touch()
    assert len(calls_of(checkout, *flags)) == 2  # a build that was killed in its last moment
    there.rename(there.with_name('1.0.0'))
    assert len(calls_of(checkout, *flags)) == 1


@pytest.mark.slow
def test_a_second_call_installs_nothing_and_the_tests_add_what_they_need(checkout):
    venvs, [pip] = installed(calls_of(checkout))
    assert venvs == 1 and pip.endswith('--constraint lock.txt --editable .')
    assert installed(calls_of(checkout)) == (0, [])
    venvs, [pip] = installed(calls_of(checkout, 'test'))
    assert venvs == 0 and pip.endswith('--constraint lock.txt --editable .[test]')
    assert installed(calls_of(checkout, 'test')) == (0, []) == installed(calls_of(checkout))


@pytest.mark.slow
@pytest.mark.parametrize(
    'what',
    ['lock', *(pytest.param(x, marks=pytest.mark.slow) for x in ('settings', 'python', 'place'))],
)
def test_an_environment_of_another_python_lock_or_place_is_made_again(checkout, what):
    calls_of(checkout)
    (checkout / '.venv/left-over').touch()
    environment = {}
    if what == 'lock':
        (checkout / 'lock.txt').write_text((checkout / 'lock.txt').read_text() + 'six==1.17.0\n')
    elif what == 'settings':
        (checkout / 'setup.cfg').write_text((checkout / 'setup.cfg').read_text() + '# changed\n')
    elif what == 'python':  # same program, another answer to what it is
        other = add_python(checkout, 'python3.99')
        other.write_text(
            STAND_IN.replace("prelude=''", "prelude='import sys; sys.base_prefix = \"/other\"\n'")
        )
        environment = {'PYTHON': 'python3.99'}
    else:
        moved = checkout.with_name(checkout.name + ' moved')
        checkout.rename(moved)
        checkout = moved
    assert installed(calls_of(checkout, **environment))[0] == 1
    assert not (checkout / '.venv/left-over').exists()
    assert installed(calls_of(checkout, **environment)) == (0, [])


@pytest.mark.slow
def test_an_installation_that_was_stopped_is_taken_up_again(checkout):
    calls_of(checkout)
    (checkout / '.venv/installed-run').unlink()  # stopped while pip ran
    assert installed(calls_of(checkout))[1]
    (checkout / '.venv/made-by-run.sh').write_text('')  # stopped while the environment was made
    assert installed(calls_of(checkout))[0] == 1


@pytest.mark.slow
def test_an_old_environment_that_was_half_removed_is_still_ours(checkout):
    calls_of(checkout)
    (checkout / '.venv/made-by-run.sh').write_text('an older one')
    rm = checkout / 'programs/rm'  # stopped when the files are gone and the folders are there
    rm.write_text('#!/bin/bash\nfind "${@:2}" -type f -delete\nexit 1\n')
    rm.chmod(0o755)
    assert start(checkout)[1].returncode
    rm.unlink()
    assert installed(calls_of(checkout))[0] == 1


def test_somebody_elses_environment_is_left_alone(checkout):
    (checkout / '.venv/bin').mkdir(parents=True)
    assert 'was not made by run.sh' in error_of(checkout)
    assert calls_of(checkout, VENV='mine')[0] == '-m venv mine'


def test_the_environment_of_an_older_run_sh_is_made_again(checkout):
    (checkout / '.venv').mkdir()
    (checkout / '.venv/installed-run').touch()
    assert installed(calls_of(checkout))[0] == 1


def test_a_newer_python_is_taken_where_python3_is_too_old(checkout):
    add_python(checkout, 'python3', '3.9.18')
    add_python(checkout, 'python3.13')
    assert installed(calls_of(checkout))[0] == 1
    error = error_of(checkout, PYTHON='python3')
    assert 'needs Python 3.11 or newer, PYTHON=python3 is Python 3.9.18' in error
    (checkout / 'programs/python3.13').unlink()
    for name in ('python3.11', 'python3.12', 'python3.13', 'python3.14'):
        add_python(checkout, name, 'none')  # whatever /usr/bin has
    assert 'there is none on the PATH' in error_of(checkout)
    assert 'there is no such program' in error_of(checkout, PYTHON='python3.77')
    (checkout / 'programs/python3.12').write_text(
        '#!/bin/bash\necho "pyenv: python3.12: command not found" >&2\necho more >&2\nexit 127\n'
    )
    error = error_of(
        checkout, PYTHON='python3.12'
    )  # a program that stands for another which is not active
    assert (
        error
        == 'error: PYTHON=python3.12 does not run (pyenv: python3.12: command not found): give the '
        'path of a Python\n'
    )


def test_the_tiers_of_the_suite(checkout):
    pytest_of = lambda *arguments: calls_of(checkout, 'test', *arguments)[-1]
    assert pytest_of() == '-m pytest -n 2 --dist loadfile'
    assert pytest_of('tests/data', '-k', 'x') == '-m pytest -n 2 --dist loadfile tests/data -k x'
    assert pytest_of('--quick', '-x') == '-m pytest -n 2 --dist loadfile -m not slow -x'
    calls = calls_of(checkout, 'test', '--oldest')
    assert (
        '-m venv .venv-oldest' in calls
        and '--constraint lock-oldest.txt --editable .[test]' in calls[1]
    )
    assert calls[-1] == '-m pytest -n 2 --dist loadfile -m not slow'
    calls = calls_of(checkout, 'test', '--newest')
    assert '-m venv .venv-newest' in calls and calls[1].endswith(
        '--upgrade --upgrade-strategy=eager --editable .[test]'
    )
    assert installed(calls_of(checkout, 'test', '--newest'))[1]  # newer ones may have come out
    assert installed(calls_of(checkout, 'test', '--oldest')) == (0, [])


def test_lint_format_and_types_come_before_the_tests(checkout):
    lint, form, types, tests = calls_of(checkout, 'test', 'tests/data')[-4:]
    assert (lint, form) == ('-m ruff check --quiet .', '-m ruff format --check --quiet .')
    assert types == '-m mypy' and tests.startswith('-m pytest')
    assert calls_of(checkout, 'test', '--quick')[:2] == [lint, form]
    assert '-m mypy' not in calls_of(checkout, 'test', '--quick')
    python = checkout / '.venv/bin/python'
    python.write_text(python.read_text() + '[ "$2 $3" != "ruff format" ]\n')
    calls, done = start(checkout, 'test')
    assert calls == [lint, form] and done.returncode == 1
    assert done.stderr == (
        'error: the code does not pass ruff: .venv/bin/ruff check --fix . && .venv/bin/ruff '
        'format .\n'
    )


def test_windows_is_sent_to_wsl(checkout):
    (checkout / 'programs/uname').write_text('#!/bin/bash\necho MINGW64_NT-10.0\n')
    (checkout / 'programs/uname').chmod(0o755)
    assert 'install WSL' in error_of(checkout)


@pytest.mark.parametrize('name', ['lock.txt', 'lock-oldest.txt'])
def test_the_locks_have_every_requirement_of_setup_cfg(name):
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / 'setup.cfg')
    extras = settings['options.extras_require']
    own = re.search(r'^fsar_jax\[(.*)\]$', extras['test'], re.MULTILINE)
    requirements = settings['options']['install_requires'] + '\n'.join(
        [extras['test'].replace(own[0], ''), *(extras[name] for name in own[1].split(','))]
    )
    needed = {
        re.match(r'[\w.-]+', line)[0].lower().replace('_', '-')
        for line in requirements.splitlines()
        if line.strip() and not line.startswith('#')
    }
    lines = (REPOSITORY / name).read_text().splitlines()
    locked = {line.split('==')[0] for line in lines if not line.startswith('#')}
    assert len(needed) > 20 and not needed - locked, (
        f'{needed - locked}: write {name} anew with ./run.sh lock'
    )
