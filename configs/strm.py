"""STRM (Thatipelli et al. 2022): patch and frame enrichment, pairs of frames, query-class
similarity with λ = 0.1.

Paper, Table 1 (ResNet-50, 5-way 5-shot): Kinetics 86.7, SSv2 of OTAM 68.1, HMDB51 77.3, UCF101
96.9.
    python main.py --config=configs/strm.py --workdir=runs/strm
    python main.py --config=configs/strm.py:ssv2 --config.data.dir=DIR
    python main.py --config=configs/strm.py:ssv2-1shot --config.data.dir=DIR
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101', 'activitynet', with a number of shots ('ssv2-1shot') or without."""
    config = default_config()
    if preset:
        published_recipe(config, preset)
    config.model.enrichment.update(patch='self_attention', frame='mlp_mixer')
    config.model.matcher.update(name='cross_transformer', cardinalities=(2,))
    config.model.query_similarity.weight = 0.1
    return config
