"""The flow of every method, readable top to bottom: sampler → backbone → enrichment → matcher."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fsar_jax.backbones import Features
from fsar_jax.config import check_values
from fsar_jax.enrichment import VideoFeatures, adaptive_max_pool
from fsar_jax.fields import build
from fsar_jax.layers import computed, frames_as_floats
from fsar_jax.matchers.matcher import Matcher
from fsar_jax.matchers.query_similarity import QueryClassSimilarity
from fsar_jax.samplers import SAMPLERS
from fsar_jax.stage import KINDS, ArrayTree, Loss, Stage, check_losses, check_shape, check_tokens
from fsar_jax.stages import build_stages, choice, shared_values


@flax.struct.dataclass
class Prediction:
    """What a learner predicts for the queries of one episode.

    Attributes:
      logits: float32 [Q, way], the scores that decide the class.
      auxiliary: all outputs by name: 'temporal_matching' [Q, way], the matcher's logits;
        'query_similarity' [Q, way] if it is on; 'support_window' [way, shot, 2] and
        'query_window' [Q, 2], (a, b) of a temporal transform; 'support_<name>' and
        'query_<name>', outputs of a sampler that chooses frames; and what the matcher adds. The
        `losses` of the stages say which of them are trained.
    """

    logits: jax.Array
    auxiliary: dict[str, jax.Array]


class FewShotLearner(nn.Module):
    """Four stages, each a Linen module that the config chooses. `create_learner` makes one.

    `embed` works on each video alone, so its output can be kept. `match` compares the videos of one
    episode; vmap it for many. Training does both in `__call__`. Evaluation embeds each video once
    and then matches thousands of episodes (fsar_jax.evaluation.evaluate). With a sampler that
    looks at the whole episode (`per_episode`), `embed` only scans a video, and `match` begins with
    the choice of frames. The other stages are the same in both cases.

    Attributes:
      patches: P; a map is pooled to P × P patches before patch enrichment.
      joint_batch: batch norm sees the support and the queries together; False keeps them apart, as
        published.
      frozen: no training step changes the running statistics of batch norm.
      backbone_trained: False stops the gradient at the backbone, which then also uses its running
        statistics in training.
    """

    sampler: Stage
    backbone: Stage
    matcher: Matcher
    patches: int
    joint_batch: bool
    frozen: bool
    backbone_trained: bool
    temporal_transform: Stage | None = None
    patch_enrichment: Stage | None = None
    frame_enrichment: Stage | None = None
    query_similarity: QueryClassSimilarity | None = None

    def __call__(self, support: jax.Array, query: jax.Array, train: bool = False) -> Prediction:
        """One episode, from pixels to logits.

        Args:
          support: [way, shot, L, H, W, 3], class-major: uint8, or float in [0, 1]. With backbone
            'features': maps [way, shot, L, h, w, C]. A sampler that chooses among M frames takes M
            in the place of L.
          query: [Q, L, H, W, 3], of the same kind as support.
          train: turns on dropout and batch statistics. Needs rngs={'dropout': key, 'sampler': key}
            ('sampler' only for a sampler that draws random numbers) and mutable=['batch_stats'].
        """
        chex.assert_rank([support, query], [6, 5])
        chex.assert_equal_shape_suffix([support, query], 4)
        sampled = self.sample(support, query, train)
        return self.compare(*self.represent_episode(*sampled, train), train)

    def embed(self, videos: jax.Array, train: bool = False) -> dict[str, Any]:
        """Embeds videos [B, L, H, W, 3] (or maps [B, L, h, w, C]): a pytree with leading axis B
        that holds what `match` needs of each video."""
        if self.sampler.per_episode:
            return self.sampler.scan(videos, train)
        return self.represent(self.sample_videos(videos, train), train)

    def sample(
        self, support: jax.Array, query: jax.Array, train: bool = False
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The sampler's outputs {'frames': …} for the support, with leaves [way, shot, …], and for
        the queries, with leaves [Q, …]."""
        if self.sampler.per_episode:
            return self.sample_episode(
                *self.of_episode(self.sampler.scan, support, query, train), train
            )
        return self.of_episode(self.sample_videos, support, query, train)

    def sample_videos(self, videos: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        """`sample` for videos [B, L, H, W, 3], with a sampler that looks at each of them alone."""
        sampled = self.sampler(videos, train)
        batch, read = videos.shape[:2]
        self.sampler.check_sampled(sampled, read, B=batch)
        return sampled

    def sample_episode(
        self, support: ArrayTree, query: ArrayTree, train: bool = False
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """`sample` from what the `scan` of a sampler that looks at the whole episode gave."""
        way, shot = jax.tree.leaves(support)[0].shape[:2]
        queries = len(jax.tree.leaves(query)[0])
        support, query = self.sampler.sample_episode(support, query, train)
        self.sampler.check_sampled(support, way=way, shot=shot)
        self.sampler.check_sampled(query, Q=queries)
        return support, query

    def represent(self, sampled: dict[str, jax.Array], train: bool = False) -> dict[str, Any]:
        """Turns a sampler's output for B videos, {'frames': [B, L, H, W, 3], …}, into what the
        matcher needs of each video."""
        return self.enriched(sampled | {'maps': self.feature_maps(sampled['frames'], train)}, train)

    def represent_episode(
        self, support: dict[str, jax.Array], query: dict[str, jax.Array], train: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """`represent` for a sampler's outputs of an episode: support leaves [way, shot, …], query
        leaves [Q, …]. The backbone sees all videos in one pass, which halves the program and fills
        an accelerator with few clips too; its batch norm keeps support and queries apart, unless
        `joint_batch`."""
        way, shot = support['frames'].shape[:2]
        parts = () if self.joint_batch else (way * shot, len(query['frames']))
        of_support, of_query = as_one_batch(
            lambda frames: self.feature_maps(frames, train, parts),
            support['frames'],
            query['frames'],
        )
        support, query = support | {'maps': of_support}, query | {'maps': of_query}
        return self.of_episode(self.enriched, support, query, train)

    def enriched(self, sampled: dict[str, jax.Array], train: bool = False) -> dict[str, Any]:
        """`represent` after the backbone: what the matcher needs of B videos, from a sampler's
        output with their 'maps' [B, L, h, w, C]."""
        return self.projected(sampled, self.enrich(sampled['maps'], train), train)

    def projected(
        self, sampled: dict[str, jax.Array], features: VideoFeatures, train: bool = False
    ) -> dict[str, Any]:
        """The last part of `represent`: from the features of B videos and what else was `sampled`
        to what the matcher needs of each."""
        projected = self.matcher.project(features, train)
        self.matcher.check_projected(projected, len(features.frames))
        embeddings = {'temporal_matching': projected}
        if sampling := {k: x for k, x in sampled.items() if k not in ('frames', 'maps')}:
            embeddings['sampling'] = sampling
        if self.query_similarity is not None:
            embeddings['query_similarity'] = self.query_similarity.project(features, train)
        if features.window is not None:
            embeddings['window'] = features.window
        return embeddings

    def match(
        self, support: dict[str, Any], query: dict[str, Any], train: bool = False
    ) -> Prediction:
        """Predicts the queries of one episode from its embeddings: support leaves [way, shot, …]
        and query leaves [Q, …]."""
        if self.sampler.per_episode:
            support, query = self.sample_episode(support, query, train)
            support, query = self.represent_episode(support, query, train)
        return self.compare(support, query, train)

    def embed_frames(self, videos: jax.Array) -> dict[str, Any]:
        """For a test in which a frame looks the same in every episode that chooses it
        (`chooses_embedded_frames`): scans videos [B, M, H, W, 3] and embeds all of their frames,
        for `match` of `on_embedded_frames`. Where no stage looks at places in a frame, they are
        averaged."""
        every = self.sampler.all_frames(self.sampler.scan(videos))
        maps = self.feature_maps(every['frames'])
        if not self.stages_on_maps:
            maps = computed(maps).mean((-3, -2), keepdims=True)
        if self.temporal_transform is not None:
            maps = self.temporal_transform.prepare(maps)
        return every | {'frames': maps}

    @nn.nowrap
    def on_embedded_frames(self) -> 'FewShotLearner':
        """This learner, with the same variables, for embeddings of `embed_frames`."""
        transform = self.temporal_transform
        return self.clone(
            sampler=self.sampler.without_resampling(),
            backbone=Features(),
            temporal_transform=transform and transform.clone(prepared=True),
        )

    @property
    def chooses_embedded_frames(self) -> bool:
        """Whether `match` begins with a choice of frames that can be embedded before it in a test:
        what they look like does not depend on the episode, nor their maps on each other."""
        return (
            self.sampler.per_episode
            and self.sampler.frames_look_alike
            and self.sampler.without_resampling().per_episode  # it chooses; maps alone do not
            and not self.backbone.takes_clips
        )

    def compare(
        self, support: dict[str, Any], query: dict[str, Any], train: bool = False
    ) -> Prediction:
        """The last part of `match`: support leaves [way, shot, …] and query leaves [Q, …] of
        `represent` → a Prediction."""
        logits = self.matcher(support['temporal_matching'], query['temporal_matching'], train)
        logits, auxiliary = logits if isinstance(logits, tuple) else (logits, {})
        way, queries = (len(jax.tree.leaves(x['temporal_matching'])[0]) for x in (support, query))
        check_shape('matcher', self.matcher, 'logits', logits, Q=queries, way=way)
        auxiliary = {'temporal_matching': logits, **auxiliary}
        if self.query_similarity is not None:
            similarity = self.query_similarity(
                support['query_similarity'], query['query_similarity'], train
            )
            auxiliary['query_similarity'] = similarity
            logits = self.query_similarity.decide(logits, similarity)
        if self.temporal_transform is not None:
            auxiliary['support_window'], auxiliary['query_window'] = (
                support['window'],
                query['window'],
            )
        for name in support.get('sampling', ()):
            auxiliary[f'support_{name}'], auxiliary[f'query_{name}'] = (
                support['sampling'][name],
                query['sampling'][name],
            )
        return Prediction(logits=logits, auxiliary=auxiliary)

    def explain(self, support: jax.Array, query: jax.Array) -> Prediction:
        """What `__call__` predicts without training, and what each stage made of the episode.

        It is for pictures (fsar_jax.analysis.run_report): nothing else computes or keeps these
        arrays. Arguments as of `__call__`.

        Returns:
          A Prediction. Beside the outputs of `__call__`, its auxiliary has of each clip, as
            'support_<name>' [way, shot, …] and 'query_<name>' [Q, …]:
              'clip' [L, H, W, 3], the frames that the backbone sees;
              'maps' [L, h, w, C], of the backbone;
              'warped_maps' [L, h, w, C], after the temporal transform, if there is one;
              'patches' and 'enriched_patches' [L, P², C], before and after patch enrichment, if
                there is one;
              'patch_level' and 'frame_features' [L, C], before and after frame enrichment;
            and of the episode what `Stage.explain` of sampler, matcher and query similarity gives.
        """
        shown: dict[str, jax.Array] = {}
        if self.sampler.per_episode:
            scanned = self.of_episode(self.sampler.scan, support, query)
            shown |= self.sampler.explain(*scanned)
            sampled = self.sample_episode(*scanned)
        else:
            sampled = self.of_episode(self.sample_videos, support, query)

        def per_video(sampled, train):
            maps = self.feature_maps(sampled['frames'], train)
            features = self.enrich(maps, train)
            stages = {
                'clip': sampled['frames'],
                'maps': maps,
                'warped_maps': None if features.window is None else features.maps,
                'patches': features.patches,
                'enriched_patches': features.enriched_patches,
                'patch_level': features.patch_level,
                'frame_features': features.frames,
            }
            stages = {name: x for name, x in stages.items() if x is not None}
            return self.projected(sampled, features, train), stages

        (of_support, support_stages), (of_query, query_stages) = self.of_episode(
            per_video, *sampled
        )
        for name in support_stages:
            shown[f'support_{name}'] = support_stages[name]
            shown[f'query_{name}'] = query_stages[name]
        for part, stage in (
            ('temporal_matching', self.matcher),
            ('query_similarity', self.query_similarity),
        ):
            if stage is not None:
                shown |= stage.explain(of_support[part], of_query[part])
        prediction = self.compare(of_support, of_query)
        return Prediction(logits=prediction.logits, auxiliary=shown | prediction.auxiliary)

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages of this learner by name, in the order in which an episode passes them."""
        names = (
            'sampler',
            'backbone',
            'temporal_transform',
            'patch_enrichment',
            'frame_enrichment',
            'matcher',
            'query_similarity',
        )
        return {name: stage for name in names if (stage := getattr(self, name)) is not None}

    @property
    def rates(self) -> dict[tuple[str, ...], float]:
        """{keys of a part of the parameters: its learning rate, times that of the rest}, where
        that is not 1; 0 for one that stays as it starts."""
        rates: dict[tuple[str, ...], float]
        rates = {(name,): stage.rate for name, stage in self.stages.items()}
        if not self.backbone_trained:
            rates['backbone',] = 0.0
        for name, stage in self.stages.items():
            rates |= {(name, part): 0.0 for part in stage.fixed_parts}
        return {keys: rate for keys, rate in rates.items() if rate != 1}

    @property
    def stages_on_maps(self) -> list[str]:
        """The stages that look at places in a frame, so that features which are pooled over the
        frame will not do."""
        return [
            name
            for name, stage in self.stages.items()
            if stage.needs_maps or name == 'patch_enrichment'
        ]

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """The losses of all stages for one episode, named 'stage/loss', in the order in which they
        are added. Training minimises their weighted sum.

        Args:
          outputs: `Prediction.auxiliary`.
          labels, classes: as for `Stage.losses`.
        """
        losses: dict[str, Loss] = {}
        for name, stage in self.stages.items():
            of_stage = stage.losses(outputs, labels, classes)
            check_losses(name, stage, of_stage, labels.shape)
            losses |= {f'{name}/{loss}': value for loss, value in of_stage.items()}
        return dict(sorted(losses.items(), key=lambda item: KINDS.index(item[1].kind)))

    def schedules(self, num_steps: int) -> dict[str, dict]:
        """The variable collection 'schedule' for a training of `num_steps` steps. In place of each
        value it has a function of the step: {'sampler': {'sigma': …}}."""
        return {
            name: schedules
            for name, stage in self.stages.items()
            if (schedules := stage.schedules(num_steps))
        }

    @property
    def encodes_in_match(self) -> bool:
        """Whether `match` runs the backbone, because the sampler needs the whole episode first."""
        return self.sampler.per_episode

    def of_episode(
        self, per_video: Callable, support: ArrayTree, query: ArrayTree, train: bool = False
    ) -> tuple[ArrayTree, ArrayTree]:
        """Runs a per-video function on support leaves [way, shot, …] and query leaves [Q, …]:
        separately, as published, or as one batch (`joint_batch`). Only batch norm sees the
        difference."""
        if self.joint_batch:
            return as_one_batch(lambda videos: per_video(videos, train), support, query)
        way, shot = jax.tree.leaves(support)[0].shape[:2]
        support = jax.tree.map(lambda x: x.reshape(way * shot, *x.shape[2:]), support)
        support, query = per_video(support, train), per_video(query, train)
        return jax.tree.map(lambda x: x.reshape(way, shot, *x.shape[1:]), support), query

    def batch_norm_passes(self, stages: Iterable[str], queries: int) -> dict[str, int]:
        """How often one training episode updates the running statistics of each of `stages`; {}
        where they are frozen, and no entry for a backbone that is not trained, or a stage of which
        a part stays as it starts. The matcher says it for itself. For the others it is twice, for
        support and for query, or once with `joint_batch`."""
        if self.frozen:
            return {}
        per_video = 1 if self.joint_batch else 2
        return {
            stage: self.matcher.batch_norm_passes(queries) if stage == 'matcher' else per_video
            for stage in stages
            if (stage != 'backbone' or self.backbone_trained) and not self.stages[stage].fixed_parts
        }

    def feature_maps(
        self, videos: jax.Array, train: bool = False, parts: tuple[int, ...] = ()
    ) -> jax.Array:
        """The backbone: videos [B, L, H, W, 3] → maps [B, L, h, w, C].

        `parts`: how many videos each contiguous part of the batch has, whose statistics are its own
        (`Stage.in_parts`); none: the batch is one.
        """
        videos, train = frames_as_floats(videos), train and self.backbone_trained
        of_frame = {'h': None, 'w': None, 'C': None}

        def run(backbone, videos):
            if not parts:
                return run_once(backbone, videos)
            if (of_parts := backbone.in_parts(parts)) is not None:
                return run_once(of_parts, videos)
            ends = np.cumsum(parts)[:-1]
            return jnp.concatenate([run_once(backbone, x) for x in jnp.split(videos, ends)])

        def run_once(backbone, videos):
            if backbone.takes_clips:
                maps = backbone(videos, train)
                check_shape('backbone', backbone, 'maps', maps, B=len(videos), l=None, **of_frame)
                return maps
            frames = videos.reshape(-1, *videos.shape[2:])
            maps = backbone(frames, train)
            check_shape('backbone', backbone, 'maps', maps, B=len(frames), **of_frame)
            return maps.reshape(*videos.shape[:2], *maps.shape[1:])

        if not self.backbone_trained and not self.is_initializing():
            # Of its weights alone: a sampler before it learns through it.
            run = nn.map_variables(run, 'params', jax.lax.stop_gradient)
        return run(self.backbone, videos)

    def frame_features(self, frames: jax.Array, pooled: bool) -> jax.Array:
        """What `python -m fsar_jax.extract` stores of frames [B, H, W, 3]: their maps [B, h, w, C],
        or if `pooled` the means of these [B, C], as `enrich` takes them."""
        maps = self.feature_maps(frames[:, None])[:, 0]
        return computed(maps).mean((-3, -2)) if pooled else maps

    def enrich(self, maps: jax.Array, train: bool = False) -> VideoFeatures:
        """Enriches maps [B, L, h, w, C]: warps them in time, then computes frame features after
        patch enrichment and after frame enrichment."""
        window = patches = enriched = None
        if self.temporal_transform is not None:
            maps, window = self.temporal_transform(maps, train)
        maps = computed(maps)  # a stage may average what it is given
        if self.patch_enrichment is None:
            patch_level = maps.mean((-3, -2))
        else:
            patches = computed(adaptive_max_pool(maps, self.patches))
            enriched = computed(self.patch_enrichment(patches, train))
            check_tokens('patch enrichment', self.patch_enrichment, patches, enriched)
            patch_level = enriched.mean(-2)
        frames = patch_level
        if self.frame_enrichment is not None:
            frames = self.frame_enrichment(patch_level, train)
            check_tokens('frame enrichment', self.frame_enrichment, patch_level, frames)
        return VideoFeatures(
            maps=maps,
            patch_level=patch_level,
            frames=computed(frames),
            window=window,
            patches=patches,
            enriched_patches=enriched,
        )


def as_one_batch(
    per_video: Callable, support: ArrayTree, query: ArrayTree
) -> tuple[ArrayTree, ArrayTree]:
    """Calls a per-video function once, for support leaves [way, shot, …] and query leaves [Q, …]
    together; its outputs have the same leading axes."""
    way, shot = jax.tree.leaves(support)[0].shape[:2]
    flat = jax.tree.map(lambda x: x.reshape(way * shot, *x.shape[2:]), support)
    both = per_video(jax.tree.map(lambda *x: jnp.concatenate(x), flat, query))
    return (
        jax.tree.map(lambda x: x[: way * shot].reshape(way, shot, *x.shape[1:]), both),
        jax.tree.map(lambda x: x[way * shot :], both),
    )


def create_learner(model: ConfigDict, **others: Stage) -> FewShotLearner:
    """The learner that `config.model` describes.

    Args:
      others: stages in place of those that the config chooses: backbone=Features().

    Raises:
      ValueError: one line. A value is unknown or outside its range, or two values do not fit each
        other.
    """
    check_values(model, 'model')
    stages = build_stages(model) | others
    for stage in filter(None, stages.values()):
        stage.check()
    if stages['backbone'].takes_maps and not stages['sampler'].takes_maps:
        fitting = [repr(name) for name, sampler in SAMPLERS.items() if sampler.takes_maps]
        raise ValueError(
            f'{choice(model, "backbone")} takes maps, and {choice(model, "sampler")} looks at '
            f'frames: choose the sampler {" or ".join(fitting)}'
        )
    return build(FewShotLearner, {}, shared_values(model) | stages)
