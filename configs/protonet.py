"""ProtoNet: frame-wise cosine distance to the class mean (Snell et al. 2017, as the baseline of TA2N and VIM).

Embedded default: see docs/results.md for what it reaches.
    python main.py --config=configs/protonet.py --workdir=runs/protonet
Published setting: ResNet-50, 224 px, 5-way 5-shot.
    python main.py --config=configs/protonet.py:ssv2 --config.data.dir=DIR
"""

from fsar_jax.config import default_config, published_recipe


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'kinetics', 'hmdb51', 'ucf101'."""
    config = default_config()
    if preset:
        published_recipe(config, preset)
    config.model.matcher.name = 'prototypes'
    return config
