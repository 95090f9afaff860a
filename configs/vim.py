"""VIM (Liu et al. 2023): frames chosen and amplified as the task asks, then spatial-temporal
alignment; and X + VIM for any X.

Paper, Table 1 (ResNet-50, 5-way, 1-shot / 5-shot): HMDB51 61.1 / 76.5, UCF101 86.2 / 96.1, Kinetics
73.8 / 87.1, SSv2 of CMN 40.8 / 54.9.
    python main.py --config=configs/vim.py --workdir=runs/vim
    python main.py --config=configs/vim.py:ssv2-1shot --config.data.dir=DIR
ActivityNet (Table 2: 1-shot 74.7, 3-shot 79.3, 5-shot 89.6):
    python main.py --config=configs/vim.py:activitynet-3shot --config.data.dir=DIR

X + VIM has the metric of X in the place of the cosine: behind VIM's sampler, temporal transform and
coordination (row V21). Paper, Table 3 (5-way, 1-shot / 5-shot; strm is ours):
              HMDB51        UCF101        Kinetics      SSv2 of CMN   ActivityNet
    otam      59.3 / 74.2   83.6 / 94.5   74.3 / 86.1   38.9 / 51.4   75.4 / 87.7
    trx       55.5 / 76.3   83.7 / 95.6   68.8 / 86.0   39.6 / 58.0   72.2 / 89.9
    hyrsm     60.9 / 75.6   85.3 / 95.2   73.9 / 86.6   41.0 / 56.8   73.8 / 88.1
    python main.py --config=configs/vim.py:trx --workdir=runs/trx_vim
    python main.py --config=configs/vim.py:trx-ucf101-1shot --config.data.dir=DIR
X behind VIM's sampler alone, without alignment and L_inter, is vim.py:trx-sampler. Table 15 has
other alignments there (1-shot; HMDB51, UCF101, Kinetics, SSv2 of CMN): soft_dtw 58.0, 81.6, 73.0,
38.2; drop_dtw 57.2, 82.5, 72.6, 38.4; vava 58.9, 83.5, 73.2, 37.8.
    python main.py --config=configs/vim.py:otam-sampler-ucf101-1shot --config.data.dir=DIR \\
        --config.model.matcher.alignment=vava

Ablations (Tables 4, 5, 10, 11, 14 and 17): --config.model.sampler.name=motion_guided (or uniform),
.temporal=False, .spatial=none (or crop), .adaptive=False, .at_test=False, .intra_weight=0;
--config.model.matcher.order=spatial_first, .inter_weight=0; --config.model.align_at_test=False.
L_intra needs the task-adaptive sampler: with another one its weight has no effect, which the plan
says.
"""

import pathlib
import runpy

from fsar_jax.messages import printable
from fsar_jax.recipe import PRESETS, of_preset, with_shots

METHODS = ('otam', 'trx', 'hyrsm', 'strm')


def get_config(preset: str = ''):
    """preset: '' for the embedded default, a dataset ('ssv2', 'ssv2_full', 'ssv2_small',
    'kinetics', 'hmdb51', 'ucf101', 'activitynet'), a method X of METHODS for X + VIM ('trx'; or
    'trx-sampler', without the alignment), or both ('trx-ssv2', 'trx-sampler-ssv2'). A dataset may
    have a number of shots ('ssv2-1shot', 'trx-ssv2-1shot')."""
    parts = preset.split('-')
    method = parts.pop(0) if parts[0] in METHODS else 'ta2n'
    aligned = method == 'ta2n' or parts[:1] != ['sampler']
    dataset, shot = '-'.join(parts if aligned else parts[1:]), None
    if dataset:
        try:
            dataset, shot = of_preset(dataset)
        except ValueError:
            raise ValueError(
                f"unknown preset '{printable(preset)}': choose one of "
                f"{', '.join((*PRESETS, *METHODS))}, two as in trx-ssv2, with or without a number "
                'of shots as in trx-ssv2-1shot (trx-sampler, trx-sampler-ssv2: without alignment), '
                'or none for the embedded default'
            ) from None
    of_method = (
        'ssv2_small' if dataset == 'ssv2' else dataset
    )  # the split of VIM, whatever that of X is
    config = runpy.run_path(str(pathlib.Path(__file__).with_name(f'{method}.py')))['get_config'](
        of_method
    )
    config.model.sampler.update(name='task_adaptive', dense_frames=20, intra_weight=0.5)
    if method == 'ta2n':
        # as printed, its size is that of Fig. 22; with the code of TA2N it would be 12.6 M larger
        config.model.variant = 'paper'
    elif aligned:
        config.model.enrichment.temporal_transform = True
        config.model.matcher.update(metric=config.model.matcher.name, name='action_coordination')
    if aligned:
        config.model.matcher.update(prototype='mean', inter_weight=1.0)
    if not dataset:
        config.data.dataset = 'synthetic_actions/untrimmed'
        return config
    if shot:
        with_shots(config, shot)  # but for the rate, which Sec. 4.2 gives
    if aligned:
        if config.model.enrichment.patch == 'none':
            config.model.enrichment.dropout = 0.5  # A15: on the backbone's maps
        config.model.matcher.pairs_per_chunk = 25
        config.data.flip = not dataset.startswith('ssv2')  # A16
    config.model.backbone.batch_norm_groups = 1
    config.model.sampler.update(
        scan_network='shufflenet_v2_x0_5',
        hidden=512,
        task_dim=128,
        num_samples=500,
        sigma=0.1,
        sigma_schedule='steps',
        sigma_factor=0.8,
    )
    epochs = 15_000  # of 200 episodes, Sec. 4.2
    config.train.update(
        episodes_per_step=8,
        accumulation_steps=8,
        num_steps=epochs * 200 // 8,
        optimizer='sgd',
        learning_rate=1e-2,
        schedule='steps',
        schedule_steps=(5000 * 25, 10_000 * 25),
        schedule_factor=0.9,
        loss_reduction='mean',
    )
    config.model.sampler.sigma_steps = 2000 * 25
    return config
