"""TA2N (Li et al. 2022): temporal transform, then temporal and spatial coordination of each pair,
frame-wise cosine.

Paper, Table 2 (ResNet-50, 5-way, 1-shot / 5-shot): HMDB51 59.7 / 73.9, UCF101 81.9 / 95.1, SSv2 of
OTAM 47.6 / 61.0, Kinetics 72.8 / 85.8.
    python main.py --config=configs/ta2n.py --workdir=runs/ta2n
    python main.py --config=configs/ta2n.py:ssv2 --config.data.dir=DIR
Its ablations (Tables 3 and 4): --config.model.enrichment.temporal_transform=False,
--config.model.matcher.temporal=False, --config.model.matcher.spatial=none (or grid, enumerate).
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101'."""
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
    return config
