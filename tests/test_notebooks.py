"""The notebooks run, every cell, in one kernel; what is stored is a real run, pictures included."""

import json
import pathlib
import sys

import pytest
from tiny_run import CPU, REPOSITORY, shared_programs

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')

pytestmark = pytest.mark.slow

NAMES = ('quickstart', 'tpu_training', 'your_clips', 'new_method')
# What their cells of settings say here: the smallest data, and networks of few layers.
SETTINGS = {
    'episode.query': 1,
    'episode.frames': 4,
    'episode.image_size': 32,
    'data.resize': 32,
    'model.enrichment.patches': 2,
    'model.matcher.dim': 16,
    'train.episodes_per_step': 2,
    'train.checkpoint_steps': 1,
    'eval.num_episodes': 20,
    'eval.val_episodes': 10,
    'eval.episodes_per_chunk': 20,
}
FLAGS = [f'--config.{key}={value}' for key, value in SETTINGS.items()]
DATA = {
    'DATASET': 'synthetic_actions/aligned',
    'DATA': 'data',
    'CLIPS_PER_CLASS': 2,
    'BUILD': ['--size=32', '--num_frames=8', '--processes=0'],
}
VALUES = {
    'quickstart': DATA
    | {'METHOD': 'protonet', 'STEPS': 2, 'REPORT_EPISODES': 0, 'SETTINGS': FLAGS},
    'tpu_training': DATA
    | {
        'METHOD': 'protonet',
        'STEPS': 2,
        'PRETEND': 0,
        'SETTINGS': [*FLAGS, '--config.eval.val_episodes=0'],
    },
    'your_clips': {'MODEL': 'runs/quickstart'},
    'new_method': DATA | {'STEPS': 1, 'SETTINGS': SETTINGS | {'eval.val_episodes': 0}},
}
# The first cell of each: nothing of the one before is left, and resnet_small has one layer.
FIRST = f"""
%reset -f
import contextlib, os, sys
os.chdir({{folder!r}})
if 'tiny_run' not in sys.modules:
    sys.path[:0] = [os.getcwd(), {str(REPOSITORY / 'tests')!r}]
    import tiny_run
    tiny_run.shallow_networks().__enter__()
"""


def read(name):
    return nbformat.read(REPOSITORY / 'notebooks' / f'{name}.ipynb', as_version=4)


def outputs_of(notebook):
    """(all that was printed and shown as text, kinds of what was shown)."""
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    shown = [output.data for output in outputs if 'data' in output]
    words = [output.text for output in outputs if 'text' in output]
    words += [data['text/plain'] for data in shown if 'text/plain' in data]
    return '\n'.join(words), [kind for data in shown for kind in data]


class Kernel:
    """Executes notebooks one after the other in one process."""

    def __init__(self, folder):
        self.folder, self.manager = folder, None

    def execute(self, name):
        notebook = read(name)
        [settings] = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', ())]
        lines = [f'{key} = {value!r}' for key, value in VALUES[name].items()]
        settings.source = '\n'.join([settings.source, *lines])
        notebook.cells.insert(0, nbformat.v4.new_code_cell(FIRST.format(folder=str(self.folder))))
        client = nbclient.NotebookClient(notebook, km=self.manager, timeout=300)
        if self.manager is None:
            self.manager = client.create_kernel_manager()
        client.execute(cleanup_kc=False, cwd=str(self.folder), env={**CPU, **shared_programs()})
        return notebook


@pytest.fixture(scope='module')
def kernel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkout')
    for name in ('configs', 'fsar_jax', 'tfds_builders', 'setup.cfg'):
        (folder / name).symlink_to(REPOSITORY / name)
    kernel = Kernel(folder)
    yield kernel
    if kernel.manager is not None:
        nbclient.util.run_sync(kernel.manager.shutdown_kernel)(now=True)


@pytest.fixture(scope='module')
def quickstart(kernel):
    return kernel.execute('quickstart')


def results_of(folder):
    return json.loads((folder / 'results.json').read_text())


def test_quickstart(kernel, quickstart):
    words, kinds = outputs_of(quickstart)
    assert 'runs on the CPU' in words and 'is taken for' in words
    assert kinds.count('image/png') == 4  # the sheet of clips, and three figures of the report
    results = results_of(kernel.folder / 'runs/quickstart')
    assert (results['method'], results['num_episodes']) == ('protonet', 20)
    assert f"{results['accuracy']:.1%} ± " in words


def test_tpu_training(kernel, quickstart):
    words, kinds = outputs_of(kernel.execute('tpu_training'))
    assert 'resumed from step 1' in words and '2 steps, the last is 2' in words
    assert 'bfloat16' in words and 'image/png' in kinds
    assert results_of(kernel.folder / 'runs/tpu')['num_episodes'] == 20


def test_your_clips(kernel, quickstart):
    words, kinds = outputs_of(kernel.execute('your_clips'))
    assert kinds.count('image/png') == 3 and 'text/html' in kinds
    assert 'ball bouncing 3.mp4' in words and 'Expected accuracy' in words
    assert (kernel.folder / 'runs/your_clips/answers.html').stat().st_size > 10_000


def test_new_method(kernel, quickstart):
    words, kinds = outputs_of(kernel.execute('new_method'))
    assert kinds.count('image/png') >= 2 and 'on the same episodes' in words
    results = results_of(kernel.folder / 'runs/new_method/best_partner')
    assert results['method'] == 'best_partner' and results['num_episodes'] == 20


@pytest.mark.parametrize('name', NAMES)
def test_what_is_stored_is_a_whole_run(name):
    """After a change to a notebook: jupyter execute --inplace notebooks/<name>.ipynb"""
    notebook = read(name)
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == 'error']
    words, kinds = outputs_of(notebook)
    assert 'image/png' in kinds and '/tmp/' not in words and '/root/' not in words
    assert (
        sum(map(len, kinds)) and (REPOSITORY / 'notebooks' / f'{name}.ipynb').stat().st_size < 2e6
    )
    first = notebook.cells[0].source
    assert (
        f'colab.research.google.com/github/<owner>/fsar_jax/blob/main/notebooks/{name}.ipynb'
        in first
    )
    assert [c for c in code if 'parameters' in c.metadata.get('tags', ())]


def test_colab_keeps_the_jax_of_the_runtime(tmp_path, monkeypatch):
    """The first cell of each notebook is the same, but for the extras; on Colab it installs with
    JAX pinned to what is there."""
    import subprocess
    import types

    cells = [next(c.source for c in read(name).cells if c.cell_type == 'code') for name in NAMES]
    lines = [[x for x in cell.splitlines() if not x.startswith('EXTRAS')] for cell in cells]
    assert all(x == lines[0] for x in lines)
    calls = []

    def run(arguments, **options):
        calls.append(arguments)
        return types.SimpleNamespace(stdout='jax==0.7.2\nnumpy==2.0\njaxlib==0.7.2\nlibtpu==0.1\n')

    (tmp_path / 'fsar_jax').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, 'run', run)
    monkeypatch.setitem(sys.modules, 'google.colab', types.ModuleType('google.colab'))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    exec(cells[0], {})
    assert (tmp_path / 'runtime.txt').read_text() == 'jax==0.7.2\njaxlib==0.7.2\nlibtpu==0.1'
    assert calls[1][2:] == [
        'pip',
        'install',
        '--quiet',
        '--editable',
        '.[report]',
        '--constraint',
        'runtime.txt',
    ]


def test_a_restarted_runtime_uses_the_checkout_that_it_has(tmp_path, monkeypatch):
    import subprocess

    cell = next(c.source for c in read('quickstart').cells if c.cell_type == 'code')
    (tmp_path / 'content' / 'checkout' / 'fsar_jax').mkdir(parents=True)
    monkeypatch.chdir(tmp_path / 'content')
    monkeypatch.setattr(subprocess, 'run', lambda *given, **options: pytest.fail(f'runs {given}'))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    exec(cell, {})
    assert pathlib.Path.cwd() == tmp_path / 'content' / 'checkout'
