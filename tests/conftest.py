"""Shared by all tests: the reader of the parity fixtures, and a tiny dataset on disk."""

import gc
import json
import os
import pathlib
import signal
import warnings

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # JAX_PLATFORMS=cuda ./run.sh test: on a GPU
if os.environ['JAX_PLATFORMS'] != 'cpu':  # as the fixtures, not rounded to TF32 or bfloat16
    os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')

import jax
import numpy as np
import pytest
from absl import logging
from tiny_run import MIN_SECONDS, XLA_FLAGS, shallow_networks, write_tiny_clips

from fsar_jax import build
from fsar_jax.machine import file_lock

# What a shell starts in the background (nohup, some CI) ignores Ctrl-C, and so would all that the
# tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Most of the time goes into compiling and tracing, not into computing. So programs are compiled
# without most of XLA's optimisations and, where JAX can do without, its slow emitters of fused
# loops; JAX_DISABLE_MOST_OPTIMIZATIONS=0 ./run.sh test has all of them.
# The training that .ci/run starts with has them too, and so has a test with `full_optimisation`.
if 'JAX_DISABLE_MOST_OPTIMIZATIONS' not in os.environ:
    os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'  # for the processes that tests start
    jax.config.update('jax_disable_most_optimizations', True)
    # Without a space at the start: XLA would take it for the name of a file.
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {XLA_FLAGS}'.strip()
# Tracing makes many small objects that live long: looking for garbage less often saves a
# fifth of it.
gc.set_threshold(200_000, 50, 50)

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'

# The files that take longest, which the workers begin with: at the end, one would wait for another.
FIRST = (
    'training/test_devices.py',
    'test_configs.py',
    'training/test_resume.py',
    'training/test_state.py',
    'test_readme.py',
    'test_notebooks.py',
    'training/test_lengthening.py',
    'training/test_benchmark_runs.py',
    'training/test_selected_checkpoint.py',
    'test_stopping.py',
    'test_report.py',
)


def pytest_configure(config):
    if hasattr(config.option, 'loadscopereorder'):
        config.option.loadscopereorder = False  # of pytest-xdist: the most tests first


def pytest_collection_modifyitems(items):
    if 'PYTEST_XDIST_WORKER' in os.environ:
        of_tests = lambda item: item.path.relative_to(FIXTURES.parent).as_posix()
        place = {name: index for index, name in enumerate(FIRST)}
        items.sort(key=lambda item: place.get(of_tests(item), len(FIRST)))


class Fixture:
    """One .npz of the published code: `inputs`, `weights`, `outputs`, `cotangents`, `gradients`,
    `weight_gradients`, `meta`."""

    def __init__(self, name):
        with np.load(FIXTURES / f'{name}.npz') as z:
            self.meta = json.loads(str(z['meta']))
            pick = lambda prefix: {
                k.removeprefix(prefix): z[k] for k in z.files if k.startswith(prefix)
            }
            self.inputs, self.weights, self.outputs = pick('in/'), pick('w/'), pick('out/')
            self.cotangents, self.gradients, self.weight_gradients = (
                pick('cot/'),
                pick('grad/'),
                pick('gradw/'),
            )

    def support_by_class(self, support):
        """Support videos [videos, …] → [way, shot, …]: class c is the label value c, whatever the
        order in the file."""
        labels = self.inputs['support_labels']
        return np.stack([support[labels == c] for c in range(int(labels.max()) + 1)])


@pytest.fixture(scope='session')
def published():
    """published(name) → Fixture."""
    return Fixture


def assert_published(ours, reference, name='', scale=1e-4):
    """|a − b| ≤ scale · max(1, max|reference|), the tolerance of the fixtures."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f'{name}: shape {ours.shape}, published {reference.shape}'
    worst, allowed = np.abs(ours - reference).max(), scale * max(1.0, np.abs(reference).max())
    assert worst <= allowed, f'{name}: off by {worst:.2e}, allowed {allowed:.2e}'


@pytest.fixture(scope='session')
def assert_close_to_published():
    return assert_published


@pytest.fixture(scope='session')
def session_folder(tmp_path_factory):
    """The folder that all workers of this test session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


VERBOSITY = logging.get_verbosity()


@pytest.fixture(autouse=True)
def usual_verbosity():
    """Commands that a test calls in this process change what is logged, and would in those after
    it."""
    logging.set_verbosity(VERBOSITY)


@pytest.fixture(scope='session', autouse=True)
def share_programs(session_folder):
    """What a worker, or a run of main.py, compiles serves all others (JAX's persistent cache).

    With JAX_COMPILATION_CACHE_DIR=folder it also serves the next test session.
    """
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', str(session_folder / 'programs'))
    # For the processes that tests start: none of them writes to the user's folder.
    os.environ['JAX_COMPILATION_CACHE_DIR'] = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_SECONDS)
    # A program that another worker is writing is compiled here as well.
    warnings.filterwarnings('ignore', message='Error reading persistent compilation cache entry')


@pytest.fixture(scope='session')
def tiny_data(session_folder):
    """A data directory with video_folder/tiny, and video_folder/no_val, whose val split is empty.
    Built once for all workers."""
    base = session_folder
    data_dir, done = base / 'tiny_data', base / 'tiny_data_done'
    with file_lock(base / 'tiny_data.lock'):
        if not done.exists():
            clips = base / 'tiny_clips'
            write_tiny_clips(clips)
            for name in ('tiny', 'no_val'):
                build.build(
                    build.parse(
                        [
                            f'--dataset=video_folder/{name}',
                            f'--videos={clips}',
                            f'--dir={data_dir}',
                            '--processes=0',
                            '--short_side=32',
                        ]
                    )
                )
                for clip in (clips / 'val').glob('*/*.mp4'):
                    clip.write_bytes(b'')
            done.touch()
    return data_dir


@pytest.fixture
def shallow():
    """Small networks have fewer layers; see `shallow_networks`."""
    with shallow_networks():
        yield


@pytest.fixture
def full_optimisation():
    """With all of XLA's optimisations, as users compile."""
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', before)
