"""ProtoNet: frame-wise cosine distance to the class mean (Snell et al. 2017, as the baseline of
TA2N and VIM).

VIM, Table 1 (ResNet-50, 5-way, 1-shot / 5-shot): HMDB51 54.2 / 68.4, UCF101 78.7 / 89.6, Kinetics
64.5 / 77.9, SSv2 of CMN 34.2 / 46.5.
    python main.py --config=configs/protonet.py --workdir=runs/protonet
    python main.py --config=configs/protonet.py:ssv2 --config.data.dir=DIR
    python main.py --config=configs/protonet.py:ssv2-1shot --config.data.dir=DIR
VIM, Table 18 (1-shot, UCF101 82.1, SSv2 of CMN 36.3): 20 frames of 448 pixels and no sampler, of a
dataset that is built with --short_side=512.
    python main.py --config=configs/protonet.py:ssv2-1shot-dense --config.data.dir=DIR
VIM, Table 19 (1-shot; UCF101, SSv2 of CMN): exhaustive alignment without learned maps, over all
pairs and triples of frames (temporal: 82.3, 36.5), over offsets of the maps (spatial: 82.7, 35.3),
or both (83.9, 37.1).
    python main.py --config=configs/protonet.py:both --workdir=runs/exhaustive
    python main.py --config=configs/protonet.py:ucf101-1shot-both --config.data.dir=DIR
These presets have the recipe of TRX. In Tables 18 and 19 ProtoNet is trained as VIM is, for which
docs/tables.md has the commands.
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe

EXHAUSTIVE = ('temporal', 'spatial', 'both')


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101', 'activitynet', with a number of shots ('ssv2-1shot') or without; with
    '-dense' at the end for 20 frames of 448 pixels, or one of EXHAUSTIVE ('both', 'ssv2-both')."""
    config = default_config()
    dataset, _, alignment = preset.rpartition('-')
    if alignment not in EXHAUSTIVE:
        dataset, alignment = preset, ''
    preset = dataset
    dataset = preset.removesuffix('-dense')
    if preset:
        published_recipe(config, dataset, ssv2='ssv2_small')  # of VIM, whose baseline it is
    if preset != dataset:
        config.episode.update(frames=20, image_size=448)
        # With 'repeat', clips of 8 to 19 frames stay in the pool, as for a sampler (V16).
        config.data.update(resize=512, short_videos='repeat')
    config.model.matcher.name = 'tuple_cosine' if alignment == 'temporal' else 'prototypes'
    if alignment in ('temporal', 'both'):
        config.model.matcher.cardinalities = (2, 3)
    if alignment in ('spatial', 'both'):
        config.model.matcher.update(
            name='action_coordination',
            temporal=False,
            spatial='enumerate',
            offset_step=0.5,
            metric='tuple_cosine' if alignment == 'both' else None,
            pairs_per_chunk=25 if preset else 0,
        )
    return config
