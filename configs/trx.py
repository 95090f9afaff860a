"""TRX (Perrett et al. 2021): cross-transformers over pairs and triples of frames, Ω = {2, 3}.

Cited by STRM, Table 1 (ResNet-50, 5-way 5-shot): Kinetics 85.9, SSv2 of OTAM 64.6, HMDB51 75.6,
UCF101 96.1. By VIM, Table 1: SSv2 of CMN 59.1.
    python main.py --config=configs/trx.py --workdir=runs/trx
    python main.py --config=configs/trx.py:ssv2 --config.data.dir=DIR
    python main.py --config=configs/trx.py:ssv2-1shot --config.data.dir=DIR
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101', 'activitynet', with a number of shots ('ssv2-1shot') or without."""
    config = default_config()
    if preset:
        published_recipe(config, preset)
    config.model.matcher.update(name='cross_transformer', cardinalities=(2, 3))
    return config
