"""TA2N (Li et al. 2022): temporal transform, then temporal and spatial coordination of each pair, frame-wise cosine.

Paper, Table 2 and 3 (ResNet-50, 5-way 1-shot): UCF101 81.9, HMDB51 59.9, SSv2 47.6.
    python main.py --config=configs/ta2n.py --workdir=runs/ta2n
    python main.py --config=configs/ta2n.py:ssv2 --config.data.dir=DIR
Its ablations (Tables 3 and 4): --config.model.enrichment.temporal_transform=False, --config.model.matcher.temporal=False,
--config.model.matcher.spatial=none (or grid, enumerate).
"""

from fsar_jax.config import default_config, published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'kinetics', 'hmdb51', 'ucf101'."""
    config = default_config()
    config.model.enrichment.temporal_transform = True
    config.model.matcher.update(name='action_coordination', temporal=True, spatial='mask', perturbation=0.2)
    if preset:
        published_recipe(config, preset)
        config.model.enrichment.dropout = 0.5                         # A15: on the backbone's maps
        config.model.matcher.pairs_per_chunk = 25
        config.data.flip = preset != 'ssv2'                           # A16
    return config
