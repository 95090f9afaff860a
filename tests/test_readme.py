"""The commands of README.md: those for the embedded data run in the order in which they stand,
shrunk; all others are parsed."""

import json
import shlex
import subprocess
import sys

import pytest
from tiny_run import CPU, REPOSITORY, TINY, error_of

from fsar_jax import build

pytestmark = pytest.mark.slow


def commands(section):
    """The lines of the indented blocks below a heading, continued ones joined, without their
    remarks."""
    text = (REPOSITORY / 'README.md').read_text().split(f'## {section}\n')[1].split('\n## ')[0]
    lines = [line[4:] for line in text.replace('\\\n', ' ').splitlines() if line.startswith('    ')]
    return [shlex.split(line, comments=True) for line in lines]


def of_main(words):
    """The flags that a command gives to main.py; None where it starts something else."""
    if words[0] == './run.sh' and words[1:] != ['test']:
        config = (
            []
            if any(word.startswith('--config=') for word in words)
            else ['--config=configs/strm.py']
        )
        return [*config, *words[1:]]
    return words[2:] if words[:2] == ['python', 'main.py'] else None


def test_the_first_commands_work_in_their_order(tiny_data, tmp_path):
    """On other clips, of which each class has four: 5-shot becomes 2-shot."""
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
    said, left = [], []
    for words in commands('Two commands'):
        flags = of_main(words)
        if flags is not None:
            flags = [flag.replace('shot=5', 'shot=2') for flag in flags]
            given = (
                []
                if '--mode=evaluate' in flags
                else [f'--config.{key}={value}' for key, value in small.items()]
            )
            words = ['python', 'main.py', flags[0], *given, *flags[1:]]
        elif words[:2] != ['python', '-m']:
            left.append(' '.join(words))
            continue
        done = subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            env=CPU,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f'{words}: {done.stderr[-2000:]}'
        said.append(done.stdout)
    assert left == ['./run.sh test', 'source .venv/bin/activate']
    runs = tmp_path / 'runs'
    assert sorted(path.relative_to(runs).as_posix() for path in runs.glob('*/results*.json')) == [
        'protonet/results.json',
        'strm/results.json',
        'strm/results.shot=2.json',
        'strm_seed1/results.json',
        'trx/results.json',
    ]
    assert json.loads((runs / 'strm_seed1/results.json').read_text())['config']['seed'] == 1
    assert 'points, paired over 10 episodes' in said[-1]


def test_the_other_commands_are_understood():
    """main.py gets as far as the dataset, which is not there."""
    understood = 0
    for section in ('Your own clips', 'The public benchmarks', 'Published weights'):
        for words in commands(section):
            flags = of_main(words)
            if flags is not None:
                assert 'is not in /nowhere: build it with' in error_of(
                    *flags, '--config.data.dir=/nowhere'
                )
            elif words[2] == 'fsar_jax.build':
                build.make_config(build.parse([*words[3:], '--dir=/nowhere']))
            else:
                assert words[2] in ('fsar_jax.verify', 'fsar_jax.contact_sheet')
            understood += 1
    assert understood == 7
