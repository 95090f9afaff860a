"""TARN (Bishay et al. 2019): a support clip aligned to the query by attention, and a learned
measure of how alike they are.

Cited by VIM, Table 1, and TA2N, Table 2 (C3D, 5-way, 1-shot / 5-shot): Kinetics 64.8 / 78.5. Those
are with another backbone and recipe: the presets are the recipe that all methods here share.
    python main.py --config=configs/tarn.py --workdir=runs/tarn
    python main.py --config=configs/tarn.py:kinetics-1shot --config.data.dir=DIR
Other comparisons of its steps: --config.model.matcher.comparison=product (or difference).
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101', 'activitynet', with a number of shots ('ssv2-1shot') or without."""
    config = default_config()
    if preset:
        published_recipe(config, preset, ssv2='ssv2_small')  # of VIM
    config.model.matcher.update(name='attentive_relation', hidden=256)
    return config
