"""All settings of a run: their definitions, the default config and its checks.

A setting of a stage is a field of the module that reads it, in fsar_jax/samplers, backbones,
enrichment or matchers; what all of them share is in fsar_jax/stage.py. The other settings are
fields of the dataclasses below. docs/settings.md lists all of them.

The files in configs/ start from `default_config()` and change a few values. No number depends on a
choice that is hidden in code. What the papers leave out and their code decides silently (input
scaling, loss reduction, batch statistics, frame sampling, short videos, flips, resize and crop,
cardinalities, test queries, seeds, model selection) is a setting. Its `factor` is the letter under
which docs/paper_vs_code.md discusses it.
"""

import dataclasses
import json
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections

from fsar_jax import backbones, enrichment, matchers, samplers
from fsar_jax.data.frame_sampling import RULES
from fsar_jax.fields import (
    Path,
    Saving,
    Setting,
    check_section,
    has_field,
    setting,
    settings_of,
    union,
)
from fsar_jax.files import local_path
from fsar_jax.recipe import PRESETS as PRESETS  # what files like those in configs/ import
from fsar_jax.recipe import published_recipe as published_recipe
from fsar_jax.stage import Shared, Stage
from fsar_jax.stages import build_stages, choice


@dataclasses.dataclass(frozen=True)
class Run:
    """Settings at the top level of the config."""

    seed: int = setting(
        0,
        at_least=0,
        at_most=2**32 - 1,
        factor='Z',
        help='random seed of training: episodes, augmentation, initialisation and dropout',
    )
    keep_programs: bool = setting(
        True,
        affects='cost',
        help='keep what JAX compiles in ~/.cache/fsar_jax for the next start of the same run; '
        'JAX_COMPILATION_CACHE_DIR names another folder',
    )


@dataclasses.dataclass(frozen=True)
class Episode:
    """config.episode."""

    way: int = setting(
        5,
        at_least=2,
        why='an episode needs at least two classes to choose between',
        help='number of classes in an episode',
    )
    shot: int = setting(1, at_least=1, help='number of support clips per class')
    query: int = setting(
        3,
        at_least=1,
        saving=Saving(2, ('training',)),
        help='number of query clips per class in training; eval.query is that of evaluation',
    )
    query_classes: int | None = setting(
        None,
        at_least=1,
        help='number of classes of an episode, drawn at random, that have queries; None: all of '
        'them',
    )
    frames: int = setting(
        8,
        at_least=1,
        affects='model',
        saving=Saving(2, ('training',)),
        help='L, number of frames of each clip that the model sees',
    )
    image_size: int = setting(
        64,
        at_least=1,
        affects='model',
        saving=Saving(2, ('training',), where=lambda _, config: not config.data.features),
        help='pixels per side of the square crop that the model sees',
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """config.data."""

    dataset: str = setting(
        'synthetic_actions/misaligned',
        help='name of the dataset, as for python -m fsar_jax.build --dataset',
    )
    dir: Path = setting(
        'data',
        affects='cost',
        help='folder that contains the built datasets; only their content affects results',
    )
    features: Path | None = setting(
        None,
        affects='cost',
        help="folder of python -m fsar_jax.extract, for the backbone 'features'; it decides "
        'image_size, resize, crop and flip, and only its content affects results',
    )
    feature_shape: tuple[int, ...] = setting(
        (),
        at_least=1,
        affects='model',
        help='shape h, w, C of what data.features holds of a frame; (): found there',
    )
    resize: int = setting(
        64,
        at_least=1,
        affects='model',
        factor='R',
        help='short side of a frame before the crop, in pixels; frames stored at this size are '
        'not resized',
    )
    crop: str = setting(
        'random',
        choices=('random', 'centre'),
        factor='R',
        help='position of the crop in training, the same for all frames of a clip; evaluation '
        'crops the centre',
    )
    flip: bool = setting(False, factor='F', help='mirror each training clip with probability 0.5')
    sampling: str = setting(
        'trx',
        choices=RULES,
        affects='model',
        factor='S',
        help="how L frames of a clip are picked: evenly spaced ('uniform'; 'trx' with random "
        "ends in training), or one from each of L equal parts ('segment')",
    )
    test_jitter: bool = setting(
        False,
        factor='S',
        help='draw the frames of an evaluated clip as in training, once for each clip, by '
        'eval.seed; False: the fixed frames of the rule',
    )
    short_videos: str = setting(
        'drop',
        choices=('drop', 'repeat'),
        affects='model',
        factor='D',
        help="clips with fewer than L frames: 'drop' leaves them out, 'repeat' shows their "
        'frames more than once',
    )
    train_clips_per_class: int | None = setting(
        None,
        at_least=1,
        affects='training',
        help='train on this many clips of each class, drawn by the seed of the run; a class that '
        'has fewer keeps all; None: all clips',
    )
    num_threads: int = setting(
        0,
        at_least=0,
        at_most=1024,
        affects='cost',
        help='number of reading threads where num_workers is 0; 0: one per core',
    )
    num_workers: int = setting(
        0,
        at_least=0,
        at_most=1024,
        affects='cost',
        help='number of reading processes; 0: threads of the main process read',
    )
    prefetch: int = setting(
        4,
        at_least=0,
        at_most=10_000,
        affects='cost',
        help='number of batches that are loaded ahead',
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """config.train."""

    num_steps: int = setting(240, at_least=1, affects='length', help='number of optimiser steps')
    episodes_per_step: int = setting(
        4,
        at_least=1,
        affects='training',
        help='number of episodes per optimiser step; their losses are averaged',
    )
    accumulation_steps: int = setting(
        1,
        at_least=1,
        affects='cost',
        saving=Saving(0, ('training',), up_to='train.episodes_per_step'),
        help='number of parts that the episodes of a step are split into, to run one after '
        'another in less memory; more where the episodes do not divide into so many, fewer where '
        'a part would not have an episode for each device',
    )
    loss_reduction: str = setting(
        'sum',
        choices=('sum', 'mean'),
        affects='training',
        factor='L',
        help="how the losses of an episode's queries are combined; the losses of episodes are "
        'averaged',
    )
    optimizer: str = setting(
        'adam',
        choices=('adam', 'sgd'),
        affects='training',
        help="the optimiser; weight decay is decoupled for 'adam' (AdamW) and added to the "
        "gradient for 'sgd'",
    )
    learning_rate: float = setting(
        1e-3, at_least=0, affects='training', help='learning rate at the end of the warm-up'
    )
    momentum: float = setting(
        0.0, at_least=0, below=1, affects='training', help="momentum of 'sgd'"
    )
    weight_decay: float = setting(0.0, at_least=0, affects='training', help='weight decay; 0: none')
    schedule: str = setting(
        'cosine',
        choices=('constant', 'cosine', 'steps', 'periodic'),
        affects='training',
        help="how the learning rate changes after the warm-up: 'cosine' falls to 0 at num_steps, "
        "'steps' drops at schedule_steps, 'periodic' every schedule_every steps",
    )
    warmup_steps: int = setting(
        0,
        at_least=0,
        affects='training',
        help='number of first steps in which the learning rate rises from 0',
    )
    schedule_steps: tuple[int, ...] = setting(
        (),
        at_least=1,
        affects='training',
        help="for schedule 'steps': at each of these steps the learning rate is multiplied by "
        'schedule_factor',
    )
    schedule_factor: float = setting(
        0.1,
        at_least=0,
        affects='training',
        help="for schedules 'steps' and 'periodic': factor of the learning rate at each drop",
    )
    schedule_every: int = setting(
        100,
        at_least=1,
        affects='training',
        help="for schedule 'periodic': number of steps between two drops, counted from the end of "
        'the warm-up',
    )
    clip_norm: float = setting(
        0.0,
        at_least=0,
        affects='training',
        help='the gradient is scaled down to this global norm if it is larger; 0: never',
    )
    checkpoint_steps: int = setting(
        60,
        at_least=1,
        affects='training',
        help='number of steps between checkpoints; each checkpoint is evaluated on val',
    )
    keep_checkpoints: int = setting(
        2,
        at_least=1,
        affects='cost',
        help='number of latest checkpoints to keep, besides the best one',
    )
    log_steps: int = setting(
        25,
        at_least=1,
        affects='cost',
        help='number of steps between printed log lines; metrics.jsonl has a line for every step',
    )


@dataclasses.dataclass(frozen=True)
class Eval:
    """config.eval."""

    split: str = setting(
        'test',
        choices=('train', 'val', 'test'),
        affects='evaluation',
        names_file=True,
        help='split to evaluate at the end of training or with --mode=evaluate',
    )
    seed: int = setting(
        0,
        at_least=0,
        at_most=2**63 - 1,
        unless='eval.episodes_file',
        factor='Z',
        help='random seed of evaluation episodes; separate from `seed`, so that runs face the '
        'same ones',
    )
    num_episodes: int = setting(
        10_000,
        at_least=1,
        affects='evaluation',
        unless='eval.episodes_file',
        factor='E',
        help='number of episodes to evaluate',
    )
    val_episodes: int = setting(
        500,
        at_least=0,
        affects='training',
        factor='T',
        help='number of val episodes that select the best checkpoint; 0: the last checkpoint is '
        'taken',
    )
    query: int = setting(
        1, at_least=1, factor='E', help='number of query clips per class in evaluation'
    )
    cache: bool = setting(
        True,
        affects='cost',
        help='embed each video once and reuse it; False: embed it again in every episode',
    )
    episodes_file: Path | None = setting(
        None,
        affects='list',
        help='file with a list of episodes to evaluate, instead of random ones',
    )
    episodes_per_chunk: int = setting(
        250,
        at_least=1,
        affects='cost',
        saving=Saving(0, ('evaluation',)),
        help='number of episodes to match at once in evaluation; fewer where their clips have no '
        'room on the device',
    )
    videos_per_batch: int = setting(
        32,
        at_least=1,
        affects='cost',
        saving=Saving(0, ('evaluation', 'extraction')),
        help='number of videos to embed at once in evaluation',
    )
    embeddings: str = setting(
        'auto',
        choices=('auto', 'replicated', 'sharded'),
        affects='cost',
        saving=Saving(0, ('evaluation',), value='sharded', devices=2),
        help="where the embeddings of a split are kept: a copy on each device ('replicated'), or a "
        "part of them on each ('sharded'), which takes 1/n of the memory on n devices and sends "
        "clips between them; 'auto': copies where they fit, else parts, and where these do not fit "
        'either, as with eval.cache=False (docs/costs.md)',
    )
    embeddings_gb: float | None = setting(
        None,
        at_least=0,
        affects='cost',
        help="for eval.embeddings 'auto': GB of each device that the embeddings of a split may "
        'take; None: three quarters of what is free there',
    )
    frame_cache_gb: float = setting(
        8.0,
        at_least=0,
        affects='cost',
        saving=Saving(
            0,
            ('evaluation',),
            where=lambda stages, _: (
                stages['sampler'].per_episode and stages['sampler'].frames_look_alike
            ),
        ),
        help='for a sampler that adapts to the episode: if the embeddings of all frames of the '
        'split take at most this many GB of each device, they are computed once; otherwise each '
        'episode embeds the frames that it chooses (docs/costs.md)',
    )
    measured_episodes: int = setting(
        0,
        at_least=0,
        affects='evaluation',
        help='misalignment and frame selection are measured on this many of the first test '
        'episodes; 0: not measured',
    )


class Section(NamedTuple):
    """A part of the config.

    Attributes:
      plain: dataclass with the settings that are not fields of a stage; None if there are none.
      stages: {choice: module}; the fields of the modules are the other settings.
      users: {name: module} of further modules that read these settings.
      prefix: what `users` put before the name of a setting in the name of their field.
    """

    plain: type | None = None
    stages: Mapping = {}
    users: dict = {}
    prefix: str = ''

    def settings(self) -> dict[str, Setting]:
        """The settings of this section by name."""
        return union(x for x in (self.plain, *self.stages.values()) if x is not None)

    def used_by(self, name: str) -> dict[str, Callable]:
        """{choice: module} of the choices that read a setting: those with a field of its name, with
        or without `prefix`. In a user, the field is not a setting of its own. {} for a setting that
        belongs to no choice."""
        names = (name, self.prefix + name)
        of_stages = {
            choice: module
            for choice, module in self.stages.items()
            if module and any(has_field(module, field) for field in names)
        }
        of_users = {
            choice: module
            for choice, module in self.users.items()
            for own in [settings_of(module)]
            if any(has_field(module, field) and field not in own for field in names)
        }
        return of_stages | of_users


SECTIONS = {  # in order; '' is the config itself
    '': Section(Run),
    'episode': Section(Episode),
    'model': Section(Shared),
    'model.sampler': Section(samplers.SamplerChoice, samplers.SAMPLERS),
    'model.backbone': Section(backbones.BackboneChoice, backbones.BACKBONES),
    'model.enrichment': Section(
        enrichment.EnrichmentChoice,
        ChainMap(
            {'temporal_transform': enrichment.TemporalTransform}, enrichment.PATCH_ENRICHMENTS
        ),
    ),
    'model.matcher': Section(
        matchers.MatcherChoice,
        matchers.MATCHERS,
        {'query_similarity': matchers.QueryClassSimilarity},
    ),
    'model.classifier': Section(matchers.Classifier, users=matchers.MATCHERS, prefix='classifier_'),
    'model.query_similarity': Section(None, {'query_similarity': matchers.QueryClassSimilarity}),
    'data': Section(Data),
    'train': Section(Train),
    'eval': Section(Eval),
}


def settings_of_sections() -> dict[str, Setting]:
    """{'model.matcher.name': Setting, …} of all sections, of the stages that are listed now."""
    return {
        f'{section}.{name}'.removeprefix('.'): known
        for section, part in SECTIONS.items()
        for name, known in part.settings().items()
    }


SETTINGS = settings_of_sections()


def default_config() -> ml_collections.ConfigDict:
    """The embedded default: 5-way 1-shot on synthetic_actions/misaligned, small enough for two CPU
    cores. A stage that a session has put into its table, or replaced there, counts from now on."""
    if (now := settings_of_sections()) != SETTINGS:
        SETTINGS.clear()
        SETTINGS.update(now)
    config = ml_collections.ConfigDict()
    for key, known in SETTINGS.items():
        *sections, name = key.split('.')
        section = config
        for part in sections:
            if part not in section:
                section[part] = ml_collections.ConfigDict()
            section = section[part]
        value = known.default
        if known.optional:
            # As a flag, its value is read as Python would read it: --config.….dim=None, or =64.
            value = ml_collections.FieldReference(known.default, field_type=object)
        if known.same_as:
            within, _, other = known.same_as.rpartition('.')
            value = setting_of(config, within).get_ref(other)
        if known.own_default:
            stages = SECTIONS['.'.join(sections)].stages
            own = {
                x: settings_of(stage)[name].default
                for x, stage in stages.items()
                if name in settings_of(stage)
            }
            follow = Following(own_default, (own, known.default))
            value = ml_collections.FieldReference(section.get_ref('name'), op=follow)
        section[name] = value
    return config.lock()


class Following(NamedTuple):
    """An operation on a reference, as ml_collections calls it: value → fn(value, *args)."""

    fn: Callable[..., Any]
    args: tuple


def own_default(choice: str, defaults: dict[str, Any], otherwise: Any) -> Any:
    """The default that a choice has of its own, or `otherwise`."""
    return defaults.get(choice, otherwise)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every value, and that the values fit each other.

    Raises:
      ValueError: one line that names the key, what is wrong with its value and what it may be.
    """
    check_values(config)
    stages = build_stages(config.model)
    for stage in filter(None, stages.values()):
        stage.check(config.episode.frames)
    check_shapes(config, stages['backbone'])
    check_episode(config)
    check_training(config.train)


def check_values(config: ml_collections.ConfigDict, inside: str = '') -> None:
    """Checks types, ranges and choices of the settings that `config` has.

    Args:
      config: the whole config or, with inside='model', its section 'model'.

    Raises:
      ValueError: as `validate`.
    """
    for section, part in SECTIONS.items():
        if f'{section}.'.startswith(f'{inside}.') or not inside:
            known = setting_of(config, section.removeprefix(inside).removeprefix('.'), {})
            check_section(known, part.settings(), section)


def check_shapes(config: ml_collections.ConfigDict, backbone: Stage) -> None:
    """Raises ValueError if frames, image sizes and backbone do not fit each other."""
    features, name = config.data.features, choice(config.model, 'backbone')
    if backbone.takes_maps and not features:
        raise ValueError(
            f'{name} reads features: set --config.data.features to a '
            'folder that python -m fsar_jax.extract has written, or choose a backbone for frames'
        )
    if features and not backbone.takes_maps:
        raise ValueError(
            f'config.data.features is set, and {name} reads frames: '
            f'set {backbones.ON_FEATURES}, or leave data.features out'
        )
    if config.episode.image_size > config.data.resize:
        raise ValueError(
            f'config.episode.image_size={config.episode.image_size} cannot be cropped from a short '
            f'side of config.data.resize={config.data.resize}: lower it or raise config.data.resize'
        )


def check_episode(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError if the numbers of classes and clips of an episode do not fit each other."""
    episode, clips = config.episode, config.data.train_clips_per_class
    if episode.query_classes and episode.query_classes > episode.way:
        raise ValueError(
            f'config.episode.query_classes={episode.query_classes} is more than '
            f'config.episode.way={episode.way}: lower it, or leave it out for all classes'
        )
    if clips and clips < episode.shot + episode.query:
        raise ValueError(
            f'config.data.train_clips_per_class={clips} is fewer than config.episode.shot='
            f'{episode.shot} + config.episode.query={episode.query}: raise it, or lower these'
        )


def check_training(train: ml_collections.ConfigDict) -> None:
    """Raises ValueError if the values of config.train do not fit each other."""
    if train.warmup_steps >= train.num_steps:
        raise ValueError(
            f'config.train.warmup_steps={train.warmup_steps} must be smaller than '
            f'config.train.num_steps={train.num_steps}: the learning rate would never be reached'
        )
    if train.schedule == 'periodic' and not train.schedule_factor:
        raise ValueError(
            "config.train.schedule_factor=0.0 must be greater than 0 for config.train.schedule="
            "'periodic': nothing would be learned after the first drop"
        )
    steps = tuple(train.schedule_steps)
    if (
        train.schedule == 'steps'
        and steps
        and (list(steps) != sorted(set(steps)) or steps[0] <= train.warmup_steps)
    ):
        raise ValueError(
            f'config.train.schedule_steps={steps} must ascend, from above '
            f'config.train.warmup_steps={train.warmup_steps}'
        )


def resolve_paths(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy with '~' and '~user' expanded in every path.

    Raises:
      ValueError: one line about a path that is an address (gs://…), or whose user does not exist.
    """
    config = config.copy_and_resolve_references()
    for key, known in SETTINGS.items():
        given = setting_of(config, key)
        if known.kind == 'path' and given:
            path = local_path(given, f'config.{key}')
            if given.startswith('~'):
                config.update_from_flattened_dict({key: str(path)})
    return config


def setting_of(config: ml_collections.ConfigDict, key: str, absent: Any = None) -> Any:
    """The value of a key such as 'episode.shot'; '' stands for the whole config. Returns
    `absent` if the config has no such key."""
    for part in filter(None, key.split('.')):
        if part not in config:
            return absent
        config = config[part]
    return config


def flatten(tree: dict, prefix: str = '') -> dict:
    """{'a': {'b': 1}} → {'a.b': 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def settings_by_key(config: ml_collections.ConfigDict) -> dict:
    """{'episode.shot': 1, …} for every key, with values as in JSON."""
    return flatten(json.loads(config.to_json()))


def with_newer_settings(saved: dict) -> dict:
    """The saved settings {key: value} of a run, completed by the settings that are newer than the
    run. A newer setting gets the value of the key that had its meaning before
    (`Setting.formerly`), or its default."""
    meant_before = {
        key: saved[known.formerly] for key, known in SETTINGS.items() if known.formerly in saved
    }
    return settings_by_key(default_config()) | meant_before | saved


def keys_that_affect(*kinds: str) -> tuple[str, ...]:
    """The keys of the settings whose `affects` is one of `kinds`."""
    return tuple(key for key, known in SETTINGS.items() if known.affects in kinds)
