"""Every setting of a run: where its line is, the config made of all of them, and its checks.

A setting of a stage is a field of the module that reads it (fsar_jax/samplers, backbones,
enrichment, matchers); the others are the dataclasses below. docs/settings.md lists them all.

The files in configs/ start from `default_config()` and change a few values. Nothing that influences
a number is hidden in code: what the papers leave out and their codes decide silently (input
scaling, loss reduction, batch statistics, frame sampling, short videos, flips, resize and crop,
cardinalities, test queries, seeds, model selection) is a setting, marked with the letter under
which docs/paper_vs_code.md discusses it.
"""

import dataclasses

import ml_collections

from fsar_jax.data.frame_sampling import RULES
from fsar_jax.fields import SMALLEST, Path, Setting, complaint, setting, settings_of
from fsar_jax.files import local_path
from fsar_jax.messages import printable
from fsar_jax.recipe import PRESETS as PRESETS  # what files like those in configs/ import
from fsar_jax.recipe import published_recipe as published_recipe

VARIANTS = ('code', 'paper')


@dataclasses.dataclass(frozen=True)
class Run:
    """Keys of the config itself."""

    seed: int = setting(
        0, at_least=0, at_most=2**32 - 1, help='Z: episodes, augmentation, initialisation, dropout'
    )


@dataclasses.dataclass(frozen=True)
class Episode:
    """config.episode."""

    way: int = setting(
        5, at_least=2, why='an episode needs at least two classes to choose between', help='classes'
    )
    shot: int = setting(1, at_least=1, help='support clips per class')
    query: int = setting(3, at_least=1, help='query clips per class, in training')
    frames: int = setting(8, at_least=1, affects='model', help='L: frames of a clip')
    image_size: int = setting(64, at_least=1, affects='model', help='pixels per side')


@dataclasses.dataclass(frozen=True)
class Data:
    """config.data."""

    dataset: str = setting('synthetic_actions/misaligned', help='as fsar_jax.build names it')
    dir: Path = setting(
        'data', affects='cost', help='of the built datasets; what they hold is hashed'
    )
    resize: int = setting(
        64,
        at_least=1,
        affects='model',
        help='R: short side; frames stored at that size are left as they are',
    )
    crop: str = setting(
        'random',
        choices=('random', 'centre'),
        help='R: in training, one offset per clip; evaluation crops the centre',
    )
    flip: bool = setting(False, help='F: horizontal, with probability 0.5, in training')
    sampling: str = setting(
        'trx',
        choices=RULES,
        affects='model',
        help="S: 'trx' has jittered ends, 'segment' takes a frame of each of L segments",
    )
    short_videos: str = setting(
        'drop',
        choices=('drop', 'repeat'),
        affects='model',
        help='D: clips with fewer than L frames, or their frames',
    )
    num_threads: int = setting(
        0, at_least=0, at_most=1024, affects='cost', help='that read, 0: one per core'
    )
    num_workers: int = setting(
        0, at_least=0, at_most=1024, affects='cost', help='processes that read'
    )
    prefetch: int = setting(
        4, at_least=0, at_most=10_000, affects='cost', help='batches kept ready'
    )


@dataclasses.dataclass(frozen=True)
class Train:
    """config.train."""

    num_steps: int = setting(240, at_least=1, affects='training', help='of the optimiser')
    episodes_per_step: int = setting(
        4, at_least=1, affects='training', help='whose losses are averaged'
    )
    accumulation_steps: int = setting(
        1, at_least=1, affects='cost', help="split a step's episodes in this many sequential parts"
    )
    loss_reduction: str = setting(
        'sum',
        choices=('sum', 'mean'),
        affects='training',
        help='L: over the queries of an episode; episodes are averaged',
    )
    optimizer: str = setting(
        'adam', choices=('adam', 'sgd'), affects='training', help='with decoupled weight decay'
    )
    learning_rate: float = setting(1e-3, at_least=0, affects='training', help='after the warm-up')
    momentum: float = setting(0.0, at_least=0, below=1, affects='training', help="of 'sgd'")
    weight_decay: float = setting(0.0, at_least=0, affects='training', help='0: none')
    schedule: str = setting(
        'cosine',
        choices=('constant', 'cosine', 'steps'),
        affects='training',
        help="'cosine' falls to 0 at num_steps",
    )
    warmup_steps: int = setting(
        0, at_least=0, affects='training', help='in which the rate rises from 0'
    )
    schedule_steps: tuple[int, ...] = setting(
        (),
        at_least=1,
        affects='training',
        help="'steps': multiply by schedule_factor at each of these",
    )
    schedule_factor: float = setting(0.1, at_least=0, affects='training', help='see there')
    clip_norm: float = setting(
        0.0, at_least=0, affects='training', help='global gradient norm; 0: off'
    )
    checkpoint_steps: int = setting(
        60, at_least=1, affects='training', help='val is evaluated at every checkpoint'
    )
    keep_checkpoints: int = setting(
        2, at_least=1, affects='cost', help='the last so many, and the best'
    )
    log_steps: int = setting(
        25, at_least=1, affects='cost', help='between two lines of metrics.jsonl'
    )


@dataclasses.dataclass(frozen=True)
class Eval:
    """config.eval."""

    split: str = setting(
        'test', choices=('train', 'val', 'test'), affects='evaluation', help='of the results'
    )
    seed: int = setting(
        0,
        at_least=0,
        at_most=2**63 - 1,
        unless='eval.episodes_file',
        help='Z: of the evaluation episodes, apart from `seed`, so that runs can be paired',
    )
    num_episodes: int = setting(
        10_000,
        at_least=1,
        affects='evaluation',
        unless='eval.episodes_file',
        help='E: test episodes',
    )
    val_episodes: int = setting(
        500,
        at_least=0,
        affects='training',
        help='T: val selects the checkpoint; 0: the last step is kept',
    )
    query: int = setting(1, at_least=1, help='E: per class')
    cache: bool = setting(
        True, affects='cost', help='embed each video once; False: everything again per episode'
    )
    episodes_file: Path | None = setting(
        None, affects='list', help='an episode list to read instead of drawing episodes'
    )
    episodes_per_chunk: int = setting(250, at_least=1, affects='cost', help='matched at once')
    videos_per_batch: int = setting(32, at_least=1, affects='cost', help='embedded at once')
    measured_episodes: int = setting(
        0,
        at_least=0,
        affects='evaluation',
        help='main.py measures alignment and selection over the first so many test episodes',
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """config.model, but for its stages."""

    variant: str = setting(
        'code',
        choices=VARIANTS,
        affects='model',
        help="what produced the published numbers; 'paper': the equations",
    )
    dtype: str = setting(
        'float32', choices=('float32', 'bfloat16'), help='of computing; parameters stay float32'
    )
    align_at_test: bool = setting(
        True, help='False: evaluation leaves out temporal transform and action coordination'
    )


# The sections of the config in order; '' is the config itself.
SECTIONS = {'': Run, 'episode': Episode, 'model': Model, 'data': Data, 'train': Train, 'eval': Eval}
OF_STAGES = {
    'model.sampler.name': Setting(
        'uniform',
        str,
        choices=('uniform', 'motion_guided', 'task_adaptive'),
        affects='model',
        help="'motion_guided': MGSampler; 'task_adaptive': VIM",
    ),
    'model.sampler.frames': Setting(
        8, int, at_least=1, affects='model', help='the same as episode.frames, in one place'
    ),
    'model.sampler.dense_frames': Setting(
        20,
        int,
        at_least=1,
        affects='model',
        help='M: frames that the latter two choose episode.frames of',
    ),
    'model.sampler.variant': Setting(
        'paper',
        str,
        choices=VARIANTS,
        affects='model',
        help="of 'task_adaptive' and of the information losses: V3, V6, V8, V10 to V13, V18",
    ),
    'model.sampler.smoothing': Setting(
        0.5,
        float,
        at_least=0,
        at_most=10,
        affects='model',
        help="'motion_guided': exponent of a frame's share of the motion",
    ),
    'model.sampler.temporal': Setting(
        True,
        bool,
        affects='model',
        help="'task_adaptive': choose frames (TS); False: evenly spaced ones of the M",
    ),
    'model.sampler.spatial': Setting(
        'amplify',
        str,
        choices=('amplify', 'crop', 'none'),
        affects='model',
        help='how each is warped (SA)',
    ),
    'model.sampler.adaptive': Setting(
        True,
        bool,
        affects='model',
        help='by weights that the support set generates; False: learned, the same for all',
    ),
    'model.sampler.scan_network': Setting(
        'shufflenet_v2_small',
        str,
        affects='model',
        help='looks at the M frames',
        choices=(
            'shufflenet_v2_small',
            'shufflenet_v2_x0_5',
            'shufflenet_v2_x1_0',
            'shufflenet_v2_x1_5',
            'mobilenet_v2',
        ),
    ),
    'model.sampler.scan_size': Setting(
        64, int, at_least=1, affects='model', help='pixels that it sees of a frame, per side'
    ),
    'model.sampler.scan_weights': Setting(
        None, 'path', optional=True, affects='start', help='to start it from, as backbone.weights'
    ),
    'model.sampler.hidden': Setting(
        64, int, at_least=1, affects='model', help='d: width of the evaluator'
    ),
    'model.sampler.task_dim': Setting(
        64, int, at_least=1, affects='model', help='of the task feature; published: 128'
    ),
    'model.sampler.num_samples': Setting(
        100,
        int,
        at_least=1,
        affects='model',
        help='n: draws of noise for the perturbed top-k; published: 500',
    ),
    'model.sampler.samples_per_chunk': Setting(
        50, int, at_least=0, affects='cost', help='so many of them at once; 0: all'
    ),
    'model.sampler.sigma': Setting(0.1, float, at_least=0, affects='model', help='their amplitude'),
    'model.sampler.sigma_schedule': Setting(
        'linear',
        str,
        choices=('constant', 'linear', 'steps'),
        affects='model',
        help="'linear': to sigma_end at num_steps",
    ),
    'model.sampler.sigma_end': Setting(
        0.0, float, at_least=0, affects='model', help='its last and smallest value'
    ),
    'model.sampler.sigma_factor': Setting(
        0.8,
        float,
        at_least=0,
        at_most=1,
        affects='model',
        help="'steps': times this every sigma_steps",
    ),
    'model.sampler.sigma_steps': Setting(
        100, int, at_least=1, affects='model', help='optimiser steps'
    ),
    'model.sampler.at_test': Setting(
        True, bool, help='False: evaluation takes evenly spaced frames, as if there were no sampler'
    ),
    'model.sampler.intra_weight': Setting(
        0.0,
        float,
        at_least=0,
        affects='model',
        help='mu_1 of the intra-video information loss; published: 0.5',
    ),
    'model.backbone.name': Setting(
        'resnet_small',
        str,
        affects='model',
        help="'features' takes maps [..., L, h, w, C] instead of frames",
        choices=('features', 'resnet_small', 'resnet18', 'resnet34', 'resnet50', 'resnet3d50'),
    ),
    'model.backbone.weights': Setting(
        None,
        'path',
        optional=True,
        affects='start',
        help='to start from: torchvision .pth or .safetensors, or the workdir of a run',
    ),
    'model.backbone.batch_norm': Setting(
        'split',
        str,
        choices=('split', 'joint', 'frozen'),
        affects='model',
        help='B: statistics of support and query apart',
    ),
    'model.backbone.batch_norm_groups': Setting(
        1,
        int,
        at_least=1,
        affects='model',
        help='B: 4 emulates the statistics of DataParallel on four GPUs',
    ),
    'model.backbone.normalize': Setting(
        'unit',
        str,
        choices=('unit', 'imagenet', 'grey'),
        affects='model',
        help="N: pixels / 255 only; 'imagenet' subtracts mean, divides by std; 'grey': 0.45, 0.225",
    ),
    'model.backbone.remat': Setting(
        False,
        bool,
        affects='cost',
        help='recompute blocks in the backward pass: less memory, ~1/3 more time',
    ),
    'model.enrichment.patch': Setting(
        'none',
        str,
        choices=('self_attention', 'mlp_mixer', 'none'),
        affects='model',
        help='of the patches of a frame',
    ),
    'model.enrichment.frame': Setting(
        'none',
        str,
        choices=('self_attention', 'mlp_mixer', 'none'),
        affects='model',
        help='of the frames of a video',
    ),
    'model.enrichment.temporal_transform': Setting(
        False, bool, affects='model', help="warp each clip to its action first (TA2N's TTM)"
    ),
    'model.enrichment.patches': Setting(
        4,
        int,
        at_least=1,
        at_most=64,
        affects='model',
        help='P: a map is max-pooled to P x P patches',
    ),
    'model.enrichment.dropout': Setting(
        0.1, float, at_least=0, below=1, affects='model', help='rate, in training'
    ),
    'model.matcher.name': Setting(
        'cross_transformer',
        str,
        affects='model',
        help='how a query is compared with a class',
        choices=(
            'prototypes',
            'cross_transformer',
            'otam',
            'action_coordination',
            'set_matching',
            'attention_fusion',
        ),
    ),
    'model.matcher.distance': Setting(
        'frame_cosine',
        str,
        choices=('frame_cosine', 'mean_cosine', 'mean_squared_euclidean'),
        affects='model',
        help="of 'prototypes'",
    ),
    'model.matcher.cardinalities': Setting(
        (2,), int, affects='model', help='Omega: frames of a tuple, 1 to L'
    ),
    'model.matcher.dim': Setting(
        128,
        int,
        optional=True,
        at_least=1,
        affects='model',
        help="D'; None: half of the feature dimension; published: 1152 of 2048",
    ),
    'model.matcher.cardinality_reduction': Setting(
        None,
        str,
        optional=True,
        choices=('mean', 'sum'),
        affects='model',
        help='C: None is as the variant says (code mean, paper sum)',
    ),
    'model.matcher.dropout': Setting(
        0.1, float, at_least=0, below=1, affects='model', help='rate, in training'
    ),
    'model.matcher.alignment': Setting(
        'otam',
        str,
        choices=('otam', 'soft_dtw', 'drop_dtw'),
        affects='model',
        help="of matcher 'otam'",
    ),
    'model.matcher.smoothness': Setting(
        0.1, float, above=0, affects='model', help='lambda of its soft minimum'
    ),
    'model.matcher.keep': Setting(
        0.3,
        float,
        above=0,
        at_most=1,
        affects='model',
        help="'drop_dtw': share of frame pairs cheaper than dropping a frame",
    ),
    'model.matcher.temporal': Setting(
        True, bool, affects='model', help="'action_coordination': TC on or off"
    ),
    'model.matcher.spatial': Setting(
        'mask',
        str,
        choices=('mask', 'grid', 'enumerate', 'none'),
        affects='model',
        help='and its SC',
    ),
    'model.matcher.prototype': Setting(
        'aligned',
        str,
        choices=('aligned', 'mean'),
        affects='model',
        help='of several shots: brought in step first (TA2N), or not (VIM)',
    ),
    'model.matcher.perturbation': Setting(
        0.2, float, at_least=0, at_most=1, affects='model', help="of the offsets of 'mask'"
    ),
    'model.matcher.pairs_per_chunk': Setting(
        0,
        int,
        at_least=0,
        affects='cost',
        help='support-query pairs coordinated at once, 0: all of an episode',
    ),
    'model.matcher.distance_norm': Setting(
        False, bool, affects='model', help='LayerNorm of its logits over the classes'
    ),
    'model.matcher.heads': Setting(
        8, int, at_least=1, affects='model', help="'set_matching': of the attentions"
    ),
    'model.matcher.position': Setting(
        (10.0, 1.0),
        float,
        length=2,
        at_least=0,
        affects='model',
        help='(A, B): features * sqrt(D/A), code * B',
    ),
    'model.matcher.alpha': Setting(
        1.0,
        float,
        at_least=0,
        affects='model',
        help="'attention_fusion': of the self-attention score; 0: cross-attention alone",
    ),
    'model.matcher.kernel': Setting(
        'meta_learner',
        str,
        choices=('meta_learner', 'mean'),
        affects='model',
        help="'mean' has no meta-learner",
    ),
    'model.matcher.residual': Setting(True, bool, affects='model', help='of its attention'),
    'model.matcher.order': Setting(
        'temporal_first',
        str,
        choices=('temporal_first', 'spatial_first'),
        affects='model',
        help="of 'action_coordination'",
    ),
    'model.matcher.inter_weight': Setting(
        0.0,
        float,
        at_least=0,
        affects='model',
        help='mu_2 of the inter-video information loss; published: 1',
    ),
    'model.matcher.loss_weight': Setting(
        1.0, float, at_least=0, affects='model', help="of the matcher's cross entropy in the loss"
    ),
    # Of the training classes, beside the matcher: HyRSM, MASTAF.
    'model.classifier.classes': Setting(
        None,
        int,
        optional=True,
        at_least=1,
        affects='model',
        help="how many; None: none, or in training those of the split 'train'",
    ),
    'model.classifier.weight': Setting(
        0.0,
        float,
        at_least=0,
        affects='model',
        help='of its cross entropy in the loss; published: HyRSM 0.6, MASTAF 1',
    ),
    'model.query_similarity.weight': Setting(
        0.0, float, at_least=0, affects='model', help="lambda of STRM's second classifier, 0: none"
    ),
    'model.query_similarity.dim': Setting(
        None,
        int,
        optional=True,
        at_least=1,
        affects='model',
        help='None: half of the feature dimension',
    ),
}


def all_settings() -> dict[str, Setting]:
    """{'model.matcher.dim': Setting} of every key, in order of the sections."""
    found = {}
    for section, plain in SECTIONS.items():
        prefix = f'{section}.' if section else ''
        found |= {prefix + name: known for name, known in settings_of(plain).items()}
        if section == 'model':
            found |= OF_STAGES
    return found


SETTINGS = all_settings()


def default_config() -> ml_collections.ConfigDict:
    """The embedded default: 5-way 1-shot on synthetic_actions/misaligned, small enough for two CPU
    cores."""
    config = ml_collections.ConfigDict()
    for key, known in SETTINGS.items():
        *sections, name = key.split('.')
        section = config
        for part in sections:
            if part not in section:
                section[part] = ml_collections.ConfigDict()
            section = section[part]
        # As a flag, a value that may be None is read as Python would: --config.….dim=None, or 64.
        section[name] = (
            ml_collections.FieldReference(known.default, field_type=object)
            if known.optional
            else known.default
        )
    config.model.sampler.frames = config.episode.get_ref('frames')
    return config.lock()


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every value by itself, and those that must fit each other.

    Raises:
      ValueError: one line that names the key, what is wrong with its value and what it may be.
    """
    check_values(config)
    check_sampler(config.model.sampler)
    check_shapes(config)
    check_training(config.train)


def check_values(section, prefix: str = '') -> None:
    """Types, ranges and choices of what is there; `section`: the config or, with prefix 'model.',
    its model. Raises as `validate`."""
    for key, known in SETTINGS.items():
        if key.startswith(prefix):
            value = setting_of(section, key.removeprefix(prefix), known.default)
            wrong = complaint(known, value)
            if wrong:
                raise ValueError(f'config.{key}={printable(repr(value))} {wrong}')


def check_sampler(sampler) -> None:
    """ValueError where the values of config.model.sampler do not fit each other."""
    if sampler.name == 'uniform':
        return
    if sampler.dense_frames < sampler.frames:
        raise ValueError(
            f'config.model.sampler.dense_frames={sampler.dense_frames} is fewer than '
            'config.episode.frames='
            f'{sampler.frames}, which the sampler has to choose among them: raise it'
        )
    if sampler.name != 'task_adaptive':
        return
    constant = sampler.sigma_schedule == 'constant'
    if not constant and sampler.sigma_end > sampler.sigma:
        raise ValueError(
            f'config.model.sampler.sigma_end={sampler.sigma_end} must be at most '
            'config.model.sampler.sigma='
            f'{sampler.sigma}: the noise is to fall'
        )
    key, least = ('sigma', sampler.sigma) if constant else ('sigma_end', sampler.sigma_end)
    if (
        sampler.variant == 'code' and sampler.temporal and sampler.sigma > 0 and least < 0.01
    ):  # at 0 throughout: no gradient
        raise ValueError(
            f"config.model.sampler.{key}={least} is too small for "
            "config.model.sampler.variant='code': the noise "
            'of its gradient grows as 1/sigma, which the released code keeps at 0.01 at least'
        )


def check_shapes(config) -> None:
    """ValueError where frames, pixels and the model's parts do not fit each other."""
    matcher, frames = config.model.matcher, config.episode.frames
    omega = tuple(matcher.cardinalities)
    if not omega or len(set(omega)) < len(omega) or not all(1 <= w <= frames for w in omega):
        raise ValueError(
            f'config.model.matcher.cardinalities={omega} must be distinct and lie between 1 and '
            f'config.episode.frames={frames}, and there must be one'
        )
    if matcher.position[0] < SMALLEST:
        raise ValueError(
            f'config.model.matcher.position={tuple(matcher.position)}: the first, by which '
            'features are divided, '
            'must be greater than 0'
        )
    if config.model.backbone.name == 'features':
        raise ValueError(
            "config.model.backbone.name='features' is for the library (create_learner on stored "
            "feature maps): "
            'main.py reads frames, choose a backbone'
        )
    if config.episode.image_size > config.data.resize:
        raise ValueError(
            f'config.episode.image_size={config.episode.image_size} cannot be cropped from a short '
            'side of '
            f'config.data.resize={config.data.resize}: lower it or raise config.data.resize'
        )


def check_training(train) -> None:
    """ValueError where the values of config.train do not fit each other."""
    if train.episodes_per_step % train.accumulation_steps:
        raise ValueError(
            f'config.train.episodes_per_step={train.episodes_per_step} must be a multiple of '
            f'config.train.accumulation_steps={train.accumulation_steps}'
        )
    if train.warmup_steps >= train.num_steps:
        raise ValueError(
            f'config.train.warmup_steps={train.warmup_steps} must be smaller than '
            f'config.train.num_steps={train.num_steps}: the learning rate would never be reached'
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


def setting_of(config, key: str, absent=None):
    """The value of a key such as 'model.matcher.dim'; `absent` where there is none."""
    for part in key.split('.'):
        if part not in config:
            return absent
        config = config[part]
    return config


def flatten(tree: dict, prefix: str = '') -> dict:
    """{'a': {'b': 1}} → {'a.b': 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def keys_that_affect(*kinds: str) -> tuple[str, ...]:
    """The keys of the settings whose `affects` is one of `kinds`."""
    return tuple(key for key, known in SETTINGS.items() if known.affects in kinds)
