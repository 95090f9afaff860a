"""Every setting of a run, one line each: default, type, range, what it is, and what changing it can
change.

The files in configs/ start from `default_config()` and change a few values. Nothing that influences
a number is hidden in code: what the papers leave out and their codes decide silently (input
scaling, loss reduction, batch statistics, frame sampling, short videos, flips, resize and crop,
cardinalities, test queries, seeds, model selection) is a value below, marked with the letter under
which docs/paper_vs_code.md discusses it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from fsar_jax.files import local_path
from fsar_jax.messages import printable

VARIANTS = ('code', 'paper')
DATASETS = {  # of a preset -> as fsar_jax.build names it
    'ssv2_full': 'ssv2_full_otam',
    'ssv2_small': 'ssv2_small_cmn',
    'kinetics': 'kinetics100_cmn',
    'hmdb51': 'hmdb51_arn',
    'ucf101': 'ucf101_arn',
}
PRESETS = ('ssv2', *DATASETS)
# Where no smaller limit is given: of the int32 and float32 that JAX computes with.
LARGEST = {int: 2**31 - 1, float: 3.4028234663852886e38}
SMALLEST = 1.1754943508222875e-38  # a smaller float32 is 0 to a CPU
AFFECTS = (
    'model',  # what the classifier is, so the same in training and evaluation
    'result',  # numbers of both, but an evaluation may take another value
    'training',  # what is trained; a finished checkpoint no longer depends on it
    'evaluation',  # what is evaluated, and no parameter
    'start',  # the parameters that a new run starts from
    'cost',  # memory, speed, where things lie, what is printed: no number
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One line of `SETTINGS`; `setting` makes it.

    Attributes:
      default: None where `optional`; a tuple where the value is a list of any length, or of
        `length`.
      kind: bool, int, float or str, of a list that of its elements; 'path' of a file or folder.
      optional: whether None is a value.
      at_least, above, at_most, below: the range of a number, of each where there is a list.
      choices: all values there are; () for any.
      affects: one of AFFECTS.
      why: added to the error of a value outside the range.
      help: what it is.
    """

    default: Any
    kind: type | str
    optional: bool = False
    length: int | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    affects: str = 'result'
    why: str = ''
    help: str = ''


def setting(default, kind=None, **rest) -> Setting:
    """A line of the table; `kind` is that of the default unless given."""
    return Setting(default, kind or type(default), **rest)


SETTINGS = {
    'seed': setting(
        0, at_least=0, at_most=2**32 - 1, help='Z: episodes, augmentation, initialisation, dropout'
    ),
    'episode.way': setting(
        5, at_least=2, why='an episode needs at least two classes to choose between', help='classes'
    ),
    'episode.shot': setting(1, at_least=1, help='support clips per class'),
    'episode.query': setting(3, at_least=1, help='query clips per class, in training'),
    'episode.frames': setting(8, at_least=1, affects='model', help='L: frames of a clip'),
    'episode.image_size': setting(64, at_least=1, affects='model', help='pixels per side'),
    'model.variant': setting(
        'code',
        choices=VARIANTS,
        affects='model',
        help="what produced the published numbers; 'paper': the equations",
    ),
    'model.dtype': setting(
        'float32', choices=('float32', 'bfloat16'), help='of computing; parameters stay float32'
    ),
    'model.sampler.name': setting(
        'uniform',
        choices=('uniform', 'motion_guided', 'task_adaptive'),
        affects='model',
        help="'motion_guided': MGSampler; 'task_adaptive': VIM",
    ),
    'model.sampler.frames': setting(
        8, at_least=1, affects='model', help='the same as episode.frames, in one place'
    ),
    'model.sampler.dense_frames': setting(
        20,
        at_least=1,
        affects='model',
        help='M: frames that the latter two choose episode.frames of',
    ),
    'model.sampler.variant': setting(
        'paper',
        choices=VARIANTS,
        affects='model',
        help="of 'task_adaptive' and of the information losses: V3, V6, V8, V10 to V13, V18",
    ),
    'model.sampler.smoothing': setting(
        0.5,
        at_least=0,
        at_most=10,
        affects='model',
        help="'motion_guided': exponent of a frame's share of the motion",
    ),
    'model.sampler.temporal': setting(
        True,
        affects='model',
        help="'task_adaptive': choose frames (TS); False: evenly spaced ones of the M",
    ),
    'model.sampler.spatial': setting(
        'amplify',
        choices=('amplify', 'crop', 'none'),
        affects='model',
        help='how each is warped (SA)',
    ),
    'model.sampler.adaptive': setting(
        True,
        affects='model',
        help='by weights that the support set generates; False: learned, the same for all',
    ),
    'model.sampler.scan_network': setting(
        'shufflenet_v2_small',
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
    'model.sampler.scan_size': setting(
        64, at_least=1, affects='model', help='pixels that it sees of a frame, per side'
    ),
    'model.sampler.scan_weights': setting(
        None, 'path', optional=True, affects='start', help='to start it from, as backbone.weights'
    ),
    'model.sampler.hidden': setting(
        64, at_least=1, affects='model', help='d: width of the evaluator'
    ),
    'model.sampler.task_dim': setting(
        64, at_least=1, affects='model', help='of the task feature; published: 128'
    ),
    'model.sampler.num_samples': setting(
        100,
        at_least=1,
        affects='model',
        help='n: draws of noise for the perturbed top-k; published: 500',
    ),
    'model.sampler.samples_per_chunk': setting(
        50, at_least=0, affects='cost', help='so many of them at once; 0: all'
    ),
    'model.sampler.sigma': setting(0.1, at_least=0, affects='model', help='their amplitude'),
    'model.sampler.sigma_schedule': setting(
        'linear',
        choices=('constant', 'linear', 'steps'),
        affects='model',
        help="'linear': to sigma_end at num_steps",
    ),
    'model.sampler.sigma_end': setting(
        0.0, at_least=0, affects='model', help='its last and smallest value'
    ),
    'model.sampler.sigma_factor': setting(
        0.8, at_least=0, at_most=1, affects='model', help="'steps': times this every sigma_steps"
    ),
    'model.sampler.sigma_steps': setting(100, at_least=1, affects='model', help='optimiser steps'),
    'model.sampler.at_test': setting(
        True, help='False: evaluation takes evenly spaced frames, as if there were no sampler'
    ),
    'model.sampler.intra_weight': setting(
        0.0,
        at_least=0,
        affects='model',
        help='mu_1 of the intra-video information loss; published: 0.5',
    ),
    'model.align_at_test': setting(
        True, help='False: evaluation leaves out temporal transform and action coordination'
    ),
    'model.backbone.name': setting(
        'resnet_small',
        affects='model',
        help="'features' takes maps [..., L, h, w, C] instead of frames",
        choices=('features', 'resnet_small', 'resnet18', 'resnet34', 'resnet50', 'resnet3d50'),
    ),
    'model.backbone.weights': setting(
        None,
        'path',
        optional=True,
        affects='start',
        help='to start from: torchvision .pth or .safetensors, or the workdir of a run',
    ),
    'model.backbone.batch_norm': setting(
        'split',
        choices=('split', 'joint', 'frozen'),
        affects='model',
        help='B: statistics of support and query apart',
    ),
    'model.backbone.batch_norm_groups': setting(
        1,
        at_least=1,
        affects='model',
        help='B: 4 emulates the statistics of DataParallel on four GPUs',
    ),
    'model.backbone.normalize': setting(
        'unit',
        choices=('unit', 'imagenet', 'grey'),
        affects='model',
        help="N: pixels / 255 only; 'imagenet' subtracts mean, divides by std; 'grey': 0.45, 0.225",
    ),
    'model.backbone.remat': setting(
        False,
        affects='cost',
        help='recompute blocks in the backward pass: less memory, ~1/3 more time',
    ),
    'model.enrichment.patch': setting(
        'none',
        choices=('self_attention', 'mlp_mixer', 'none'),
        affects='model',
        help='of the patches of a frame',
    ),
    'model.enrichment.frame': setting(
        'none',
        choices=('self_attention', 'mlp_mixer', 'none'),
        affects='model',
        help='of the frames of a video',
    ),
    'model.enrichment.temporal_transform': setting(
        False, affects='model', help="warp each clip to its action first (TA2N's TTM)"
    ),
    'model.enrichment.patches': setting(
        4, at_least=1, at_most=64, affects='model', help='P: a map is max-pooled to P x P patches'
    ),
    'model.enrichment.dropout': setting(
        0.1, at_least=0, below=1, affects='model', help='rate, in training'
    ),
    'model.matcher.name': setting(
        'cross_transformer',
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
    'model.matcher.distance': setting(
        'frame_cosine',
        choices=('frame_cosine', 'mean_cosine', 'mean_squared_euclidean'),
        affects='model',
        help="of 'prototypes'",
    ),
    'model.matcher.cardinalities': setting(
        (2,), int, affects='model', help='Omega: frames of a tuple, 1 to L'
    ),
    'model.matcher.dim': setting(
        128,
        optional=True,
        at_least=1,
        affects='model',
        help="D'; None: half of the feature dimension; published: 1152 of 2048",
    ),
    'model.matcher.cardinality_reduction': setting(
        None,
        str,
        optional=True,
        choices=('mean', 'sum'),
        affects='model',
        help='C: None is as the variant says (code mean, paper sum)',
    ),
    'model.matcher.dropout': setting(
        0.1, at_least=0, below=1, affects='model', help='rate, in training'
    ),
    'model.matcher.alignment': setting(
        'otam', choices=('otam', 'soft_dtw', 'drop_dtw'), affects='model', help="of matcher 'otam'"
    ),
    'model.matcher.smoothness': setting(
        0.1, above=0, affects='model', help='lambda of its soft minimum'
    ),
    'model.matcher.keep': setting(
        0.3,
        above=0,
        at_most=1,
        affects='model',
        help="'drop_dtw': share of frame pairs cheaper than dropping a frame",
    ),
    'model.matcher.temporal': setting(
        True, affects='model', help="'action_coordination': TC on or off"
    ),
    'model.matcher.spatial': setting(
        'mask', choices=('mask', 'grid', 'enumerate', 'none'), affects='model', help='and its SC'
    ),
    'model.matcher.prototype': setting(
        'aligned',
        choices=('aligned', 'mean'),
        affects='model',
        help='of several shots: brought in step first (TA2N), or not (VIM)',
    ),
    'model.matcher.perturbation': setting(
        0.2, at_least=0, at_most=1, affects='model', help="of the offsets of 'mask'"
    ),
    'model.matcher.pairs_per_chunk': setting(
        0,
        at_least=0,
        affects='cost',
        help='support-query pairs coordinated at once, 0: all of an episode',
    ),
    'model.matcher.distance_norm': setting(
        False, affects='model', help='LayerNorm of its logits over the classes'
    ),
    'model.matcher.heads': setting(
        8, at_least=1, affects='model', help="'set_matching': of the attentions"
    ),
    'model.matcher.position': setting(
        (10.0, 1.0),
        float,
        length=2,
        at_least=0,
        affects='model',
        help='(A, B): features * sqrt(D/A), code * B',
    ),
    'model.matcher.alpha': setting(
        1.0,
        at_least=0,
        affects='model',
        help="'attention_fusion': of the self-attention score; 0: cross-attention alone",
    ),
    'model.matcher.kernel': setting(
        'meta_learner',
        choices=('meta_learner', 'mean'),
        affects='model',
        help="'mean' has no meta-learner",
    ),
    'model.matcher.residual': setting(True, affects='model', help='of its attention'),
    'model.matcher.order': setting(
        'temporal_first',
        choices=('temporal_first', 'spatial_first'),
        affects='model',
        help="of 'action_coordination'",
    ),
    'model.matcher.inter_weight': setting(
        0.0,
        at_least=0,
        affects='model',
        help='mu_2 of the inter-video information loss; published: 1',
    ),
    'model.matcher.loss_weight': setting(
        1.0, at_least=0, affects='model', help="of the matcher's cross entropy in the loss"
    ),
    # Of the training classes, beside the matcher: HyRSM, MASTAF.
    'model.classifier.classes': setting(
        None,
        int,
        optional=True,
        at_least=1,
        affects='model',
        help="how many; None: none, or in training those of the split 'train'",
    ),
    'model.classifier.weight': setting(
        0.0,
        at_least=0,
        affects='model',
        help='of its cross entropy in the loss; published: HyRSM 0.6, MASTAF 1',
    ),
    'model.query_similarity.weight': setting(
        0.0, at_least=0, affects='model', help="lambda of STRM's second classifier, 0: none"
    ),
    'model.query_similarity.dim': setting(
        None,
        int,
        optional=True,
        at_least=1,
        affects='model',
        help='None: half of the feature dimension',
    ),
    'data.dataset': setting('synthetic_actions/misaligned', help='as fsar_jax.build names it'),
    'data.dir': setting(
        'data', 'path', affects='cost', help='of the built datasets; what they hold is hashed'
    ),
    'data.resize': setting(
        64,
        at_least=1,
        affects='model',
        help='R: short side; frames stored at that size are left as they are',
    ),
    'data.crop': setting(
        'random',
        choices=('random', 'centre'),
        help='R: in training, one offset per clip; evaluation crops the centre',
    ),
    'data.flip': setting(False, help='F: horizontal, with probability 0.5, in training'),
    'data.sampling': setting(
        'trx',
        choices=('trx', 'uniform', 'segment'),
        affects='model',
        help="S: 'trx' has jittered ends, 'segment' takes a frame of each of L segments",
    ),
    'data.short_videos': setting(
        'drop',
        choices=('drop', 'repeat'),
        affects='model',
        help='D: clips with fewer than L frames, or their frames',
    ),
    'data.num_threads': setting(
        0, at_least=0, at_most=1024, affects='cost', help='that read, 0: one per core'
    ),
    'data.num_workers': setting(
        0, at_least=0, at_most=1024, affects='cost', help='processes that read'
    ),
    'data.prefetch': setting(
        4, at_least=0, at_most=10_000, affects='cost', help='batches kept ready'
    ),
    'train.num_steps': setting(240, at_least=1, affects='training', help='of the optimiser'),
    'train.episodes_per_step': setting(
        4, at_least=1, affects='training', help='whose losses are averaged'
    ),
    'train.accumulation_steps': setting(
        1, at_least=1, affects='cost', help="split a step's episodes in this many sequential parts"
    ),
    'train.loss_reduction': setting(
        'sum',
        choices=('sum', 'mean'),
        affects='training',
        help='L: over the queries of an episode; episodes are averaged',
    ),
    'train.optimizer': setting(
        'adam', choices=('adam', 'sgd'), affects='training', help='with decoupled weight decay'
    ),
    'train.learning_rate': setting(1e-3, at_least=0, affects='training', help='after the warm-up'),
    'train.momentum': setting(0.0, at_least=0, below=1, affects='training', help="of 'sgd'"),
    'train.weight_decay': setting(0.0, at_least=0, affects='training', help='0: none'),
    'train.schedule': setting(
        'cosine',
        choices=('constant', 'cosine', 'steps'),
        affects='training',
        help="'cosine' falls to 0 at num_steps",
    ),
    'train.warmup_steps': setting(
        0, at_least=0, affects='training', help='in which the rate rises from 0'
    ),
    'train.schedule_steps': setting(
        (),
        int,
        at_least=1,
        affects='training',
        help="'steps': multiply by schedule_factor at each of these",
    ),
    'train.schedule_factor': setting(0.1, at_least=0, affects='training', help='see there'),
    'train.clip_norm': setting(
        0.0, at_least=0, affects='training', help='global gradient norm; 0: off'
    ),
    'train.checkpoint_steps': setting(
        60, at_least=1, affects='training', help='val is evaluated at every checkpoint'
    ),
    'train.keep_checkpoints': setting(
        2, at_least=1, affects='cost', help='the last so many, and the best'
    ),
    'train.log_steps': setting(
        25, at_least=1, affects='cost', help='between two lines of metrics.jsonl'
    ),
    'eval.split': setting(
        'test', choices=('train', 'val', 'test'), affects='evaluation', help='of the results'
    ),
    'eval.seed': setting(
        0,
        at_least=0,
        at_most=2**63 - 1,
        help='Z: of the evaluation episodes, apart from `seed`, so that runs can be paired',
    ),
    'eval.num_episodes': setting(10_000, at_least=1, affects='evaluation', help='E'),
    'eval.val_episodes': setting(
        500,
        at_least=0,
        affects='training',
        help='T: val selects the checkpoint; 0: the last step is kept',
    ),
    'eval.query': setting(1, at_least=1, help='E: per class'),
    'eval.cache': setting(
        True, affects='cost', help='embed each video once; False: everything again per episode'
    ),
    'eval.episodes_file': setting(
        None,
        'path',
        optional=True,
        affects='evaluation',
        help='exchange an episode list: read it instead of drawing',
    ),
    'eval.episodes_per_chunk': setting(250, at_least=1, affects='cost', help='matched at once'),
    'eval.videos_per_batch': setting(32, at_least=1, affects='cost', help='embedded at once'),
    'eval.measured_episodes': setting(
        0,
        at_least=0,
        affects='evaluation',
        help='main.py measures alignment and selection over the first so many test episodes',
    ),
}


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
        stored_as = str if known.kind == 'path' else known.kind
        section[name] = (
            ml_collections.config_dict.placeholder(stored_as)
            if known.default is None
            else known.default
        )
    config.model.sampler.frames = config.episode.get_ref('frames')
    return config.lock()


def published_recipe(
    config: ml_collections.ConfigDict, preset: str, ssv2: str = 'ssv2_full'
) -> ml_collections.ConfigDict:
    """The setting that TRX, STRM and the baselines they report share: ResNet-50, 224, SGD, 5-way
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
            name='resnet50', batch_norm='split', batch_norm_groups=4, normalize='unit', remat=True
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


def complaint(known: Setting, value) -> str:
    """What is wrong with a value of this setting, and what it may be; '' where nothing is."""
    if value is None and known.optional:
        return ''
    if isinstance(known.default, tuple):
        each = dataclasses.replace(known, default=None)
        fits = isinstance(value, (tuple, list)) and known.length in (None, len(value))
        return (
            ''
            if fits and not any(complaint(each, x) for x in value)
            else f'must be {described(known)}'
        )
    if known.choices:
        return '' if value in known.choices else f'is not one of {", ".join(known.choices)}'
    types = {'path': str, float: (int, float)}.get(known.kind, known.kind)
    if not isinstance(value, types) or isinstance(value, bool) != (known.kind is bool):
        return f'must be {described(known)}'
    if known.kind in (str, 'path'):
        return '' if value or known.optional else 'must not be empty'
    if known.kind is bool:
        return ''
    most = LARGEST[known.kind] if known.at_most is None else known.at_most
    enough = (
        value - known.above >= SMALLEST
        if known.above is not None
        else known.at_least is None or value >= known.at_least
    )
    if (
        enough and value <= most and (known.below is None or value < known.below)
    ):  # none of them is true of NaN
        return ''
    if value > most:
        known = dataclasses.replace(known, at_most=most)
    too = '' if known.kind is float else 'is too large, it ' if enough else 'is too small, it '
    why = f': {known.why}' if known.why else ''
    return f'{too}must be {limits(known)}{why}'


def limits(known: Setting) -> str:
    """'at least 0 and less than 1'; '' where there is none."""
    named = (
        ('at least', known.at_least),
        ('greater than', known.above),
        ('at most', known.at_most),
        ('less than', known.below),
    )
    return ' and '.join(f'{words} {limit}' for words, limit in named if limit is not None)


def described(known: Setting) -> str:
    """'a whole number, at least 1', or of a list '2 numbers, each at least 0'."""
    one, many = {
        bool: ('True or False', ''),
        int: ('a whole number', 'whole numbers'),
        float: ('a number', 'numbers'),
        str: ('text', ''),
        'path': ('a path', ''),
    }[known.kind]
    if isinstance(known.default, tuple):
        each = limits(known) and f', each {limits(known)}'
        return f'{known.length} {many}{each}' if known.length else f'a list of {many}{each}'
    return f'{one}, {limits(known)}' if limits(known) else one


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


def frames_read(config: ml_collections.ConfigDict) -> int:
    """How many frames of a clip the loader hands over: L, or the M among which a sampler chooses L.
    Without config.model: L."""
    chooses = 'model' in config and config.model.sampler.name != 'uniform'
    return config.model.sampler.dense_frames if chooses else config.episode.frames


def loss_weights(model) -> dict[str, tuple[float, bool]]:
    """What training minimises (fsar_jax.training.losses): {name: (weight, whether this model has
    what the loss is of)}.

    A weight without effect is no error: ablations change the sampler or the matcher by one flag,
    and the plan says what is off.
    """
    matcher = model.matcher
    return {
        'matching': (matcher.loss_weight, True),
        'query similarity': (model.query_similarity.weight, True),
        'classes': (model.classifier.weight, matcher.name in ('set_matching', 'attention_fusion')),
        'L_intra': (model.sampler.intra_weight, model.sampler.name == 'task_adaptive'),
        'L_inter': (
            matcher.inter_weight,
            matcher.name == 'action_coordination' and matcher.spatial != 'enumerate',
        ),
    }


def resolved_plan(config: ml_collections.ConfigDict, mode: str, facts: dict[str, str]) -> str:
    """The text printed at start: what will run (mode 'train' or 'evaluate'), each hidden factor by
    name, and `facts` of data and device."""
    m, e, d, t, v = config.model, config.episode, config.data, config.train, config.eval
    rows = {
        'method': f'{m.backbone.name} (weights: {m.backbone.weights or "random start"}) -> '
        f'enrichment {m.enrichment.patch}/{m.enrichment.frame} -> {m.matcher.name}, '
        f'variant {m.variant}',
        'episode': f'{e.way}-way {e.shot}-shot, {e.query} queries per class in training, '
        f'{e.frames} frames of {e.image_size} px',
        'sampler': m.sampler.name
        if m.sampler.name == 'uniform'
        else f'{m.sampler.name}: {e.frames} of {m.sampler.dense_frames} frames, '
        f'{_parts(m.sampler)}',
        'losses': ', '.join(
            f'{name} {weight:g}' + ('' if there else ' (without effect)')
            for name, (weight, there) in loss_weights(m).items()
            if weight
        ),
        'optimisation': f'{t.num_steps} steps of {t.episodes_per_step} episodes (in '
        f'{t.accumulation_steps} parts), {t.optimizer}, '
        f'rate {t.learning_rate:g} {t.schedule}',
        'N  input scaling': m.backbone.normalize,
        'L  loss over queries': t.loss_reduction + ', then the mean over the episodes of a step',
        'B  batch norm': f'{m.backbone.batch_norm}, {m.backbone.batch_norm_groups} group(s)',
        'S  frame sampling': d.sampling,
        'D  short videos': d.short_videos,
        'F  flip': str(d.flip),
        'R  resize and crop': f'short side {d.resize}, {d.crop} crop {e.image_size} in training, '
        'centre crop in evaluation',
        'C  cardinalities': f'{tuple(m.matcher.cardinalities)}, '
        f'{m.matcher.cardinality_reduction or "as variant " + m.variant}'
        if m.matcher.name == 'cross_transformer'
        else 'none',
        'E  queries at test': f'{v.query} per class, {v.num_episodes} episodes',
        'Z  seeds': f'{config.seed} in training, {v.seed} for the evaluation episodes',
        'T  selection': f'val, {v.val_episodes} episodes at every {t.checkpoint_steps} steps; test '
        'is touched once, at the end'
        if v.val_episodes
        else 'the last step; test is touched once, at the end',
    }
    if mode == 'evaluate':
        for row in ('losses', 'optimisation', 'L  loss over queries', 'T  selection'):
            del rows[row]
    rows.update(facts)
    width = max(map(len, rows))
    return '\n'.join(f'  {key:<{width}}  {value}' for key, value in rows.items())


def _parts(sampler) -> str:
    """What a sampler that chooses is made of."""
    at_test = '' if sampler.at_test else '; at test evenly spaced ones'
    if sampler.name != 'task_adaptive':
        return f'smoothing {sampler.smoothing:g}' + at_test
    sigma = (
        f'{sampler.sigma:g} '
        + {
            'constant': 'throughout',
            'linear': f'falling to {sampler.sigma_end:g}',
            'steps': f'times {sampler.sigma_factor:g} every {sampler.sigma_steps} steps, at least '
            f'{sampler.sigma_end:g}',
        }[sampler.sigma_schedule]
    )
    return (
        f"{f'chosen with sigma {sigma}' if sampler.temporal else 'evenly spaced'}, spatial "
        f"{sampler.spatial}, "
        f"{'adaptive' if sampler.adaptive else 'not adaptive'}, variant {sampler.variant}{at_test}"
    )
