"""The settings that the experiments of the papers share, for each of their datasets."""

import re

import ml_collections

from fsar_jax.messages import printable

DATASETS = {  # of a preset -> as fsar_jax.build names it
    'ssv2_full': 'ssv2_full_otam',
    'ssv2_small': 'ssv2_small_cmn',
    'kinetics': 'kinetics100_cmn',
    'hmdb51': 'hmdb51_arn',
    'ucf101': 'ucf101_arn',
    'activitynet': 'activitynet100',
}
PRESETS = ('ssv2', *DATASETS)


def of_preset(preset: str) -> tuple[str, int | None]:
    """The dataset and the number of shots that a preset names: 'ucf101-1shot' → ('ucf101', 1),
    'ucf101' → ('ucf101', None).

    Raises:
      ValueError: an unknown preset, with those known.
    """
    found = re.fullmatch(r'(\w+?)(?:-([1-9]|10)shot)?', preset, re.ASCII)
    if not found or found[1] not in PRESETS:
        raise ValueError(
            f"unknown preset '{printable(preset)}': choose one of {', '.join(PRESETS)}, with or "
            'without a number of shots as in ssv2-1shot, or none for the embedded default'
        )
    return found[1], int(found[2]) if found[2] else None


def note_on_shots(preset: str, shot: int) -> str:
    """What to say where a run takes the recipe of a preset for another number of shots; '' for
    nothing.

    Args:
      preset: as on the command line, 'ssv2' or 'trx-ssv2'; of a config of your own, any text.
      shot: config.episode.shot.
    """
    recipe, _, end = preset.rpartition('-')
    named = re.fullmatch(r'(\d+)shot', end, re.ASCII)
    if not named:
        recipe = preset
    of_recipe = int(named[1]) if named else 5
    if recipe.rpartition('-')[2] not in PRESETS or shot == of_recipe or shot > 10:
        return ''
    return (
        f"note: the preset '{preset}' has a recipe for episode.shot={of_recipe}, and this run has "
        f"{shot}: the preset '{recipe}-{shot}shot' has one for that"
    )


def published_recipe(
    config: ml_collections.ConfigDict,
    preset: str,
    ssv2: str = 'ssv2_full',
    loss_reduction: str = 'sum',
) -> ml_collections.ConfigDict:
    """Sets what TRX, STRM and the baselines that they report share: ResNet-50, 224 px, SGD, 5-way
    5-shot. With a number of shots ('ssv2-1shot') the shots are that, and `with_shots` sets what
    depends on it.

    Args:
      config: from `default_config`; changed in place.
      preset: one of PRESETS, with or without '-1shot' to '-10shot'.
      ssv2: which split the preset 'ssv2' names: 'ssv2_full' (of OTAM) or 'ssv2_small' (of CMN), as
        in the paper of the method.
      loss_reduction: config.train.loss_reduction of the method.

    Returns:
      `config`. Sources: STRM Sec. 4 and supplement A4, and the released scripts where the paper is
        silent
      (docs/paper_vs_code.md, rows S13 to S23).

    Raises:
      ValueError: an unknown preset, with those known.
    """
    dataset, shot = of_preset(preset)
    of_ssv2 = dataset.startswith('ssv2')
    episodes = 75_000 if of_ssv2 else 20_010
    with config.unlocked():
        config.model.backbone.update(
            name='resnet50', batch_norm='split', batch_norm_groups=4, remat=True
        )
        config.model.matcher.dim = 1152
        config.episode.update(
            way=5, shot=5, query=5 if dataset == 'kinetics' else 4, frames=8, image_size=224
        )
        config.data.update(
            dataset=DATASETS[ssv2 if dataset == 'ssv2' else dataset],
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
            loss_reduction=loss_reduction,
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
        if shot:
            with_shots(config, shot)
    return config


def with_shots(config: ml_collections.ConfigDict, shot: int) -> None:
    """Turns the 5-shot recipe into one of `shot` shots (ours, row S24 of docs/paper_vs_code.md).

    An episode keeps its number of clips: a class of fewer shots has more queries. So memory, time
    and the clips that a class needs stay what they are. The rate for the mean over the queries is
    that of the 5-shot recipe: as its loss is a sum, the rate of a sum over more queries is
    smaller. Batch norm sees all support frames of an episode together: at one shot, a quarter of
    them would be little more than one video, and what sets it apart would be normalised away.
    """
    episode, train = config.episode, config.train
    before = episode.way * episode.query
    episode.query += max(episode.shot - shot, 0)
    episode.shot = shot
    queries = episode.way * episode.query
    train.learning_rate *= before if train.loss_reduction == 'mean' else before / queries
    if shot < 5:
        config.model.backbone.batch_norm_groups = 1
