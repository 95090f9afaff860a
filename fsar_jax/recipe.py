"""The settings that the experiments of the papers share, for each of their datasets."""

import ml_collections

from fsar_jax.messages import printable

DATASETS = {  # of a preset -> as fsar_jax.build names it
    'ssv2_full': 'ssv2_full_otam',
    'ssv2_small': 'ssv2_small_cmn',
    'kinetics': 'kinetics100_cmn',
    'hmdb51': 'hmdb51_arn',
    'ucf101': 'ucf101_arn',
}
PRESETS = ('ssv2', *DATASETS)


def published_recipe(
    config: ml_collections.ConfigDict, preset: str, ssv2: str = 'ssv2_full'
) -> ml_collections.ConfigDict:
    """Sets what TRX, STRM and the baselines that they report share: ResNet-50, 224 px, SGD, 5-way
    5-shot.

    Args:
      config: from `default_config`; changed in place.
      preset: one of PRESETS.
      ssv2: which split the preset 'ssv2' names: 'ssv2_full' (of OTAM) or 'ssv2_small' (of CMN), as
        in the paper of the method.

    Returns:
      `config`. Sources: STRM Sec. 4 and supplement A4, and the released scripts where the paper is
        silent
      (docs/paper_vs_code.md, rows S13 to S23).

    Raises:
      ValueError: an unknown preset, with those known.
    """
    if preset not in PRESETS:
        raise ValueError(
            f"unknown preset '{printable(preset)}': choose one of {', '.join(PRESETS)}, or none "
            "for the embedded default"
        )
    of_ssv2 = preset.startswith('ssv2')
    episodes = 75_000 if of_ssv2 else 20_010
    with config.unlocked():
        config.model.backbone.update(
            name='resnet50', batch_norm='split', batch_norm_groups=4, remat=True
        )
        config.model.matcher.dim = 1152
        config.episode.update(
            way=5, shot=5, query=5 if preset == 'kinetics' else 4, frames=8, image_size=224
        )
        config.data.update(
            dataset=DATASETS[ssv2 if preset == 'ssv2' else preset],
            resize=256,
            crop='random',
            flip=True,
            sampling='trx',
            short_videos='drop',
            prefetch=2,
        )  # a batch of 16 episodes is 0.9 GB
        config.train.update(
            episodes_per_step=16,
            accumulation_steps=16,
            num_steps=-(-episodes // 16),
            loss_reduction='sum',
            optimizer='sgd',
            momentum=0.0,
            weight_decay=0.0,
            schedule='constant',
            clip_norm=0.0,
            learning_rate=1e-3 if of_ssv2 else 1e-4,
            checkpoint_steps=250,
            log_steps=25,
        )
        config.eval.update(num_episodes=10_000, val_episodes=1000, query=1, videos_per_batch=8)
    return config
