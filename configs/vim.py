"""VIM (Liu et al. 2023): frames chosen and amplified as the task asks, then spatial-temporal
alignment; and X + VIM for any X.

Paper, Table 1 (ResNet-50, 5-way, 1-shot / 5-shot): HMDB51 61.1 / 76.5, UCF101 86.2 / 96.1, Kinetics
73.8 / 87.1, SSv2 of CMN 40.8 / 54.9.
    python main.py --config=configs/vim.py --workdir=runs/vim
    python main.py --config=configs/vim.py:ssv2-1shot --config.data.dir=DIR
ActivityNet (Table 2: 1-shot 74.7, 3-shot 79.3, 5-shot 89.6):
    python main.py --config=configs/vim.py:activitynet-3shot --config.data.dir=DIR
TRX behind VIM's sampler, without VIM's alignment (row V21), and the same in the paper's setting:
    python main.py --config=configs/vim.py:trx --workdir=runs/trx_vim
    python main.py --config=configs/vim.py:trx-ssv2-1shot --config.data.dir=DIR
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
    'kinetics', 'hmdb51', 'ucf101', 'activitynet'), a method X of METHODS for X + VIM ('trx'), or
    both ('trx-ssv2'). A dataset may have a number of shots ('ssv2-1shot', 'trx-ssv2-1shot')."""
    method, _, dataset = (
        preset.partition('-') if preset.split('-')[0] in METHODS else ('ta2n', '', preset)
    )
    shot = None
    if dataset:
        try:
            dataset, shot = of_preset(dataset)
        except ValueError:
            raise ValueError(
                f"unknown preset '{printable(preset)}': choose one of "
                f"{', '.join((*PRESETS, *METHODS))}, two as in trx-ssv2, with or without a number "
                'of shots as in trx-ssv2-1shot, or none for the embedded default'
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
        config.model.matcher.update(prototype='mean', inter_weight=1.0)
    if not dataset:
        config.data.dataset = 'synthetic_actions/untrimmed'
        return config
    if shot:
        with_shots(config, shot)  # but for the rate, which Sec. 4.2 gives
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
