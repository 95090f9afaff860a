"""Every option at every value that is not its default changes what is computed.

For the model a trace tells: the training loss (and the test logits where the option is about the
test), as a jaxpr. What an option means is tested where its stage is.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from tiny_run import REPOSITORY, SAMPLER, TinyScan, get_config

from fsar_jax import samplers
from fsar_jax.config import SETTINGS, setting_of
from fsar_jax.learner import create_learner
from fsar_jax.stages import frames_read
from fsar_jax.training.losses import episode_loss

TINY = {
    **{key: value for key, value in SAMPLER.items() if key.startswith('model.sampler.')},
    'model.sampler.task_dim': 4,
    'model.backbone.width': 2,
    'model.matcher.dim': 8,
    'model.matcher.heads': 2,
    'model.enrichment.patches': 2,
    'model.classifier.classes': 5,
    'episode.way': 2,
    'episode.shot': 2,
    'episode.frames': 4,
    'episode.image_size': 32,
}
# X + VIM: of the shortest trace.
VIM = ('vim', {'model.matcher.name': 'prototypes', 'model.enrichment.temporal_transform': False})
LINEAR = (VIM[0], {**VIM[1], 'model.sampler.sigma_schedule': 'linear'})
STEPS = (
    VIM[0],
    {**VIM[1], 'model.sampler.sigma_schedule': 'steps', 'model.sampler.sigma_steps': 9},
)
MOTION = ('protonet', {'model.sampler.name': 'motion_guided'})
# Without a backbone.
MAPS = {'model.backbone.name': 'features'}
# An option → where it acts (a config, and changes to it), and values for one without choices.
MODEL = {
    'model.variant': ('strm', MAPS),
    'model.dtype': ('trm', MAPS),
    'model.align_at_test': ('ta2n', MAPS),
    'model.sampler.dense_frames': (*MOTION, 7),
    'model.sampler.variant': VIM,
    'model.sampler.smoothing': (*MOTION, 0.25),
    'model.sampler.temporal': VIM,
    'model.sampler.spatial': VIM,
    'model.sampler.adaptive': VIM,
    'model.sampler.normalize_features': VIM,
    'model.sampler.normalize_guide': VIM,
    'model.sampler.scan_trained': VIM,
    'model.sampler.scan_size': (*VIM, 40),
    'model.sampler.hidden': (*VIM, 6),
    'model.sampler.task_dim': (*VIM, 3),
    'model.sampler.num_samples': (*VIM, 24),
    'model.sampler.samples_per_chunk': (*VIM, 4),
    'model.sampler.sigma': (*VIM, 0.3),
    'model.sampler.sigma_schedule': VIM,
    'model.sampler.sigma_end': (*LINEAR, 0.05),
    'model.sampler.sigma_factor': (*STEPS, 0.5),
    'model.sampler.sigma_steps': (*STEPS, 7),
    'model.sampler.rate': (*VIM, 0.5),
    'model.sampler.at_test': MOTION,
    'model.sampler.intra_weight': (*VIM, 0.25),
    'model.backbone.batch_norm': ('protonet', {}),
    'model.backbone.batch_norm_groups': ('protonet', {}, 2),
    'model.backbone.normalize': ('protonet', {}),
    'model.backbone.remat': ('protonet', {}),
    'model.backbone.trained': ('protonet', {}),
    'model.backbone.temporal_shift': ('protonet', {'model.backbone.width': 8}),
    'model.enrichment.patch': ('trm', MAPS),
    'model.enrichment.frame': ('trm', MAPS),
    'model.enrichment.temporal_transform': ('protonet', MAPS),
    'model.enrichment.patches': ('strm', MAPS, 1),
    'model.enrichment.dropout': ('strm', MAPS, 0.25),
    'model.matcher.distance': ('protonet', MAPS),
    'model.matcher.cardinalities': ('trm', MAPS, (1, 3)),
    'model.matcher.dim': ('trm', MAPS, None),
    'model.matcher.cardinality_reduction': ('trx', {**MAPS, 'model.variant': 'code'}, 'sum'),
    'model.matcher.dropout': ('trm', MAPS, 0.25),
    'model.matcher.alignment': ('otam', MAPS),
    'model.matcher.smoothness': ('otam', MAPS, 0.5),
    'model.matcher.keep': ('otam', {**MAPS, 'model.matcher.alignment': 'drop_dtw'}, 0.5),
    'model.matcher.temporal': ('ta2n', MAPS),
    'model.matcher.spatial': ('ta2n', MAPS),
    'model.matcher.prototype': ('ta2n', MAPS),
    'model.matcher.perturbation': ('ta2n', MAPS, 0.1),
    'model.matcher.perturbation_every': ('ta2n', MAPS, 2),
    'model.matcher.reference': ('ta2n', {**MAPS, 'episode.shot': 2}),
    'model.matcher.pairs_per_chunk': ('ta2n', {**MAPS, 'model.backbone.batch_norm': 'frozen'}, 2),
    'model.matcher.distance_norm': ('ta2n', MAPS),
    'model.matcher.heads': ('hyrsm', MAPS, 4),
    'model.matcher.position': ('hyrsm', MAPS, (5.0, 1.0)),
    'model.matcher.relation_dropout': ('hyrsm', MAPS, (0.1, 0.2, 0.1, 0.05)),
    'model.matcher.fusion': ('mastaf', MAPS),
    'model.matcher.alpha': ('mastaf', MAPS, 0.5),
    'model.matcher.attention_temperature': ('mastaf', MAPS, 0.05),
    'model.matcher.score_scale': ('mastaf', MAPS, 5.0),
    'model.matcher.kernel': ('mastaf', MAPS),
    'model.matcher.residual': ('mastaf', MAPS),
    'model.matcher.order': ('ta2n', MAPS),
    'model.matcher.inter_weight': ('ta2n', MAPS, 0.5),
    'model.matcher.loss_weight': ('protonet', MAPS, 0.5),
    'model.classifier.classes': ('hyrsm', MAPS, 7),
    'model.classifier.weight': ('hyrsm', MAPS, 0.25),
    'model.query_similarity.weight': ('trm', MAPS, 0.25),
    'model.query_similarity.dim': ('strm', MAPS, 6),
    'train.loss_reduction': ('protonet', MAPS),
}


def test_every_option_has_a_row_or_is_given_in_a_test():
    """As `scale=1.0`, `'scale': 1.0` or `--config.model.matcher.scale=1.0`."""
    texts = ' '.join(
        path.read_text()
        for path in (REPOSITORY / 'tests').rglob('*.py')
        if path.name not in ('test_options.py', 'test_presets.py', 'test_configs.py')
    )
    given = set(re.findall(r"(\w+)'?(?: ?=(?!=)|:) ?", texts))
    assert [key for key in SETTINGS.keys() - MODEL.keys() if key.split('.')[-1] not in given] == []


def cases():
    for key, (method, changes, *value) in MODEL.items():
        config = get_config(method)
        with config.unlocked():
            config.update_from_flattened_dict(changes)
        usual = setting_of(config, key)
        others = (not usual,) if isinstance(usual, bool) else SETTINGS[key].choices
        for other in value or sorted(set(others) - {usual}):
            marks = pytest.mark.slow if method == 'vim' else ()  # a long trace
            yield pytest.param(method, changes, key, other, id=f'{key}={other}', marks=marks)


@functools.cache
def computation(method, changes):
    """The training loss and the test logits of an episode, as text; `changes` as pairs."""
    config = get_config(method)
    with config.unlocked():
        config.model.backbone.width = 2
        config.update_from_flattened_dict({**TINY, **dict(changes)})
    e, dense = config.episode, frames_read(config)
    clip, dtype = (dense, e.image_size, e.image_size, 3), jnp.uint8
    if config.model.backbone.name == 'features':
        clip, dtype = (dense, 2, 2, 8), jnp.float32
    support = jax.ShapeDtypeStruct((e.way, e.shot, *clip), dtype)
    query = jax.ShapeDtypeStruct((e.way, *clip), dtype)
    learner = create_learner(config.model)
    variables = jax.eval_shape(learner.init, jax.random.key(0), support, query)
    schedules = learner.schedules(20)

    def run(variables, support, query, key, classes):
        labels = jnp.arange(config.episode.way)
        schedule = jax.tree.map(lambda at: at(3), schedules)
        prediction, _ = learner.apply(
            {**variables, 'schedule': schedule} if schedule else variables,
            support,
            query,
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': key, 'sampler': key},
        )
        loss = episode_loss(prediction, labels, config, classes)
        at_test = any('at_test' in key for key, _ in changes)
        return loss, learner.apply(variables, support, query).logits if at_test else ()

    trace = jax.make_jaxpr(run)(
        variables, support, query, jax.random.key(0), jnp.arange(config.episode.way)
    )
    sigma = [[float(at(step)) for step in range(20)] for at in jax.tree.leaves(schedules)]
    return f'{trace} {[str(x) for x in trace.consts]} {sigma} {learner.rates}'


@pytest.mark.parametrize('method, changes, key, value', cases())
def test_an_option_changes_the_computation(method, changes, key, value, monkeypatch):
    monkeypatch.setattr(samplers, 'create_scan_network', lambda name, **_: TinyScan())
    usual = tuple(changes.items())
    if 'at_test' in key:  # which looks at the test too
        usual += ((key, True),)
    assert computation(method, (*usual, (key, value))) != computation(method, usual)


def test_the_same_computation_has_the_same_text():
    first, second = (computation.__wrapped__('trm', tuple(MAPS.items())) for _ in range(2))
    assert first == second
