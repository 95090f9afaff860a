"""STRM (Thatipelli et al. 2022): patch and frame enrichment, pairs of frames, query-class
similarity with λ = 0.1.

Paper, Table 1 (ResNet-50, 5-way 5-shot): Kinetics 86.7, SSv2 of OTAM 68.1, HMDB51 77.3, UCF101
96.9.
    python main.py --config=configs/strm.py --workdir=runs/strm
    python main.py --config=configs/strm.py:ssv2 --config.data.dir=DIR
    python main.py --config=configs/strm.py:ssv2-1shot --config.data.dir=DIR
Jnt-ST (Table 3: SSv2 64.7 with one layer, 65.8 with two), where all patches of a clip attend to
each other in the place of both enrichments:
    python main.py --config=configs/strm.py:joint1-ssv2 --config.data.dir=DIR
A share of the tuples (Fig. 6 right: SSv2 65.4 with 20%) in a run RUN of the second command; the
trials of the paper are other seeds, and its number is their mean:
    python main.py --config=configs/strm.py:ssv2 --workdir=RUN --mode=evaluate \\
        --config.model.matcher.tuples_share=0.2 --config.model.matcher.tuples_seed=0
Ablations (Fig. 6 left, Table 4, Fig. 8): --config.model.enrichment.patch=none (or mlp_mixer),
.frame=none (or self_attention); --config.model.query_similarity.weight=0.
"""

from fsar_jax.config import default_config
from fsar_jax.recipe import published_recipe

JOINT = {'joint1': 1, 'joint2': 2}  # layers of the joint enrichment


def get_config(preset: str = ''):
    """preset: '' for the embedded default, or 'ssv2', 'ssv2_full', 'ssv2_small', 'kinetics',
    'hmdb51', 'ucf101', 'activitynet', with a number of shots ('ssv2-1shot') or without; each with
    'joint1' or 'joint2' before it for Jnt-ST ('joint1-ssv2'), which alone is Jnt-ST on the embedded
    data."""
    joint, _, dataset = preset.partition('-') if preset.split('-')[0] in JOINT else ('', '', preset)
    config = default_config()
    if dataset:
        published_recipe(config, dataset)
    config.model.enrichment.update(patch='self_attention', frame='mlp_mixer')
    if joint:
        config.model.enrichment.update(
            patch='joint_self_attention', frame='none', joint_layers=JOINT[joint]
        )
    config.model.matcher.update(name='cross_transformer', cardinalities=(2,))
    config.model.query_similarity.weight = 0.1
    return config
