"""ProtoNet: frame-wise cosine distance to the class mean (Snell et al. 2017, as the baseline of
TA2N and VIM).

VIM, Table 1 (ResNet-50, 5-way, 1-shot / 5-shot): HMDB51 54.2 / 68.4, UCF101 78.7 / 89.6, Kinetics
64.5 / 77.9, SSv2 of CMN 34.2 / 46.5.
    python main.py --config=configs/protonet.py --workdir=runs/protonet
    python main.py --config=configs/protonet.py:ssv2 --config.data.dir=DIR
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101'."""
    config = default_config()
    if preset:
        published_recipe(config, preset, ssv2='ssv2_small')  # of VIM, whose baseline it is
    config.model.matcher.name = 'prototypes'
    return config
