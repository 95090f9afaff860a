"""What benchmarks/ copies from elsewhere stays what it is there."""

import runpy

import jax
import pytest
from tiny_run import REPOSITORY, random_batch, tiny_config

from fsar_jax.data import loader
from fsar_jax.data.dataset import open_dataset


@pytest.mark.parametrize('changes', [{}, {'model.sampler.name': 'motion_guided', 'model.sampler.dense_frames': 6}])
def test_the_train_step_benchmark_feeds_what_the_loader_does(tiny_data, changes):
    config = tiny_config('protonet', {'data.dir': str(tiny_data), **changes})
    benchmark = runpy.run_path(str(REPOSITORY / 'benchmarks/train_step.py'), run_name='benchmark')
    batches = loader.training_batches(open_dataset('video_folder/tiny', tiny_data, 'train'), config, 0)
    described = lambda batch: jax.tree.map(lambda x: (x.shape, x.dtype), batch)
    loaded = described(next(batches))
    batches.close()
    assert described(benchmark['batch_shapes'](config)) == loaded == described(random_batch(config))
