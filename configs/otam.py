"""OTAM (Cao et al. 2020): ordered temporal alignment of frames, soft-min with λ = 0.1, both
directions.

VIM, Table 1 (ResNet-50, 5-way, 1-shot / 5-shot): HMDB51 54.5 / 66.1, UCF101 79.9 / 88.9, Kinetics
73.0 / 85.8, SSv2 of CMN 36.4 / 48.0.
    python main.py --config=configs/otam.py --workdir=runs/otam
    python main.py --config=configs/otam.py:ssv2 --config.data.dir=DIR
    python main.py --config=configs/otam.py:ssv2-1shot --config.data.dir=DIR
Other alignments: --config.model.matcher.alignment=soft_dtw (or drop_dtw, or vava).
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101', 'activitynet', with a number of shots ('ssv2-1shot') or without."""
    config = default_config()
    if preset:
        # The split that VIM cites it on.
        published_recipe(config, preset, ssv2='ssv2_small', loss_reduction='mean')
        config.model.backbone.normalize = 'grey'
    config.model.matcher.update(name='otam', alignment='otam', smoothness=0.1)
    return config
