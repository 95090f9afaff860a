"""Whole runs in seconds: settings, the command line, and random batches. The data is the fixture
`tiny_data`."""

import contextlib
import importlib.util
import io
import os
import pathlib
import subprocess
import sys
from functools import partial
from unittest import mock

import flax.linen as nn
import jax
import numpy as np

from fsar_jax import train
from fsar_jax.backbones import BACKBONES
from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.backbones.resnet import BottleneckBlock, ResNet, conv, normalize_frames
from fsar_jax.backbones.resnet_small import ResNetSmall
from fsar_jax.backbones.scan import SCAN_NETWORKS
from fsar_jax.backbones.scan_maps import ScanMaps
from fsar_jax.backbones.shufflenet_v2 import ShuffleNetV2
from fsar_jax.ingest.video_files import write_video
from fsar_jax.messages import one_line
from fsar_jax.stages import frames_read

REPOSITORY = pathlib.Path(__file__).parents[1]
UNOPTIMISED = os.environ.get('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')  # see conftest.py
# The emitters of fused loops take most of the time of compiling. JAX 0.12 has no other ones.
WITHOUT_EMITTERS = UNOPTIMISED == '1' and jax.__version_info__ < (0, 11)
XLA_FLAGS = '--xla_cpu_use_fusion_emitters=false' if WITHOUT_EMITTERS else ''
CPU = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': XLA_FLAGS,
    'JAX_DISABLE_MOST_OPTIMIZATIONS': UNOPTIMISED,
    'JAX_ENABLE_COMPILATION_CACHE': 'false',  # see shared_programs
}
MIN_SECONDS = 0.1  # of compiling a program, to be stored for others
TINY = {
    'model.enrichment.patches': 2,
    'model.matcher.dim': 16,
    'episode.way': 2,
    'episode.query': 2,
    'episode.frames': 4,
    'episode.image_size': 32,
    'data.dataset': 'video_folder/tiny',
    'data.resize': 32,
    'data.flip': True,
    'train.num_steps': 8,
    'train.episodes_per_step': 2,
    'train.checkpoint_steps': 2,
    'train.log_steps': 2,
    'eval.num_episodes': 30,
    'eval.val_episodes': 20,
    'eval.episodes_per_chunk': 20,
    'eval.videos_per_batch': 8,
}

# Methods with a head of their own, which training/test_devices.py trains.
HEADS = ('strm', 'otam', 'ta2n', 'hyrsm', 'mastaf')

# VIM's sampler in front of prototypes: its alignment is TA2N's.
SAMPLER = {
    'model.sampler.dense_frames': 6,
    'model.sampler.scan_size': 32,
    'model.sampler.num_samples': 16,
    'model.sampler.samples_per_chunk': 8,
    'model.sampler.hidden': 8,
    'model.sampler.task_dim': 4,
    'model.enrichment.temporal_transform': False,
    'model.matcher.name': 'prototypes',
    'model.matcher.inter_weight': 0.0,
}


def with_devices(count):
    """The environment of a process with so many CPU devices."""
    return {'XLA_FLAGS': f'--xla_force_host_platform_device_count={count} {XLA_FLAGS}'}


class TinyScan(nn.Module):
    """A scan network that compiles fast; the real ones are in tests/backbones."""

    @nn.compact
    def __call__(self, frames, train=False):
        x = nn.relu(nn.Conv(6, (8, 8), strides=8)(frames))
        return ScanMaps(stages=(x, x, x), last=x, features=x.mean((1, 2)))


class Stem(ResNetSmall):
    """Maps of the shape that those of `ResNetSmall` have, by one convolution and batch norm."""

    @nn.compact
    def __call__(self, frames, train=False):
        x = normalize_frames(frames, self.normalize).astype(self.dtype)
        # Not one 16 × 16 convolution: without XLA's optimisations its gradients are NaN (JAX 0.12).
        x = conv(4 * self.width, 5, 4, self.dtype, 'conv1')(x)
        x = nn.avg_pool(x, (4, 4), (4, 4), 'SAME')
        return nn.relu(BatchNorm(**self.norm, dtype=self.dtype, name='bn1')(x, train))


@contextlib.contextmanager
def shallow_networks():
    """'resnet_small' makes a `Stem` here; ResNet-50 and the scan networks have one block per stage.
    It spares half the tracing and compiling where a test is about the rest of a learner or of a
    run. In this process alone."""
    resnet50 = partial(ResNet, block=BottleneckBlock, blocks=(1, 1, 1, 1))
    scan = partial(ShuffleNetV2, blocks=(1, 1, 1), published_start='')
    scans = {
        'shufflenet_v2_small': partial(scan, widths=(4, 8, 8, 8, 16)),
        'shufflenet_v2_x0_5': scan,
    }
    with (
        mock.patch.dict(BACKBONES, resnet_small=Stem, resnet50=resnet50),
        mock.patch.dict(SCAN_NETWORKS, scans),
    ):
        yield


def get_config(method, preset=''):
    """configs/<method>.py, loaded as the command line loads it."""
    path = REPOSITORY / 'configs' / f'{method}.py'
    spec = importlib.util.spec_from_file_location(f'configs_{method}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(preset) if preset else module.get_config()


def tiny_config(method, changes=None, width=None):
    """The embedded config of a method with TINY and `changes` {'train.num_steps': 3}; `width` thins
    the backbone."""
    config = get_config(method)
    with config.unlocked():
        if width:
            config.model.backbone.width = width
        config.update_from_flattened_dict({**TINY, **(changes or {})})
    return config


def tiny_flags(method, data_dir, workdir, changes=None):
    """Arguments of main.py for the same."""
    settings = {**TINY, 'data.dir': data_dir, **(changes or {})}
    return [
        f'--config=configs/{method}.py',
        f'--workdir={workdir}',
        *(f'--config.{k}={v}' for k, v in settings.items()),
    ]


def shared_programs(write=True):
    """Environment for a process that takes the programs which this test session has compiled.

    Twice as fast for a run of main.py, and the same bits: what is stored is the machine code. JAX
    writes a program in place, so a process that may be killed while it writes must only read.
    """
    return {
        'JAX_ENABLE_COMPILATION_CACHE': 'true',
        'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': str(MIN_SECONDS if write else 1e9),
    }


SHALLOW_MAIN = """
import sys
sys.path.append('tests')
import tiny_run
with tiny_run.shallow_networks():
    tiny_run.train.run(sys.argv)
"""


def start_main(*flags, env=None, program=('main.py',)):
    """`python main.py ...`, started; the same with `shallow_networks` for ('-c', SHALLOW_MAIN)."""
    return subprocess.Popen(
        [sys.executable, *program, *map(str, flags)],
        cwd=REPOSITORY,
        env={**CPU, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes, timeout=600):
    """(stdout, stderr) of each; none survives, whatever happens."""
    try:
        return [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run_main(*flags, env=None, **options):
    """Runs main.py to its end, which must be a good one; returns stdout."""
    process = start_main(*flags, env={**shared_programs(), **(env or {})}, **options)
    [(out, err)] = finish(process)
    assert process.returncode == 0, err[-3000:]
    return out


def main_here(*flags, folder=REPOSITORY):
    """The same in this process, which spares the start: seconds of imports; returns stdout."""
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        train.main(['main.py', *map(str, flags)])
    return printed.getvalue()


def error_of(*flags):
    """The one line that main.py ends with when the input is bad; in this process, which is fast."""
    try:
        with contextlib.chdir(REPOSITORY):
            train.main(['main.py', *map(str, flags)])
    except (ValueError, OSError, FloatingPointError) as error:  # as `train.run` reports them
        line = f'error: {one_line(error)}'
    except SystemExit as ended:
        line = ended.code
    else:
        raise AssertionError('no error')
    assert line.startswith('error: ') and '\n' not in line, line
    return line


def write_tiny_clips(folder):
    """Ten classes (4 train, 3 val, 3 test) of four clips: a square of the class's colour wanders
    over noise."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 3), ('test', 3)):
        for label in range(count):
            (folder / split / f'{split} {label}').mkdir(parents=True)
            colour = rng.integers(0, 256, 3)
            for clip in range(4):
                frames = rng.integers(60, 190, (8, 32, 40, 3), np.uint8)
                x, y, step = rng.integers(0, 12, 3)
                for t, frame in enumerate(frames):
                    frame[y : y + 18, x + step * t // 8 : x + step * t // 8 + 16] = colour
                write_video(folder / split / f'{split} {label}' / f'{clip}.mp4', frames)


def random_batch(config, seed=0):
    """A batch as the loader's, [A, M, ...] of noise, episodes 0, 1, ...; A is
    config.train.accumulation_steps."""
    rng, e, t = np.random.default_rng(seed), config.episode, config.train
    lead = t.accumulation_steps, t.episodes_per_step // t.accumulation_steps
    clip = frames_read(config), e.image_size, e.image_size, 3
    labels = np.tile(np.repeat(np.arange(e.way, dtype=np.int32), e.query), (*lead, 1))
    return {
        'support': rng.integers(0, 256, (*lead, e.way, e.shot, *clip), np.uint8),
        'query': rng.integers(0, 256, (*lead, e.way * e.query, *clip), np.uint8),
        'labels': labels,
        'support_flip': rng.random((*lead, e.way, e.shot)) < 0.5,
        'query_flip': rng.random((*lead, e.way * e.query)) < 0.5,
        'classes': np.tile(np.arange(e.way, dtype=np.int32), (*lead, 1)),
        'episode': np.arange(t.episodes_per_step, dtype=np.int64).reshape(lead),
    }


def random_variables(module, *inputs, **options):
    """Random variables of a learner or another module, without compiling their start."""
    shapes = jax.eval_shape(partial(module.init, **options), jax.random.key(0), *inputs)
    rng = np.random.default_rng(0)
    draw = lambda path, x: jax.numpy.asarray(
        rng.normal(1.0 if path[-1].key in ('scale', 'var') else 0.0, 0.1, x.shape), 'float32'
    )
    return jax.tree_util.tree_map_with_path(draw, shapes)


def unchanged(before, after):
    """Names of the leaves that are the same in both trees."""
    same = jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    leaves = jax.tree_util.tree_leaves_with_path(same)
    return [jax.tree_util.keystr(path) for path, is_same in leaves if is_same]


def largest_difference(a, b):
    """max |a - b| over the leaves of two trees of one structure."""
    differences = jax.tree.map(
        lambda x, y: float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()),
        a,
        b,
    )
    return max(jax.tree.leaves(differences))
