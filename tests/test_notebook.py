"""The walk-through, cell by cell in one namespace: the commands and the model are its own, the
dataset and the run are small."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import CPU, REPOSITORY, shared_programs

pytestmark = pytest.mark.slow

# What makes a command of the notebook short; the settings of the model stay, because the cells
# below use them.
SHORTER = {
    'fsar_jax.build': ['--clips_per_class=4', '--num_frames=8', '--processes=1'],
    'main.py': [
        '--config.episode.query=1',
        '--config.train.num_steps=1',
        '--config.train.episodes_per_step=1',
        '--config.train.accumulation_steps=1',
        '--config.eval.num_episodes=60',
        '--config.eval.val_episodes=20',
        '--config.eval.episodes_per_chunk=20',
    ],
}


def run_command(line):
    program, *arguments = shlex.split(line)
    name = arguments[1] if arguments[0] == '-m' else arguments[0]
    assert program == 'python', line
    done = subprocess.run(
        [sys.executable, *arguments, *SHORTER[name]],
        env={**CPU, **shared_programs()},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_walk_through_runs(tmp_path, monkeypatch):
    for name in ('main.py', 'configs', 'fsar_jax', 'tfds_builders', 'setup.cfg'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    cells = json.loads((REPOSITORY / 'notebooks/walkthrough.ipynb').read_text())['cells']
    names, installs = {}, 0
    for cell in cells:
        assert cell['cell_type'] in ('code', 'markdown') and not cell.get('outputs'), (
            'clear the outputs before you commit'
        )
        if cell['cell_type'] == 'markdown':
            continue
        code = []
        for line in ''.join(cell['source']).splitlines():
            if line.startswith('!'):
                run_command(line[1:])
            elif line.startswith('%'):
                installs += line.startswith('%pip install --quiet -e .')
            else:
                code.append(line)
        exec('\n'.join(code), names)
    assert installs == 1
    assert names['results']['num_episodes'] == 60 and names['results']['method'] == 'strm'
    assert (
        names['prediction'].logits.shape == (5, 5) and np.isfinite(names['prediction'].logits).all()
    )
    assert sorted(names['episode'].labels[0]) == [0, 1, 2, 3, 4]
    assert names['state'].step == 1
