"""What may change when a run goes on, and when it is evaluated: every setting, one after the other,
at another value than the run had."""

import json

import pytest
from tiny_run import get_config, tiny_config

from fsar_jax.config import SETTINGS, setting_of
from fsar_jax.training import run_settings
from fsar_jax.training.checkpoints import CONFIG_FILE
from fsar_jax.training.workdir import name_of_old_preset

# Memory, speed, where things lie, what is printed.
COST = {
    'keep_programs',
    'data.dir',
    'data.num_threads',
    'data.num_workers',
    'data.prefetch',
    'train.log_steps',
    'train.keep_checkpoints',
    'train.accumulation_steps',
    'model.backbone.remat',
    'data.features',
    'model.sampler.samples_per_chunk',
    'model.matcher.pairs_per_chunk',
    'eval.cache',
    'eval.episodes_per_chunk',
    'eval.videos_per_batch',
    'eval.embeddings',
    'eval.embeddings_gb',
    'eval.frame_cache_gb',
}
# Read once, when a run begins.
START = {'model.backbone.weights', 'model.sampler.scan_weights'}
# Of training alone.
TRAINING = {
    *(key for key in SETTINGS if key.startswith('train.')),
    'data.train_clips_per_class',
    'model.matcher.tuples_share_in_training',
    'model.backbone.trained',
    'model.backbone.drop_connect',
    'model.backbone.dropout',
    'model.sampler.rate',
    'model.sampler.scan_trained',
    'model.matcher.relation_dropout',
    'model.matcher.relation_start',
    'model.matcher.kernel_start',
}
# Of the look at test, on which neither the parameters nor the selection depend.
TEST = {'eval.split', 'eval.num_episodes', 'eval.episodes_file', 'eval.measured_episodes'}
# What an evaluation may take otherwise than the run, because the classifier stays the same one.
EVALUATION = {
    *COST,
    *START,
    *TEST,
    *TRAINING,
    'seed',
    'episode.way',
    'episode.shot',
    'episode.query',
    'episode.query_classes',
    'model.dtype',
    'model.align_at_test',
    'model.sampler.at_test',
    'data.dataset',
    'data.crop',
    'data.flip',
    'data.test_jitter',
    # Another share of the tuples in an evaluation. The run here has no such matcher.
    'model.matcher.tuples_share',
    'model.matcher.tuples_seed',
    'eval.seed',
    'eval.query',
    'eval.val_episodes',
}
# Of these, what changes no result of a finished checkpoint, and so no name of its results file.
SAME_RESULTS = {*COST, *START, *TRAINING, 'eval.val_episodes'}


def another(key, now):
    """A value of the right type that is not `now`."""
    known = SETTINGS[key]
    if known.choices:
        return next(choice for choice in known.choices if choice != now)
    if isinstance(known.default, tuple):
        return (1.5, 2.5) if known.length else (1, 4)
    if known.kind is bool:
        return not now
    if known.kind in (int, float):
        return 3 if now is None else now + 1 if known.kind is int else now / 2 + 0.125
    return 'elsewhere'


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    """(checkpoints/ of a run, its config), of no more than the settings beside a checkpoint."""
    folder, config = tmp_path_factory.mktemp('begun'), tiny_config('ta2n')
    (folder / '3').mkdir()
    (folder / CONFIG_FILE).write_text(config.to_json())
    return folder, config


@pytest.mark.parametrize('key', SETTINGS)
def test_what_may_change_in_a_run(begun, key):
    folder, run = begun
    config = run.copy_and_resolve_references().unlock()
    before = setting_of(config, key)
    config.update_from_flattened_dict({key: another(key, before)})
    assert setting_of(config, key) != before

    def accepted(check, *arguments):
        try:
            check(folder, config, *arguments)
            return True
        except ValueError as error:
            assert f'{key}=' in str(error) and '\n' not in str(error)
            return False

    assert accepted(run_settings.check_resumable) == (key in COST | START | TEST)
    assert accepted(run_settings.check_settings, run_settings.must_agree) == (key in EVALUATION)
    matters = lambda key: key not in run_settings.SAME_RESULTS
    assert accepted(run_settings.check_settings, matters) == (key in SAME_RESULTS)


def test_what_only_the_library_sets_is_of_the_model(begun):
    folder, run = begun
    config = json.loads(run.to_json())
    config['model']['backbone']['width'] = 8
    config = type(run)(config)
    for check in (
        lambda: run_settings.check_resumable(folder, config),
        lambda: run_settings.check_settings(folder, config, run_settings.must_agree),
    ):
        with pytest.raises(ValueError, match='model.backbone.width=None there, 8 here'):
            check()


def test_a_run_of_x_behind_the_sampler_goes_on_under_its_name_of_now(tmp_path):
    """`vim:otam` meant what `vim:otam-sampler` means now; the run has no setting for a metric."""
    saved = json.loads(get_config('vim', 'otam-sampler').to_json())
    del saved['model']['matcher']['metric']
    (tmp_path / '3').mkdir()
    (tmp_path / CONFIG_FILE).write_text(json.dumps(saved))
    with pytest.raises(ValueError) as refused:
        run_settings.check_resumable(tmp_path, get_config('vim', 'otam'), 'vim.py:otam')
    assert str(refused.value).endswith(
        'use another --workdir, or go on with --config=configs/vim.py:otam-sampler, which is what '
        'vim.py:otam was'
    )
    assert '\n' not in str(refused.value)
    run_settings.check_resumable(tmp_path, get_config('vim', 'otam-sampler'), 'vim.py:otam-sampler')
    for name, now in {
        'vim.py:trx-ssv2': 'vim.py:trx-sampler-ssv2',
        'vim.py:trx-sampler': '',
        'vim.py:trx-sampler-ssv2': '',
        'vim.py:ssv2': '',
        'otam.py': '',
    }.items():
        assert name_of_old_preset(name) == now
