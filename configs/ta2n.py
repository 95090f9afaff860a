"""TA2N (Li et al. 2022): temporal transform, then temporal and spatial coordination of each pair,
frame-wise cosine.

Paper, Table 2 (ResNet-50, 5-way, 1-shot / 5-shot): HMDB51 59.7 / 73.9, UCF101 81.9 / 95.1, SSv2 of
OTAM 47.6 / 61.0, Kinetics 72.8 / 85.8.
    python main.py --config=configs/ta2n.py --workdir=runs/ta2n
    python main.py --config=configs/ta2n.py:ssv2 --config.data.dir=DIR
With a number of shots, a preset is the recipe of TA2N's supplement (row A18); without one, it is
the one that all methods here share.
    python main.py --config=configs/ta2n.py:ssv2-1shot --config.data.dir=DIR
Its ablations (Tables 3 and 4): --config.model.enrichment.temporal_transform=False,
--config.model.matcher.temporal=False, --config.model.matcher.spatial=none (or grid, enumerate).
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import of_preset, published_recipe

EPOCH = 200 // 8  # 200 episodes, in steps of 8 (ours)
OWN = {  # epochs from one drop of the rate to the next, its factor, momentum, epochs in all
    'ssv2': (30, 0.8, 0.9, 600),
    'kinetics': (20, 0.9, 0.0, 200),
    'hmdb51': (5, 0.5, 0.9, 200),
    'ucf101': (5, 0.5, 0.9, 200),
}


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101', 'activitynet', with a number of shots ('ssv2-1shot') or without."""
    config = default_config()
    config.model.enrichment.temporal_transform = True
    config.model.matcher.update(
        name='action_coordination', temporal=True, spatial='mask', perturbation=0.2
    )
    if preset:
        published_recipe(config, preset)
        config.model.enrichment.dropout = 0.5  # A15: on the backbone's maps
        config.model.matcher.pairs_per_chunk = 25
        config.data.flip = not preset.startswith('ssv2')  # A16
        dataset, shot = of_preset(preset)
        if shot and dataset.split('_')[0] in OWN:
            own_recipe(config, *OWN[dataset.split('_')[0]])
    return config


def own_recipe(config, every: int, factor: float, momentum: float, epochs: int) -> None:
    """Sets what TA2N and its supplement say: optimiser, epochs, frames, test, and how several shots
    and the perturbation are drawn."""
    config.episode.query = 5  # of the released script
    config.data.sampling = 'segment'  # A17
    config.model.backbone.batch_norm_groups = 1
    config.model.matcher.update(
        reference='random',  # A11
        perturbation_every=40 * EPOCH,  # A10
    )
    config.train.update(
        episodes_per_step=8,
        accumulation_steps=8,
        num_steps=epochs * EPOCH,
        optimizer='sgd',
        learning_rate=1e-3,
        momentum=momentum,
        schedule='periodic',
        schedule_every=every * EPOCH,
        schedule_factor=factor,
        checkpoint_steps=every * EPOCH,
    )
    config.eval.num_episodes = 5000
