"""Every setting of a run, in one place: defaults, the published recipes, validation, and the plan printed at start.

The files in configs/ start from `default_config()` and change a few values. Nothing that influences a number is hidden
in code: what the papers leave out and their codes decide silently (input scaling, loss reduction, batch statistics,
frame sampling, short videos, flips, resize and crop, cardinalities, test queries, seeds, model selection) is a value
below, marked with the letter under which docs/paper_vs_code.md discusses it.
"""

from __future__ import annotations

import ml_collections

VARIANTS = ('code', 'paper')
DATASETS = ('ssv2', 'kinetics', 'hmdb51', 'ucf101')


def default_config() -> ml_collections.ConfigDict:
    """The embedded default: 5-way 1-shot on synthetic_actions/misaligned, small enough for two CPU cores."""
    config = ml_collections.ConfigDict()
    config.seed = 0                               # Z: episodes, augmentation, initialisation, dropout

    model = config.model = ml_collections.ConfigDict()
    model.variant = 'code'                        # 'code': what produced the published numbers; 'paper': the equations
    model.dtype = 'float32'                       # compute dtype of the network; parameters stay float32
    model.sampler = _section(
        name='uniform',                           # 'uniform', 'motion_guided' (MGSampler) or 'task_adaptive' (VIM)
        dense_frames=20,                          # M: frames that the latter two choose episode.frames of (`frames` below is the same)
        variant='paper',                          # of 'task_adaptive' and of the information losses: V3, V6, V8, V10 to V13, V18
        smoothing=0.5,                            # 'motion_guided': exponent of a frame's share of the motion
        temporal=True,                            # 'task_adaptive': choose frames (TS); False: evenly spaced ones of the M
        spatial='amplify',                        # and how each is warped (SA): 'amplify', 'crop' or 'none'
        adaptive=True,                            # by weights that the support set generates; False: learned, the same for all
        scan_network='shufflenet_v2_small', scan_size=64,
        scan_weights=_optional(str),              # to start it from, as backbone.weights
        hidden=64, task_dim=64,                   # d: width of the evaluator; of the task feature, published: 128
        num_samples=100, samples_per_chunk=50,    # n: draws of noise for the perturbed top-k, so many at once; published: 500
        sigma=0.1, sigma_schedule='linear',       # their amplitude: 'constant', 'linear' (to sigma_end at num_steps) or 'steps'
        sigma_end=0.0, sigma_factor=0.8, sigma_steps=100,     # 'steps': times the factor every so many steps, never below the end
        at_test=True,                             # False: evaluation takes evenly spaced frames, as if there were no sampler
        intra_weight=0.0,                         # mu_1 of the intra-video information loss; published: 0.5
    )
    model.align_at_test = True                    # False: evaluation leaves out temporal transform and action coordination
    model.backbone = _section(
        name='resnet_small',                      # 'features' takes maps [..., L, h, w, C] instead of frames
        weights=_optional(str),                   # to start from: torchvision .pth or .safetensors, or the workdir of a run
        batch_norm='split',                       # B: statistics of support and query apart, 'joint', or 'frozen'
        batch_norm_groups=1,                      # B: 4 emulates the statistics of DataParallel on four GPUs
        normalize='unit',                         # N: pixels / 255 only; 'imagenet' subtracts mean, divides by std; 'grey': 0.45, 0.225
        remat=False,                              # recompute blocks in the backward pass: less memory, ~1/3 more time
    )
    model.enrichment = _section(
        patch='none', frame='none',               # 'self_attention', 'mlp_mixer' or 'none'
        temporal_transform=False,                 # warp each clip to its action first (TA2N's TTM)
        patches=4,                                # P: a map is max-pooled to P x P patches
        dropout=0.1,
    )
    model.matcher = _section(
        name='cross_transformer',
        distance='frame_cosine',                  # of 'prototypes': or 'mean_cosine', 'mean_squared_euclidean'
        cardinalities=(2,),
        dim=128,                                  # D'; None: half of the feature dimension; published: 1152 of 2048
        cardinality_reduction=_optional(str),     # C: 'mean' or 'sum'; None: as the variant says (code mean, paper sum)
        dropout=0.1,
        alignment='otam',                         # of matcher 'otam': 'otam', 'soft_dtw' or 'drop_dtw'
        smoothness=0.1,                           # lambda of its soft minimum
        keep=0.3,                                 # 'drop_dtw': share of frame pairs cheaper than dropping a frame
        temporal=True, spatial='mask',            # 'action_coordination': TC on or off; SC 'mask', 'grid', 'enumerate', 'none'
        perturbation=0.2,                         # of the offsets of 'mask'
        pairs_per_chunk=0,                        # support-query pairs coordinated at once, 0: all of an episode
        distance_norm=False,                      # LayerNorm of its logits over the classes
        heads=8, position=(10.0, 1.0),            # 'set_matching': of the attentions; (A, B): features * sqrt(D/A), code * B
        alpha=1.0, kernel='meta_learner', residual=True,      # 'attention_fusion'; kernel 'mean' has no meta-learner
        order='temporal_first',                   # of 'action_coordination': or 'spatial_first'
        inter_weight=0.0,                         # mu_2 of the inter-video information loss; published: 1
        loss_weight=1.0,                          # of the matcher's cross entropy in the loss
    )
    model.classifier = _section(                  # of the training classes, beside the matcher: HyRSM, MASTAF
        classes=_optional(int),                   # how many; None: none, or in training those of the split 'train'
        weight=0.0,                               # of its cross entropy in the loss; published: HyRSM 0.6, MASTAF 1
    )
    model.query_similarity = _section(weight=0.0, dim=_optional(int))

    config.episode = _section(way=5, shot=1, query=3, frames=8, image_size=64)   # query: per class, in training
    model.sampler.frames = config.episode.get_ref('frames')
    config.data = _section(
        dataset='synthetic_actions/misaligned',
        dir='data',
        resize=64,                                # R: short side; frames stored at that size are left as they are
        crop='random',                            # R: in training, one offset per clip; evaluation crops the centre
        flip=False,                               # F: horizontal, with probability 0.5, in training
        sampling='trx',                           # S: 'trx' (jittered ends), 'uniform' or 'segment'
        short_videos='drop',                      # D: clips with fewer than L frames: 'drop' or 'repeat' frames
        num_threads=0, num_workers=0, prefetch=4,  # threads that read, 0: one per core; processes that read; batches ready
    )
    config.train = _section(
        num_steps=240,
        episodes_per_step=4,
        accumulation_steps=1,                     # split a step's episodes in this many sequential parts
        loss_reduction='sum',                     # L: over the queries of an episode; episodes are averaged
        optimizer='adam',                         # 'adam' or 'sgd'
        learning_rate=1e-3,
        momentum=0.0, weight_decay=0.0,
        schedule='cosine',                        # 'constant', 'cosine' (to 0 at num_steps) or 'steps'
        warmup_steps=0,
        schedule_steps=(), schedule_factor=0.1,   # for 'steps': multiply by the factor at these steps
        clip_norm=0.0,                            # global gradient norm; 0: off
        checkpoint_steps=60, keep_checkpoints=2, # val is evaluated at every checkpoint
        log_steps=25,
    )
    config.eval = _section(
        split='test',
        seed=0,                                   # Z: of the evaluation episodes, apart from `seed`, so that runs can be paired
        num_episodes=10_000,
        val_episodes=500,                         # T: val selects the checkpoint; 0: the last step is kept
        query=1,                                  # E: per class
        cache=True,                               # embed each video once; False: everything again per episode
        episodes_file=_optional(str),             # exchange an episode list: read it instead of drawing
        episodes_per_chunk=250,
        videos_per_batch=32,
        measured_episodes=0,                      # main.py measures alignment and selection over the first so many test episodes
    )
    return config.lock()


def published_recipe(config: ml_collections.ConfigDict, dataset: str) -> ml_collections.ConfigDict:
    """The setting that TRX, STRM and the baselines they report share: ResNet-50, 224, SGD, 5-way 5-shot.

    Args:
      config: from `default_config`; changed in place.
      dataset: 'ssv2', 'kinetics', 'hmdb51' or 'ucf101'.

    Returns:
      `config`. Sources: STRM Sec. 4 and supplement A4, and the released scripts where the paper is silent
      (docs/paper_vs_code.md, rows S13 to S21).
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown preset '{dataset}': choose one of {', '.join(DATASETS)}, or none for the embedded default")
    builder = {'ssv2': 'ssv2_small_cmn', 'kinetics': 'kinetics100_cmn', 'hmdb51': 'hmdb51_arn', 'ucf101': 'ucf101_arn'}
    episodes = 75_000 if dataset == 'ssv2' else 20_010
    with config.unlocked():
        config.model.backbone.update(name='resnet50', batch_norm='split', batch_norm_groups=4, normalize='unit', remat=True)
        config.model.matcher.dim = 1152
        config.episode.update(way=5, shot=5, query=5 if dataset == 'kinetics' else 4, frames=8, image_size=224)
        config.data.update(dataset=builder[dataset], resize=256, crop='random', flip=True, sampling='trx', short_videos='drop',
                           prefetch=2)                      # a batch of 16 episodes is 0.9 GB
        config.train.update(
            episodes_per_step=16, accumulation_steps=16, num_steps=-(-episodes // 16), loss_reduction='sum',
            optimizer='sgd', momentum=0.0, weight_decay=0.0, schedule='constant', clip_norm=0.0,
            learning_rate=1e-3 if dataset == 'ssv2' else 1e-4, checkpoint_steps=250, log_steps=25)
        config.eval.update(num_episodes=10_000, val_episodes=1000, query=1, videos_per_batch=8)
    return config


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError with one line that names the key, what is wrong with it and what it may be."""
    choices = {
        'model.variant': VARIANTS, 'model.sampler.variant': VARIANTS, 'model.dtype': ('float32', 'bfloat16'),
        'model.backbone.batch_norm': ('split', 'joint', 'frozen'), 'model.backbone.normalize': ('unit', 'imagenet', 'grey'),
        'model.sampler.spatial': ('amplify', 'crop', 'none'), 'model.sampler.sigma_schedule': ('constant', 'linear', 'steps'),
        'model.matcher.order': ('temporal_first', 'spatial_first'),
        'model.enrichment.patch': ('self_attention', 'mlp_mixer', 'none'),
        'model.enrichment.frame': ('self_attention', 'mlp_mixer', 'none'),
        'model.matcher.cardinality_reduction': (None, 'mean', 'sum'),
        'model.matcher.distance': ('frame_cosine', 'mean_cosine', 'mean_squared_euclidean'),
        'data.crop': ('random', 'centre'), 'data.sampling': ('trx', 'uniform', 'segment'),
        'data.short_videos': ('drop', 'repeat'), 'train.loss_reduction': ('sum', 'mean'),
        'train.optimizer': ('adam', 'sgd'), 'train.schedule': ('constant', 'cosine', 'steps'),
        'eval.split': ('train', 'val', 'test'),
    }
    smallest = {
        'episode.way': 2, 'episode.shot': 1, 'episode.query': 1, 'episode.frames': 1, 'episode.image_size': 1, 'eval.query': 1,
        'train.num_steps': 1, 'train.episodes_per_step': 1, 'train.accumulation_steps': 1, 'train.checkpoint_steps': 1,
        'train.log_steps': 1, 'train.keep_checkpoints': 1, 'eval.num_episodes': 1, 'eval.val_episodes': 0,
        'eval.episodes_per_chunk': 1, 'eval.videos_per_batch': 1, 'eval.measured_episodes': 0, 'data.num_threads': 0, 'data.num_workers': 0,
        'model.enrichment.patches': 1, 'model.backbone.batch_norm_groups': 1, 'model.matcher.pairs_per_chunk': 0, 'model.matcher.heads': 1, 'seed': 0, 'eval.seed': 0, 'train.warmup_steps': 0,
        'model.sampler.num_samples': 1, 'model.sampler.samples_per_chunk': 0, 'model.sampler.scan_size': 1,
        'model.sampler.sigma_steps': 1, 'model.sampler.hidden': 1, 'model.sampler.task_dim': 1,
    }
    not_negative = ('model.matcher.loss_weight', 'model.matcher.inter_weight', 'model.classifier.weight', 'model.query_similarity.weight',
                    *(f'model.sampler.{name}' for name in ('intra_weight', 'sigma', 'sigma_end', 'sigma_factor', 'smoothing')))
    for key in not_negative:
        if not _get(config, key) >= 0:            # so that NaN is refused too
            raise ValueError(f'config.{key}={_get(config, key)} must be at least 0')
    sampler = config.model.sampler
    constant = sampler.sigma_schedule == 'constant'
    if sampler.name == 'task_adaptive' and not constant and sampler.sigma_end > sampler.sigma:
        raise ValueError(f'config.model.sampler.sigma_end={sampler.sigma_end} must be at most config.model.sampler.sigma={sampler.sigma}: '
                         'the noise is to fall')
    key, least = ('sigma', sampler.sigma) if constant else ('sigma_end', sampler.sigma_end)
    by_code = (sampler.name, sampler.variant, sampler.temporal) == ('task_adaptive', 'code', True)
    if by_code and sampler.sigma > 0 and least < 0.01:                # exactly 0 throughout has no gradient
        raise ValueError(f"config.model.sampler.{key}={least} is too small for config.model.sampler.variant='code': the noise of "
                         'its gradient grows as 1/sigma, which the released code keeps at 0.01 at least')
    if not config.model.matcher.smoothness > 0:
        raise ValueError(f'config.model.matcher.smoothness={config.model.matcher.smoothness} must be greater than 0')
    for key, allowed in choices.items():
        if _get(config, key) not in allowed:
            raise ValueError(f'config.{key}={_get(config, key)!r} is not one of {", ".join(map(repr, allowed))}')
    for key, least in smallest.items():
        if not isinstance(_get(config, key), int):
            raise ValueError(f'config.{key}={_get(config, key)!r} must be a whole number, at least {least}')
        if _get(config, key) < least:
            why = ': an episode needs at least two classes to choose between' if key == 'episode.way' else ''
            raise ValueError(f'config.{key}={_get(config, key)} is too small, it must be at least {least}{why}')
    matcher, frames = config.model.matcher, config.episode.frames
    omega = tuple(matcher.cardinalities)
    if not omega or len(set(omega)) < len(omega) or not all(1 <= w <= frames for w in omega):
        raise ValueError(f'config.model.matcher.cardinalities={omega} must be distinct and lie between 1 and '
                         f'config.episode.frames={frames}, and there must be one')
    if frames_read(config) < frames:
        raise ValueError(f'config.model.sampler.dense_frames={config.model.sampler.dense_frames} is fewer than '
                         f'config.episode.frames={frames}, which the sampler has to choose among them: raise it')
    if config.model.backbone.name == 'features':
        raise ValueError("config.model.backbone.name='features' is for the library (create_learner on stored feature maps): "
                         'main.py reads frames, choose a backbone')
    if config.episode.image_size > config.data.resize:
        raise ValueError(f'config.episode.image_size={config.episode.image_size} cannot be cropped from a short side of '
                         f'config.data.resize={config.data.resize}: lower it or raise config.data.resize')
    if config.train.episodes_per_step % config.train.accumulation_steps:
        raise ValueError(f'config.train.episodes_per_step={config.train.episodes_per_step} must be a multiple of '
                         f'config.train.accumulation_steps={config.train.accumulation_steps}')
    if config.train.schedule != 'steps' and config.train.warmup_steps >= config.train.num_steps:
        raise ValueError(f'config.train.warmup_steps={config.train.warmup_steps} must be smaller than '
                         f'config.train.num_steps={config.train.num_steps}: the learning rate would never be reached')


def frames_read(config: ml_collections.ConfigDict) -> int:
    """How many frames of a clip the loader hands over: L, or the M among which a sampler chooses L. Without config.model: L."""
    chooses = 'model' in config and config.model.sampler.name != 'uniform'
    return config.model.sampler.dense_frames if chooses else config.episode.frames


def loss_weights(model) -> dict[str, tuple[float, bool]]:
    """What training minimises (fsar_jax.training.losses): {name: (weight, whether this model has what the loss is of)}.

    A weight without effect is no error: ablations change the sampler or the matcher by one flag, and the plan says what is off.
    """
    matcher = model.matcher
    return {
        'matching': (matcher.loss_weight, True),
        'query similarity': (model.query_similarity.weight, True),
        'classes': (model.classifier.weight, matcher.name in ('set_matching', 'attention_fusion')),
        'L_intra': (model.sampler.intra_weight, model.sampler.name == 'task_adaptive'),
        'L_inter': (matcher.inter_weight, matcher.name == 'action_coordination' and matcher.spatial != 'enumerate'),
    }


def resolved_plan(config: ml_collections.ConfigDict, mode: str, facts: dict[str, str]) -> str:
    """The text printed at start: what will run (mode 'train' or 'evaluate'), each hidden factor by name, and `facts` of data and device."""
    m, e, d, t, v = config.model, config.episode, config.data, config.train, config.eval
    rows = {
        'method': f'{m.backbone.name} (weights: {m.backbone.weights or "random start"}) -> enrichment {m.enrichment.patch}/{m.enrichment.frame} -> {m.matcher.name}, variant {m.variant}',
        'episode': f'{e.way}-way {e.shot}-shot, {e.query} queries per class in training, {e.frames} frames of {e.image_size} px',
        'sampler': m.sampler.name if m.sampler.name == 'uniform' else f'{m.sampler.name}: {e.frames} of {m.sampler.dense_frames} frames, {_parts(m.sampler)}',
        'losses': ', '.join(f'{name} {weight:g}' + ('' if there else ' (without effect)')
                            for name, (weight, there) in loss_weights(m).items() if weight),
        'optimisation': f'{t.num_steps} steps of {t.episodes_per_step} episodes (in {t.accumulation_steps} parts), {t.optimizer}, '
                        f'rate {t.learning_rate:g} {t.schedule}',
        'N  input scaling': m.backbone.normalize,
        'L  loss over queries': t.loss_reduction + ', then the mean over the episodes of a step',
        'B  batch norm': f'{m.backbone.batch_norm}, {m.backbone.batch_norm_groups} group(s)',
        'S  frame sampling': d.sampling,
        'D  short videos': d.short_videos,
        'F  flip': str(d.flip),
        'R  resize and crop': f'short side {d.resize}, {d.crop} crop {e.image_size} in training, centre crop in evaluation',
        'C  cardinalities': f'{tuple(m.matcher.cardinalities)}, {m.matcher.cardinality_reduction or "as variant " + m.variant}'
                            if m.matcher.name == 'cross_transformer' else 'none',
        'E  queries at test': f'{v.query} per class, {v.num_episodes} episodes',
        'Z  seeds': f'{config.seed} in training, {v.seed} for the evaluation episodes',
        'T  selection': f'val, {v.val_episodes} episodes at every {t.checkpoint_steps} steps; test is touched once, at the end'
                        if v.val_episodes else 'the last step; test is touched once, at the end',
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
    sigma = f'{sampler.sigma:g} ' + {
        'constant': 'throughout', 'linear': f'falling to {sampler.sigma_end:g}',
        'steps': f'times {sampler.sigma_factor:g} every {sampler.sigma_steps} steps, at least {sampler.sigma_end:g}'}[sampler.sigma_schedule]
    return (f"{f'chosen with sigma {sigma}' if sampler.temporal else 'evenly spaced'}, spatial {sampler.spatial}, "
            f"{'adaptive' if sampler.adaptive else 'not adaptive'}, variant {sampler.variant}{at_test}")


def _section(**values) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(values)


def _optional(kind: type):
    """None for now, but a flag of this type may set it."""
    return ml_collections.config_dict.placeholder(kind)


def _get(config, key):
    for part in key.split('.'):
        config = config[part]
    return config
