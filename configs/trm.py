"""Baseline TRM: the cross-transformer over pairs of frames (STRM, Sec. 2.1: TRX with Ω = {2}).

STRM, Fig. 6 (ResNet-50, 5-way 5-shot): SSv2 of OTAM 62.1.
    python main.py --config=configs/trm.py --workdir=runs/trm
    python main.py --config=configs/trm.py:ssv2 --config.data.dir=DIR
    python main.py --config=configs/trm.py:ssv2-1shot --config.data.dir=DIR
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101', 'activitynet', with a number of shots ('ssv2-1shot') or without."""
    config = default_config()
    if preset:
        published_recipe(config, preset)
    config.model.matcher.update(name='cross_transformer', cardinalities=(2,))
    return config
