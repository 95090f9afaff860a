"""main.py with the papers' presets, the model made small by flags, on small copies of the
benchmarks.

FSAR_JAX_BENCHMARKS=all runs all six; the suite runs the first.
"""

import hashlib
import json
import os
import pathlib
import sys

import pytest
from tiny_run import main_here

from fsar_jax import build

REPOSITORY = pathlib.Path(build.__file__).parents[1]
sys.path.append(str(REPOSITORY / 'tests' / 'tfds_builders'))
import benchmark_copies as copies  # noqa: E402

pytestmark = pytest.mark.slow

PRESETS = {
    'ucf101_arn': ('ucf101',),
    'ssv2_small_cmn': ('ssv2_small',),
    'hmdb51_arn': ('hmdb51',),
    'kinetics100_cmn': ('kinetics',),
    'ssv2_full_otam': ('ssv2',),
    'activitynet100': ('kinetics', '--config.data.dataset=activitynet100'),
}
RUN = list(PRESETS) if os.environ.get('FSAR_JAX_BENCHMARKS') == 'all' else list(PRESETS)[:1]
SMALL = {
    'model.backbone.name': 'resnet_small',
    'model.backbone.batch_norm_groups': 1,
    'model.backbone.remat': False,
    'model.matcher.dim': 16,
    'episode.way': 3,
    'episode.shot': 1,
    'episode.query': 1,
    'episode.frames': 4,
    'episode.image_size': 64,
    'data.resize': 64,
    'train.num_steps': 3,
    'train.episodes_per_step': 2,
    'train.accumulation_steps': 1,
    'train.checkpoint_steps': 3,
    'eval.num_episodes': 20,
    'eval.val_episodes': 10,
}


@pytest.mark.parametrize('dataset', RUN)
def test_the_papers_preset_trains_and_is_evaluated(dataset, tmp_path, shallow):
    videos, lists, lines, _ = copies.make_copy(tmp_path, dataset, classes=3, videos=3)
    copies.build_copy(dataset, tmp_path / 'data', videos, lists, '--own_lists', '--short_side=64')
    preset, *flags = PRESETS[dataset]
    flags = [
        f'--config=configs/strm.py:{preset}',
        f'--config.data.dir={tmp_path / "data"}',
        f'--workdir={tmp_path / "run"}',
        *flags,
        *(f'--config.{key}={value}' for key, value in SMALL.items()),
    ]
    printed = main_here(*flags)
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    expected = build.BENCHMARKS[dataset].published()['test']['num_videos']
    test_lines = ''.join(f'{line}\n' for line in lines['test']).encode()
    assert results['dataset'] == dataset and results['num_episodes'] == 20
    assert results['videos_present'] == {
        'present': 9,
        'classes': 3,
        'expected': expected,
        'expected_classes': len(build.BENCHMARKS[dataset].published()['test']['classes']),
        'hash': hashlib.sha256(test_lines).hexdigest(),
    }
    assert f'videos present 9 of {expected:,}, ' in printed and 'classes have no video' in printed
    for split in ('train', 'val'):
        listed = hashlib.sha256(''.join(f'{line}\n' for line in lines[split]).encode()).hexdigest()
        assert (results['trained_on'][split]['present'], results['trained_on'][split]['hash']) == (
            9,
            listed,
        )
