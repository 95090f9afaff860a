"""HyRSM (Wang et al. 2022): relation within and across videos, bidirectional mean Hausdorff
distance, classifier with weight 0.6.

VIM, Table 1 (ResNet-50, 5-way, 1-shot / 5-shot): HMDB51 60.3 / 76.0, UCF101 83.9 / 94.7, Kinetics
73.7 / 86.1, SSv2 of CMN 40.6 / 56.1.
    python main.py --config=configs/hyrsm.py --workdir=runs/hyrsm
    python main.py --config=configs/hyrsm.py:ssv2 --config.data.dir=DIR
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101'."""
    config = default_config()
    if preset:
        published_recipe(config, preset, ssv2='ssv2_small')  # as VIM cites it
        config.model.backbone.normalize = 'grey'  # H6
    config.model.matcher.update(name='set_matching', heads=8)
    config.model.classifier.weight = 0.6  # H5
    config.train.loss_reduction = 'mean'
    return config
