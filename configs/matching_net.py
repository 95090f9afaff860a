"""MatchingNet (Vinyals et al. 2016): attention over the support clips by the cosine of their mean
frame.

VIM cites it as the first of the learned metrics and has no numbers of it. Nothing published to
compare with: the presets are the recipe that all methods here share, on the splits of VIM.
    python main.py --config=configs/matching_net.py --workdir=runs/matching_net
    python main.py --config=configs/matching_net.py:ssv2 --config.data.dir=DIR
    python main.py --config=configs/matching_net.py:ssv2-1shot --config.data.dir=DIR
As printed, without a scale: --config.model.matcher.scale=1.
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101', 'activitynet', with a number of shots ('ssv2-1shot') or without."""
    config = default_config()
    if preset:
        published_recipe(config, preset, ssv2='ssv2_small')  # of VIM
    config.model.matcher.update(name='matching_net', scale=100.0)
    return config
