"""VIM's sampler: it scans many small frames, chooses a few of them and enlarges their salient
parts, all depending on the task."""

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fsar_jax.fields import setting
from fsar_jax.layers import Linear, einsum_float32, frames_as_floats, sinusoidal_positions, unit
from fsar_jax.mutual_information import intra_video_loss, prototype_logits
from fsar_jax.samplers import amplifier
from fsar_jax.samplers.choice import AT_TEST, DENSE_FRAMES, FRAMES, check_dense_frames
from fsar_jax.samplers.learned_window import WindowPolicy
from fsar_jax.samplers.sampler import Sampler
from fsar_jax.samplers.top_k import NOISE, evenly_spaced_indicator, hard_top_k, perturbed_top_k
from fsar_jax.stage import VARIANTS, Loss

SPATIAL = ('amplify', 'crop', 'learned_crop', 'none')
BY_MAP = ('amplify', 'crop')  # those that a saliency map decides
SPATIAL_PER = ('frame', 'clip')
WARPS = ('variant', 'paper', 'code')
TASK_DRAWS = 7  # of ε, for the picture of w₂; as many as in VIM, Fig. 13


class TaskAdaptiveSampler(Sampler):
    """T of M frames, each resampled where it is salient (VIM, Sec. 3.3; rows V1 to V16 of
    docs/paper_vs_code.md).

    Temporal selection: s_i = w₂·ReLU(W₁([f_i; g] + PE(i))), g the mean over frames, min-max per
    video; the T best frames in order, smoothed while training (Eq. 1 to 6). Spatial amplification:
    inverse-transform sampling of a saliency map (Eq. 7 to 11). Adaptation: w₂ and the map's channel
    weights w_s come from the support set (Eq. 12 to 14).

    `scan` is per video, `sample_episode` is for one episode; without adaptation `__call__` samples
    each video by itself. How a query is sampled depends on the support and on the query itself,
    never on another query.

    variant='code': one linear layer encodes the task, with a log-variance; only w₂ is generated;
    the map is the plain channel mean of stages 2 to 4, without gradient; the sampler's gradient is
    k times that of the smoothed choice; and with several shots g of a support video is the mean of
    a class, the released order of them included (V6), where `adaptive`. Its means of consecutive
    queries (V7) are left out: they would tell the classes of the queries by their order.
    variant='paper': two layers encode the task, with a standard deviation; w_s is generated too.
    In both, the task's noise ε is drawn in training only, so that a test video is always sampled
    alike (V9).

    Args:
      scan_network: frames float [N, s, s, 3] in [0, 1], train → an object with `stages` (f2, f3,
        f4), each [N, h, w, C], `last` [N, h, w, c] and `features` [N, c].
      frames: T.
      dense_frames: M, number of frames that the loader reads.
      scan_size: s; frames of another size are resized, bilinear with averaging when they shrink.
      temporal: choose frames; else they are evenly spaced among the M.
      spatial: 'amplify'; 'crop', a window around the centre of mass (Table 10); 'learned_crop', a
        window whose place is learned (`WindowPolicy`, row V24); 'none'.
      warp: whose places 'amplify' reads: 'paper' (Eq. 9 to 11), 'code' (row V13), or those of
        `variant`, which decides the map and whether it has a gradient.
      adaptive: generate the weights from the support set; False learns one set for all tasks.
      hidden: d, output width of W₁.
      task_dim: width of the task feature.
      sigma: σ of the smoothed choice: its first value while training, and what counts where the
        variable collection 'schedule' has no 'sigma'.
      num_samples: n; `samples_per_chunk` of them at once, 0 for all.
      at_test: False takes evenly spaced whole frames at test ('Remove sampler during testing',
        Table 17).
      variant: 'code' or 'paper'.
      dtype: of the sampled frames. Scores, maps and positions are float32.
      sigma_schedule: 'constant'; 'linear', to sigma_end at the last step (VIM, Sec. 3.3.2);
        'steps', times sigma_factor every sigma_steps, never below sigma_end (its released code
        and Sec. 4.2).
      intra_weight: μ₁, of L_intra (VIM, Eq. 28).
    """

    scan_network: nn.Module
    frames: int = setting(8, at_least=1, affects='model', same_as='episode.frames', help=FRAMES)
    dense_frames: int = setting(20, at_least=1, affects='model', help=DENSE_FRAMES)
    variant: str = setting(
        'paper',
        choices=VARIANTS,
        affects='model',
        help='as model.variant, for the sampler and L_intra alone (rows V3, V6, V8, V10 to V13, '
        'V18 of paper_vs_code.md)',
    )
    scan_size: int = setting(
        64,
        at_least=1,
        affects='model',
        help='side of the frames that the scan network sees, in pixels',
    )
    scan_trained: bool = setting(
        True,
        affects='training',
        help='False: the scan network stays as it starts (no gradient, running statistics of batch '
        'norm), and scan_weights says from what; published: True',
    )
    temporal: bool = setting(
        True, affects='model', help='temporal selection (TS); False: evenly spaced frames'
    )
    spatial: str = setting(
        'amplify',
        choices=SPATIAL,
        affects='model',
        help='spatial amplification (SA): enlarge the salient part of each chosen frame by a '
        'warp or a crop, or crop where a small network says (that of AdaFocus V2)',
    )
    spatial_per: str = setting(
        'frame',
        choices=SPATIAL_PER,
        affects='model',
        help="resample each chosen frame by a map of its own ('frame', published), or all of them "
        "by the mean of their maps ('clip'), which keeps how things move",
    )
    warp: str = setting(
        'variant',
        choices=WARPS,
        affects='model',
        help="how spatial='amplify' makes places of a map: Eq. 9 to 11 ('paper'), the released "
        "inverse whose first row and column lie outside the frame, so black ('code'), or as "
        "variant; published: 'variant'",
    )
    adaptive: bool = setting(
        True,
        affects='model',
        help='generate the weights of the selection from the support set; False: learn one set '
        'for all tasks',
    )
    hidden: int = setting(
        64, at_least=1, affects='model', help='d, width of the network that scores the frames'
    )
    task_dim: int = setting(
        64,
        at_least=1,
        affects='model',
        help='width of the feature that describes the support set; published: 128',
    )
    num_samples: int = setting(
        100,
        at_least=1,
        affects='model',
        help='n, number of noise samples for the smoothed choice of frames (perturbed top-k); '
        'published: 500',
    )
    noise: str = setting(
        'independent',
        choices=NOISE,
        affects='model',
        help="of the smoothed choice; the same gradient on average, with less variance: "
        "'antithetic' takes pairs Z and -Z, 'leave_one_out' compares each sample with the mean of "
        "the others; published: 'independent'",
    )
    normalize_features: bool = setting(
        False,
        affects='model',
        help='standardise the scan features of a frame before the position code is added, so that '
        'features of any scale count as much as the position; published: False',
    )
    normalize_guide: bool = setting(
        False,
        affects='model',
        help='standardise the scan features of a frame before their mean, the global feature g of '
        'a clip, is taken, from which the weights of the task are generated, too; published: False',
    )
    samples_per_chunk: int = setting(
        50, at_least=0, affects='cost', help='number of noise samples to compute at once; 0: all'
    )
    sigma: float = setting(
        0.1, at_least=0, affects='model', help='amplitude of the noise at the start of training'
    )
    sigma_schedule: str = setting(
        'linear',
        choices=('constant', 'linear', 'steps'),
        affects='model',
        help="how sigma changes: 'linear' reaches sigma_end at train.num_steps, 'steps' "
        'multiplies by sigma_factor',
    )
    sigma_end: float = setting(
        0.0,
        at_least=0,
        affects='model',
        help="for 'linear' the last, for 'steps' the smallest value of sigma",
    )
    sigma_factor: float = setting(
        0.8,
        at_least=0,
        at_most=1,
        affects='model',
        help="for sigma_schedule 'steps': sigma is multiplied by this every sigma_steps",
    )
    sigma_steps: int = setting(
        100,
        at_least=1,
        affects='model',
        help="for sigma_schedule 'steps': number of optimiser steps between changes of sigma",
    )
    rate: float = setting(
        1.0,
        at_least=0,
        affects='training',
        help='learning rate of the sampler, times train.learning_rate; published: 1',
    )
    at_test: bool = setting(True, help=AT_TEST)
    intra_weight: float = setting(
        0.0,
        at_least=0,
        affects='model',
        help='mu_1, weight of the intra-video information loss L_intra; published: 0.5',
    )
    dtype: Any = jnp.float32

    has_weights = True

    @property
    def fixed_parts(self) -> tuple[str, ...]:
        return () if self.scan_trained else ('scan_network',)

    @property
    def batch_norm_momentum(self) -> float:  # type: ignore[override]
        return self.scan_network.batch_norm_momentum

    def frames_read(self, frames: int) -> int:
        return self.dense_frames

    def check(self, frames: int | None = None) -> None:
        if frames is None:  # a learner alone, which may never train
            return
        check_dense_frames(self)
        constant = self.sigma_schedule == 'constant'
        if not constant and self.sigma_end > self.sigma:
            raise ValueError(
                f'config.model.sampler.sigma_end={self.sigma_end} must be at most '
                f'config.model.sampler.sigma={self.sigma}: the noise must not grow'
            )
        key, least = ('sigma', self.sigma) if constant else ('sigma_end', self.sigma_end)
        draws = self.temporal and self.sigma > 0  # at 0 throughout: no gradient
        if self.variant == 'code' and draws and least < 0.01:
            raise ValueError(
                f'config.model.sampler.{key}={least} is too small for '
                "config.model.sampler.variant='code': the noise of its gradient grows as 1/sigma, "
                'which the released code keeps at 0.01 at least'
            )

    def check_published(self) -> None:
        if self.variant != 'code':
            super().check_published()

    def setup(self) -> None:
        if self.spatial not in SPATIAL:
            raise ValueError(
                f"the sampler's spatial={self.spatial!r} is not one of {', '.join(SPATIAL)}"
            )
        self.evaluator = Linear(self.hidden)
        if self.spatial == 'learned_crop':
            self.window_policy = WindowPolicy(self.hidden)
        if self.adaptive:
            self.generator = TaskGenerator(self.hidden, self.task_dim, self.variant)
        else:
            self.score = Linear(1)
            self.saliency = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.ones)

    def scan(self, videos: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Per video: all that sampling needs of it. The cost of sampling is here, so it is worth
        keeping.

        Args:
          videos: [B, M, H, W, 3], uint8 or float in [0, 1], M ≥ T.

        Returns:
          Leaves with leading axis B: 'frames', the videos as they came; 'features' float32 [B, M,
          c]; and, by spatial and variant:
            'saliency' float32 [B, M, h2, w2], the map itself ('code');
            'attended' [B, M, h, w, c] in `dtype`, Eq. 7 on the last maps ('paper'). The last ones
              because Eq. 7 is about the f(X) of Eq. 1, and w_s has its c entries. They take 64 kB
              of a frame of 224 pixels (4 × 4 × 1024), whose own bytes are 147 kB.
            'crop' float32 [B, M, 2], of 'learned_crop' with either variant.

        Raises:
          ValueError: fewer than T frames, or neither uint8 nor floating.
        """
        chex.assert_rank(videos, 5)
        batch, dense, height, width = videos.shape[:4]
        if dense < self.frames:
            raise ValueError(
                f'the sampler is to choose {self.frames} frames of a video, but it is given '
                f'{dense}: scan at least as many'
            )
        scanned = self.scan_network(_shrink(videos, self.scan_size), train and self.scan_trained)
        if not self.scan_trained:
            scanned = jax.lax.stop_gradient(scanned)
        per_video = lambda x: x.reshape(batch, dense, *x.shape[1:])
        kept = {'frames': videos, 'features': per_video(scanned.features).astype(jnp.float32)}
        if self.spatial == 'learned_crop':
            kept['crop'] = self.window_policy(per_video(scanned.last))
        elif self.spatial != 'none' and self.variant == 'code':
            maps = per_video(amplifier.stage_saliency(scanned.stages))
            kept['saliency'] = amplifier.min_max_enlarged(maps, height, width)
        elif self.spatial != 'none':
            if scanned.last.shape[1:3] == (1, 1):
                raise ValueError(
                    f'the scan network sees frames of {self.scan_size} pixels as one cell, in '
                    'which nothing can be salient: '
                    "raise config.model.sampler.scan_size, or set "
                    "config.model.sampler.spatial='none'"
                )
            kept['attended'] = amplifier.attend_channels(per_video(scanned.last)).astype(self.dtype)
        return kept

    @property
    def per_episode(self) -> bool:
        """Whether what is sampled of a video depends on its episode."""
        by_task = self.temporal or (self.spatial in BY_MAP and self.variant == 'paper')
        return self.adaptive and by_task

    @property
    def frames_look_alike(self) -> bool:
        """Whether a frame that is chosen in a test looks the same in every episode: not where its
        saliency map is made by the task's weights, or with the other chosen frames."""
        if not self.at_test or self.spatial == 'none':
            return True
        by_task = self.spatial in BY_MAP and self.adaptive and self.variant == 'paper'
        return not by_task and self.spatial_per == 'frame'

    def all_frames(self, scanned: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Every frame as it looks in a test when it is chosen (`frames_look_alike`): leaves [B, …]
        of `scan` → the same with 'frames' [B, M, H, W, 3] resampled, for `without_resampling`."""
        by = self.resampled_by(scanned, {}) if self.at_test else None
        indices = jnp.broadcast_to(
            jnp.arange(scanned['features'].shape[1]), scanned['features'].shape[:2]
        )
        frames = self.render(scanned['frames'], indices, None, by)
        return {'features': scanned['features'], 'frames': frames}

    @nn.nowrap
    def without_resampling(self) -> 'TaskAdaptiveSampler':
        """The same choice among frames, or embeddings of them, that are taken as they are."""
        return self.clone(spatial='none')

    def sample_episode(
        self, support: dict[str, jax.Array], query: dict[str, jax.Array], train: bool = False
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """One episode: support leaves [way, shot, …] and query leaves [Q, …] of `scan` → a dict of
        leaves [way, shot, …] and one of [Q, …].

        Training (train=True) needs rngs={'sampler': key}.

        Returns:
          Of support and query: 'frames' [.., T, H, W, 3], floats in `dtype`, except uint8 untouched
            ones (at test, with spatial
          'none'); 'indices' int32 [.., T], the hard choice, in training too; 'scores' float32 [..,
          M] where temporal; 'saliency' float32 [.., T, h, w], the maps that frames are resampled
          by, where they are; 'dense_features' and 'selected_features' float32 [.., c], scan
          features averaged over all and over the chosen frames.
        """
        way, shot = support['features'].shape[:2]
        support = jax.tree.map(lambda x: x.reshape(way * shot, *x.shape[2:]), support)
        guide = self.guides(support['features'], way)
        noise = (
            jax.random.normal(self.make_rng('sampler'), (self.task_dim,))
            if train and self.adaptive
            else None
        )
        weights = self.task_weights(guide, noise)
        sampled = self.sample(support, guide, weights, train)
        support = jax.tree.map(lambda x: x.reshape(way, shot, *x.shape[1:]), sampled)
        return support, self.sample(query, self.guide(query['features']), weights, train)

    def guide(self, features: jax.Array) -> jax.Array:
        """g of videos (Eq. 1): features [videos, M, c] → [videos, c]."""
        return (nn.standardize(features) if self.normalize_guide else features).mean(1)

    def guides(self, features: jax.Array, way: int) -> jax.Array:
        """g of the support videos: features [videos, M, c], class-major → [videos, c]."""
        guide = self.guide(features)
        return tiled_class_means(guide, way) if self.variant == 'code' and self.adaptive else guide

    def explain(
        self, support: dict[str, jax.Array], query: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """{'task_weights' [1 + TASK_DRAWS, hidden]}: w₂ that this support set generates, first
        without noise, as at test, then with some draws of ε, as in training (VIM, Fig. 13)."""
        if not self.adaptive or not self.temporal:
            return {}
        features = support['features']
        guide = self.guides(features.reshape(-1, *features.shape[2:]), len(features))
        draws = jax.random.normal(jax.random.key(0), (TASK_DRAWS, self.task_dim))
        return {
            'task_weights': jnp.stack(
                [self.task_weights(guide, noise)['frames'] for noise in (None, *draws)]
            )
        }

    def __call__(self, videos: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """Per video, for adaptive=False: videos [B, M, H, W, 3] → a dict as of `sample_episode`,
        leaves [B, …]."""
        scanned = self.scan(videos, train)
        return self.sample(scanned, self.guide(scanned['features']), {}, train)

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """L_intra, on class means of the scan features over all and over the chosen frames."""
        if not self.intra_weight:
            return {}
        dense, selected = (
            prototype_logits(outputs[f'support_{of}_features'], outputs[f'query_{of}_features'])
            for of in ('dense', 'selected')
        )
        intra = intra_video_loss(dense, selected, labels, self.variant)
        return {'L_intra': Loss(self.intra_weight, intra, 'regulariser')}

    def schedules(self, num_steps: int) -> dict[str, optax.Schedule]:
        """σ over optimiser steps, as `sigma_schedule` says; none where no frames are chosen."""
        if not self.temporal:
            return {}
        start, end, factor, steps = (
            self.sigma,
            self.sigma_end,
            self.sigma_factor,
            self.sigma_steps,
        )
        schedules = {
            'constant': optax.constant_schedule(start),
            'linear': optax.linear_schedule(start, end, num_steps),
            'steps': lambda step: jnp.maximum(start * factor ** (step // steps), end),
        }
        return {'sigma': schedules[self.sigma_schedule]}

    def task_weights(
        self, guide: jax.Array, noise: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Unit weights by name from guides [videos, c] of the support and noise ε [task_dim] (None
        for 0); {} if not adaptive."""
        if not self.adaptive:
            return {}
        return {name: unit(theta) for name, theta in self.generator(guide, noise).items()}

    def sample(
        self,
        scanned: dict[str, jax.Array],
        guide: jax.Array,
        weights: dict[str, jax.Array],
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """Scan leaves [B, …], guide [B, c], weights of the task → a dict as of `sample_episode`,
        leaves [B, …]."""
        frames, features = scanned['frames'], scanned['features']
        active, sampled = train or self.at_test or self.is_initializing(), {}
        hard: jax.Array | np.ndarray
        indicator: jax.Array | np.ndarray
        if self.temporal and active:
            hard, indicator, sampled['scores'] = self.choose(features, guide, weights, train)
        else:
            batch, dense = features.shape[:2]
            hard = indicator = evenly_spaced_indicator(batch, dense, self.frames)
        sampled['indices'] = jnp.argmax(hard, -1)
        sampled['dense_features'] = features.mean(1)
        sampled['selected_features'] = einsum_float32('btm,bmc->btc', indicator, features).mean(1)
        by = self.resampled_by(scanned, weights) if active else None
        if by is not None:
            by = einsum_float32('btm,bm...->bt...', indicator, by)
            if self.spatial_per == 'clip':
                by = jnp.broadcast_to(by.mean(1, keepdims=True), by.shape)
            sampled['crop' if self.spatial == 'learned_crop' else 'saliency'] = by
        mixed = indicator if train and self.temporal else None
        sampled['frames'] = self.render(frames, sampled['indices'], mixed, by)
        return sampled

    def choose(
        self,
        features: jax.Array,
        guide: jax.Array,
        weights: dict[str, jax.Array],
        train: bool = False,
        noise: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Eq. 1 to 6: features [B, M, c], guide [B, c] → (hard indicator, the one to use, both [B,
        T, M], scores [B, M]).

        noise [B, num_samples, M] is drawn unless given.
        """
        if self.normalize_features:
            features, guide = nn.standardize(features), nn.standardize(guide)
        both = jnp.concatenate([features, jnp.broadcast_to(guide[:, None], features.shape)], -1)
        hidden = nn.relu(self.evaluator(both + sinusoidal_positions(*both.shape[1:])))
        raw = (
            einsum_float32('bmd,d->bm', hidden, weights['frames'])
            if self.adaptive
            else self.score(hidden)[..., 0]
        )
        scores = amplifier.min_max(raw)
        hard = hard_top_k(scores, self.frames)
        if not train:
            return hard, hard, scores
        return hard, self.soft_choice(scores, noise), scores

    def soft_choice(self, scores: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """The smoothed choice of training (VIM, Eq. 4 to 6): scores [B, M] → [B, T, M], with this
        step's σ. noise: of `perturbed_top_k`; None draws it."""
        sigma = jnp.asarray(self.get_variable('schedule', 'sigma', self.sigma), jnp.float32)
        source = self.make_rng('sampler') if noise is None else noise
        return perturbed_top_k(
            source,
            scores,
            self.frames,
            sigma,
            self.num_samples,
            self.samples_per_chunk,
            self.variant,
            self.noise,
        )

    @property
    def learns_to_choose(self) -> bool:
        """Whether scores that are trained choose the frames."""
        return self.temporal and self.sigma > 0

    def resampled_by(
        self, scanned: dict[str, jax.Array], weights: dict[str, jax.Array]
    ) -> jax.Array | None:
        """What decides how each frame is resampled: the place of its window [B, M, 2], or its map
        [B, M, h, w]; None where frames stay as they are."""
        if self.spatial == 'none':
            return None
        learned = self.spatial == 'learned_crop'
        return scanned['crop'] if learned else self.saliency_maps(scanned, weights)

    def saliency_maps(
        self, scanned: dict[str, jax.Array], weights: dict[str, jax.Array]
    ) -> jax.Array:
        """Maps float32 [B, M, h, w], each with its own range 0 to 1 (V12)."""
        if self.variant == 'code':
            return scanned['saliency']
        attended = scanned['attended']
        if self.adaptive:
            return amplifier.min_max(
                amplifier.weighted_saliency(attended, weights['saliency']), (-2, -1)
            )
        return amplifier.min_max(
            self.saliency(attended.astype(jnp.float32))[..., 0] / attended.shape[-1], (-2, -1)
        )

    @nn.nowrap  # called inside jax.lax.map, where Flax must not keep what it returns
    def positions(self, maps: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
        """Where a frame is read that these maps [..., h, w], or places [..., 2], resample: (rows
        [..., height], columns [..., width])."""
        if self.spatial == 'amplify' and self.variant == 'code':
            maps = jax.lax.stop_gradient(maps)  # with either warp (V13)
        warp = self.variant if self.warp == 'variant' else self.warp
        return amplifier.positions(maps, height, width, self.spatial, warp)

    def render(
        self,
        frames: jax.Array,
        indices: jax.Array,
        mixed: jax.Array | np.ndarray | None = None,
        maps: jax.Array | None = None,
    ) -> jax.Array:
        """Frames [B, M, H, W, 3] → the chosen ones [B, T, H, W, 3]: mixed by [B, T, M] if given,
        resampled by maps [B, T, h, w] (or places [B, T, 2]) if given.

        Video by video and computed again for the gradient: as floats the M frames would take four
        times their bytes.
        """
        if mixed is None and maps is None:
            return jnp.take_along_axis(frames, indices[..., None, None, None], axis=1)

        def one(frames, indices, mixed, maps):
            if mixed is None:
                chosen = frames_as_floats(frames[indices]).astype(self.dtype)
            else:
                chosen = einsum_float32(
                    'tm,mhwc->thwc',
                    mixed.astype(self.dtype),
                    frames_as_floats(frames).astype(self.dtype),
                ).astype(self.dtype)
            if maps is None:
                return chosen
            return amplifier.resample(chosen, *self.positions(maps, *chosen.shape[1:3]))

        return jax.lax.map(
            lambda video: jax.checkpoint(one)(*video), (frames, indices, mixed, maps)
        )


class TaskGenerator(nn.Module):
    """The task's summary, and the weights generated from it (VIM, Eq. 12 to 14), before they are
    normalised.

    variant='code': (μ, log σ²) = E(mean guide), E one linear layer; w₂ only. variant='paper': (μ,
    σ) = mean of E(guide), E two layers with ReLU between them; w₂ and w_s. w_s starts near equal
    weights for all channels, which is the code's plain mean: the map would otherwise start with
    random signs, as likely to shrink what is salient as to amplify it.

    Input: guide [videos, c], noise [task_dim] or None for the mean task. Output: {'frames':
    [hidden]}, and 'saliency' [c].
    """

    hidden: int
    task_dim: int
    variant: str

    @nn.compact
    def __call__(self, guide: jax.Array, noise: jax.Array | None = None) -> dict[str, jax.Array]:
        chex.assert_rank(guide, 2)
        x = guide
        if self.variant == 'paper':
            x = nn.relu(Linear(self.task_dim, name='encoder_hidden')(x))
        task, spread = jnp.split(Linear(2 * self.task_dim, name='encoder')(x).mean(0), 2)
        if noise is not None:
            task = task + (spread if self.variant == 'paper' else jnp.exp(spread / 2)) * noise
        theta = {'frames': Linear(self.hidden, name='frame_weights')(task)}
        if self.variant == 'paper':
            theta['saliency'] = nn.Dense(
                guide.shape[-1], bias_init=nn.initializers.ones, name='saliency_weights'
            )(task)
        return theta


def tiled_class_means(guide: jax.Array, way: int) -> jax.Array:
    """Rows V6 and V7: guides [videos, c] cut into `way` consecutive groups; video b gets the mean
    of group b mod way."""
    means = guide.reshape(way, -1, guide.shape[-1]).mean(1)
    return jnp.tile(means, (len(guide) // way, 1))


def _shrink(videos, size):
    """Videos [B, M, H, W, 3] → float [B·M, size, size, 3], one video at a time: the large frames
    are never all floats at once."""
    if videos.shape[2:4] == (size, size):
        small = frames_as_floats(videos)
    else:
        resize = lambda video: jax.image.resize(
            frames_as_floats(video), (len(video), size, size, video.shape[-1]), 'bilinear'
        )
        small = jax.lax.map(resize, videos)
    return small.reshape(-1, *small.shape[2:])
