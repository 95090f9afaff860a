"""TA2N's second stage: temporal and spatial coordination of each support-query pair, then
frame-wise cosine distance."""

import functools
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.fields import setting
from fsar_jax.layers import Linear, einsum_float32, unit
from fsar_jax.matchers.matcher import Matcher, clips_of_frames
from fsar_jax.matchers.offset_masks import (
    DIRECTIONS,
    OffsetPredictor,
    grid_weights,
    mask_weights,
    offset_weights,
)
from fsar_jax.matchers.prototypes import frame_cosine_logits
from fsar_jax.mutual_information import inter_video_loss
from fsar_jax.stage import VARIANTS, Loss, Shared

SPATIAL = ('mask', 'grid', 'enumerate', 'none')


class ActionCoordination(Matcher):
    """logit = −Σ_t (1 − cos(p̄_t, q̄_t)) after coordinating query and prototype in time and in
    space (TA2N, Eq. 2 to 8).

    Temporal coordination: M = softmax over the query's time of (W_k G(s))·(W_q G(q))ᵀ/√C, G the
    spatial mean; the pair's query is q + M·W_v G(q), its support s + W_v G(s), each broadcast over
    space. Spatial coordination: an offset per frame, and the average of both maps over where they
    then overlap. Prototypes of several shots: each shot is aligned in time to the first of its
    class by projections of their own, and the mean taken; the query's map then passes that value
    projection too. prototype='mean' is the plain mean of the shots, as VIM has it (row V22).

    The variants differ in rows A6 to A8, A10 and A12 of docs/paper_vs_code.md; A3 to A5 and A9 are
    as the code in both. variant='paper': the masks' sign is the printed one, their slope is 3,
    there are 8 perturbations (not the zero one) in training and none at test, and the shots of a
    class are aligned by temporal coordination itself, with its weights.

    Args:
      temporal: temporal coordination, between shots too; False takes maps and plain mean prototypes
        as they are.
      prototype: 'aligned' or 'mean'.
      reference: which shot of a class the others are aligned to: 'first' (released code), or in
        training a 'random' one (supplement; row A11). At test it is the first, whose place the draw
        of the episode has made random.
      spatial: 'mask'; 'grid' or 'enumerate', the alternatives of TA2N, Table 4; 'none' is the plain
        spatial mean.
      perturbation: amplitude of the perturbed offsets of 'mask'.
      perturbation_every: optimiser steps after which it halves, again and again (supplement; row
        A10), and with it none at test; 0 keeps it.
      pairs_per_chunk: at most so many support-query pairs (rounded down to whole queries, at least
        one) are coordinated at once, 0 for all. Less memory, the same result. Training with batch
        statistics or with a metric needs all pairs at once, and so does not chunk.
      order: 'temporal_first', or 'spatial_first' (VIM, Table 14): offsets from the maps as they
        come, then the pooled pairs in time.
      align_at_test: False compares test maps as they come, by the spatial mean of plain
        prototypes (VIM, Table 17).
      distance_norm: LayerNorm over the classes of a query's logits (row A14); its parameters fit
        one number of classes.
      frozen, dtype: as in `OffsetPredictor`.
      inter_weight: μ₂, of L_inter (VIM, Eq. 33).
      inter_variant: of L_inter (row V18).
      offset_step: of 'enumerate', in cells; below 1 there are offsets between whole ones (VIM,
        Table 19).
      metric: another matcher, which compares the aligned pairs in place of the cosine (VIM, Sec.
        4.3.3, row V21); its auxiliary and its losses come along. Pairs then are of the enriched
        maps.
    """

    temporal: bool = setting(
        True,
        affects='model',
        help='temporal coordination (TC): rearrange the frames of a query to fit a class',
    )
    prototype: str = setting(
        'aligned',
        choices=('aligned', 'mean'),
        affects='model',
        help="mean of a class's shots: after aligning them in time (TA2N), or as they are (VIM)",
    )
    reference: str = setting(
        'first',
        choices=('first', 'random'),
        affects='model',
        help="for prototype 'aligned': the shot that the others of its class are aligned to in "
        'training',
    )
    spatial: str = setting(
        'mask',
        choices=SPATIAL,
        affects='model',
        help='spatial coordination (SC): shift maps by soft masks, by resampling, or by the best '
        'of all integer offsets',
    )
    perturbation: float = setting(
        0.2,
        at_least=0,
        at_most=1,
        affects='model',
        help="for 'mask': size of the perturbations of an offset",
    )
    perturbation_every: int = setting(
        0,
        at_least=0,
        affects='model',
        help='number of training steps after which the perturbation halves, again and again; it is '
        'then off at test; 0: it stays',
    )
    variant: str = Shared.variant
    pairs_per_chunk: int = setting(
        0,
        at_least=0,
        affects='cost',
        help='number of support-query pairs to coordinate at once; 0: all pairs of an episode',
    )
    order: str = setting(
        'temporal_first',
        choices=('temporal_first', 'spatial_first'),
        affects='model',
        help='order of the two coordinations',
    )
    align_at_test: bool = Shared.align_at_test
    distance_norm: bool = setting(
        False, affects='model', help='apply LayerNorm to the logits, over the classes'
    )
    frozen: bool = False
    dtype: Any = jnp.float32
    inter_weight: float = setting(
        0.0,
        at_least=0,
        affects='model',
        help='mu_2, weight of the inter-video information loss L_inter; published: 1',
    )
    inter_variant: str = setting(
        'paper',
        choices=VARIANTS,
        affects='model',
        formerly='model.sampler.variant',
        help='as model.variant, for L_inter alone (row V18 of paper_vs_code.md)',
    )
    offset_step: float = setting(
        1.0,
        above=0,
        at_most=1,
        affects='model',
        help="for 'enumerate': step between the offsets, in cells; 0.5 adds those halfway",
    )
    metric: Any = None

    @property
    def needs_maps(self) -> bool:
        return self.spatial != 'none'

    def check(self, frames: int | None = None) -> None:
        if self.order == 'spatial_first' and self.spatial == 'enumerate':
            raise ValueError(
                "config.model.matcher.order='spatial_first' needs offsets that are predicted: set "
                "config.model.matcher.spatial to 'mask', 'grid' or 'none'"
            )
        if self.spatial == 'enumerate' and getattr(self.metric, 'classifier_weight', 0.0) > 0:
            raise ValueError(
                "config.model.matcher.spatial='enumerate' leaves no aligned clips to train a "
                'classifier on: set config.model.classifier.weight to 0'
            )

    def setup(self) -> None:
        linear = lambda: Linear(None, use_bias=False, dtype=self.dtype)
        if self.temporal:
            self.key, self.query, self.value = linear(), linear(), linear()
            if self.variant == 'code' and self.prototype == 'aligned':
                self.key_multi, self.query_multi, self.value_multi = linear(), linear(), linear()
        if self.spatial in ('mask', 'grid'):
            self.offsets = OffsetPredictor(frozen=self.frozen, dtype=self.dtype)
        if self.distance_norm:
            self.norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)

    @property
    def offset_sign(self) -> int:
        """1 where an offset is the object's place in the query minus that in the support, −1 where
        it is the opposite (row A6)."""
        return 1 if self.variant == 'code' else -1

    def batch_norm_passes(self, queries: int) -> int:
        """How often an episode updates the running statistics of batch norm."""
        return 1

    def project(self, features: VideoFeatures, train: bool = False) -> jax.Array:
        """Per video: the maps themselves, [B, L, h, w, C]."""
        return (features.maps if self.metric is None else features.enriched_maps).astype(self.dtype)

    def __call__(
        self, support: jax.Array, query: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Per episode: support [way, shot, L, h, w, C], query [Q, L, h, w, C] → (logits float32 [Q,
        way], auxiliary).

        auxiliary: what alignment did to each pair: 'evolution' [Q, way, L, L], M; 'offsets' [Q,
        way, L, 2], (x, y); 'query_frames' [Q, L, C] before and, except for 'enumerate',
        'aligned_frames' [Q, way, L, C] after it.
        """
        if not (train or self.align_at_test or self.is_initializing()):
            p, q = (x.astype(jnp.float32).mean((-3, -2)) for x in (support.mean(1), query))
            if self.metric is None:
                return frame_cosine_logits(p, q), {}
            pairs = (len(q), len(p), *p.shape[1:])
            return self.similarity(
                jnp.broadcast_to(p, pairs), jnp.broadcast_to(q[:, None], pairs), train
            )
        logits, auxiliary = self.compare_in_chunks(*self.prototypes(support, query, train), train)
        return self.norm(logits) if self.distance_norm else logits, auxiliary

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """Beside the matching, L_inter: on the query's frames before and after alignment, where it
        leaves frames to compare."""
        of_metric = super().losses if self.metric is None else self.metric.losses
        found = of_metric(outputs, labels, classes)
        if not self.inter_weight or 'aligned_frames' not in outputs:
            return found
        inter = inter_video_loss(
            outputs['temporal_matching'],
            labels,
            outputs['query_frames'],
            outputs['aligned_frames'],
            self.inter_variant,
        )
        return found | {'L_inter': Loss(self.inter_weight, inter, 'regulariser')}

    def compare_in_chunks(
        self, prototypes: jax.Array, query: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`compare`, of at most `pairs_per_chunk` pairs at once."""
        chunk = max(1, self.pairs_per_chunk // prototypes.shape[0])
        whole = (
            not self.pairs_per_chunk
            or chunk >= len(query)
            or (train and not (self.frozen and self.metric is None))  # a metric may have dropout
            or self.is_initializing()
        )
        if whole:
            return self.compare(prototypes, query, train)
        chunks = -(-len(query) // chunk)
        padded = jnp.pad(query, [(0, chunks * chunk - len(query))] + [(0, 0)] * (query.ndim - 1))
        step = nn.remat(lambda module, q: module.compare(prototypes, q, train))
        scan = nn.scan(
            lambda module, _, q: (None, step(module, q)),
            variable_broadcast=('params', 'batch_stats', 'schedule'),
            split_rngs={'params': False, 'dropout': False},
        )
        _, outputs = scan(self, None, padded.reshape(chunks, chunk, *query.shape[1:]))
        return jax.tree.map(
            lambda x: x.reshape(chunks * chunk, *x.shape[2:])[: len(query)], outputs
        )

    def schedules(self, num_steps: int) -> dict[str, optax.Schedule]:
        """The amplitude of the perturbation over optimiser steps, where it halves."""
        if not self.perturbation_every or self.spatial != 'mask':
            return {}
        halving = optax.exponential_decay(
            self.perturbation, self.perturbation_every, 0.5, staircase=True
        )
        return {'perturbation': halving}

    def reference_shots(self, maps: jax.Array, train: bool) -> jax.Array:
        """maps [way, shot, …] → those of the shot that the others of a class are aligned to,
        [way, …]."""
        if self.reference == 'first' or not train:
            return maps[:, 0]
        shots = jax.random.randint(self.make_rng('dropout'), maps.shape[:1], 0, maps.shape[1])
        return maps[jnp.arange(len(maps)), shots]

    def prototypes(
        self, support: jax.Array, query: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """support [way, shot, L, h, w, C] → prototypes [way, L, h, w, C]; and the query maps in the
        same space."""
        shots = support.shape[1]
        if (
            not self.temporal
            or self.prototype == 'mean'
            or (self.variant == 'paper' and shots == 1)
        ):
            return support.mean(1), query
        if self.variant == 'paper':
            reference = self.reference_shots(support, train).mean((-3, -2))
            pooled = support.mean((-3, -2))
            aligned = self.evolution('wxc,wkyc->wkxy', self.key(reference), self.query(pooled))
            aligned = aligned.astype(self.dtype)
            moved = einsum_float32('wkxy,wkyc->wkxc', aligned, self.value(pooled))
            moved = moved.astype(self.dtype)
            return (support + moved[..., None, None, :]).mean(1), query
        if shots == 1 and not self.is_initializing():
            return support[:, 0], query
        pooled = support.mean((-3, -2))
        # The softmax is over the shot's time, so its axis comes last here.
        aligned = self.evolution(
            'wyc,wkxc->wkyx',
            self.query_multi(self.reference_shots(pooled, train)),
            self.key_multi(pooled),
        )
        moved = einsum_float32('wkyx,wkxijc->wyijc', aligned.astype(self.dtype), support)
        moved = moved.astype(self.dtype) / shots
        prototypes, projected = self.value_multi(moved), self.value_multi(query)
        return (support[:, 0], query) if shots == 1 else (prototypes, projected)

    def evolution(self, subscripts: str, of_support: jax.Array, of_query: jax.Array) -> jax.Array:
        """M of Eq. 2, float32: softmax over the last axis of the scaled products."""
        return jax.nn.softmax(
            einsum_float32(subscripts, of_support, of_query) / jnp.sqrt(of_support.shape[-1]),
            axis=-1,
        )

    def compare(
        self,
        prototypes: jax.Array,
        query: jax.Array,
        train: bool = False,
        prototypes_too: bool = False,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """prototypes [way, L, h, w, C], query [Q, L, h, w, C] → (logits [Q, way], auxiliary)."""
        first = self.order == 'temporal_first'
        still: tuple[jax.Array, jax.Array | None, jax.Array, dict[str, jax.Array]]
        still = prototypes, None, jnp.zeros((1, 1, 1, 1), jnp.float32), {}
        prototypes, values, moved, auxiliary = (
            self.coordinate_time(prototypes, query) if first and self.temporal else still
        )
        auxiliary['query_frames'] = query.astype(jnp.float32).mean((-3, -2))
        if self.spatial == 'enumerate':
            logits, found = self.at_best_offset(prototypes, query, moved, train)
        else:
            p, q, offsets = self.coordinate_space(
                prototypes, query, values, moved, auxiliary.get('evolution'), train
            )
            if offsets is not None:
                auxiliary['offsets'] = offsets
            if not first and self.temporal:
                p, q, auxiliary['evolution'] = self.coordinate_pooled(p, q)
            auxiliary['aligned_frames'] = q
            if prototypes_too:
                auxiliary['aligned_prototypes'] = p
            logits, found = self.similarity(p, q, train)
        chex.assert_shape(logits, (query.shape[0], prototypes.shape[0]))
        return logits, auxiliary | found

    def similarity(
        self, p: jax.Array, q: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Frames of a class and of a query, float32 [Q, way, L, C] each → (logits [Q, way],
        auxiliary)."""
        if self.metric is None:
            return -(1.0 - (unit(p) * unit(q)).sum(-1)).sum(-1), {}
        found = self.metric.compare_pairs(p, q, train)
        return found if isinstance(found, tuple) else (found, {})

    def explain(self, support: jax.Array, query: jax.Array) -> dict[str, jax.Array]:
        """{'prototypes' [way, L, C] before and, except for 'enumerate', 'aligned_prototypes' [Q,
        way, L, C] after coordination with each query}, beside 'query_frames' and
        'aligned_frames'."""
        if not self.align_at_test:
            return {}
        prototypes, query = self.prototypes(support, query)
        _, found = self.compare(prototypes, query, prototypes_too=True)
        shown = {'prototypes': prototypes.astype(jnp.float32).mean((-3, -2))}
        if 'aligned_prototypes' in found:
            shown['aligned_prototypes'] = found['aligned_prototypes']
        return shown

    def coordinate_time(
        self, prototypes: jax.Array, query: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Eq. 2 and 3: (coordinated prototypes [way, L, h, w, C], values [Q, L, C], M·values [Q,
        way, L, C], {'evolution': M})."""
        of_support, of_query = prototypes.mean((-3, -2)), query.mean((-3, -2))
        evolution = self.evolution('wxc,qyc->qwxy', self.key(of_support), self.query(of_query))
        values = self.value(of_query)
        moved = einsum_float32('qwxy,qyc->qwxc', evolution.astype(self.dtype), values)
        return (
            prototypes + self.value(of_support)[..., None, None, :],
            values,
            moved,
            {'evolution': evolution},
        )

    def coordinate_pooled(
        self, p: jax.Array, q: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Eq. 2 and 3 on pairs without space left: p and q [Q, way, L, C] → both coordinated, and M
        [Q, way, L, L]."""
        evolution = self.evolution('qwxc,qwyc->qwxy', self.key(p), self.query(q))
        moved = einsum_float32('qwxy,qwyc->qwxc', evolution.astype(self.dtype), self.value(q))
        return p + self.value(p), q + moved, evolution

    def coordinate_space(
        self,
        prototypes: jax.Array,
        query: jax.Array,
        values: jax.Array | None,
        moved: jax.Array | float,
        evolution: jax.Array | None,
        train: bool = False,
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Eq. 4 to 6: averages of both maps where they overlap, float32 [Q, way, L, C] each, and
        the offsets [Q, way, L, 2]."""
        if self.spatial == 'none':
            p, q = (x.astype(jnp.float32).mean((-3, -2)) for x in (prototypes, query))
            pairs = (len(query), len(prototypes), *p.shape[1:])
            return jnp.broadcast_to(p, pairs), jnp.broadcast_to(q[:, None] + moved, pairs), None
        offsets = self.offsets(prototypes, query[:, None], evolution, values, train)
        height, width = prototypes.shape[2:4]
        of_support, of_query = self.pooling_weights(offsets, height, width, train)
        p = einsum_float32('qwlij,wlijc->qwlc', of_support.astype(self.dtype), prototypes)
        q = einsum_float32('qwlij,qlijc->qwlc', of_query.astype(self.dtype), query)
        return p, q + moved, offsets

    def pooling_weights(
        self, offsets: jax.Array, height: int, width: int, train: bool = False
    ) -> tuple[jax.Array, ...]:
        """offsets [..., 2] → weights of the support's cells and of the query's, [..., height,
        width], each summing to 1."""
        if self.variant == 'paper':
            offsets = -offsets
        if self.spatial == 'grid':
            return tuple(grid_weights(o, height, width) for o in (offsets, -offsets))
        amplitude: float | jax.Array = self.perturbation
        slope, directions = None, DIRECTIONS
        if self.variant == 'paper':
            slope, directions = 3.0, DIRECTIONS[1:]
        if not train and (self.variant == 'paper' or self.perturbation_every):
            amplitude = 0.0
        elif self.perturbation_every:
            amplitude = self.get_variable('schedule', 'perturbation', self.perturbation)
        return tuple(
            mask_weights(sign * offsets, height, width, sign * amplitude, slope, directions)
            for sign in (1.0, -1.0)
        )

    def at_best_offset(
        self, prototypes: jax.Array, query: jax.Array, moved: jax.Array, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(logits [Q, way], {}) at the offset where a pair is most alike (TA2N, Table 4,
        'enumerate'): by the cosine, each pair of frames at its own offset; by another metric, the
        pair of clips at one."""

        def alike(module, p, q):
            """Frames [way, L, C] and [Q, L, C] at one offset → [Q, way, L], or [Q, way]."""
            if module.temporal:  # M moves a query to each class in another way
                q = q[:, None] + moved
                if module.metric is None:
                    return (unit(p) * unit(q)).sum(-1)
                return module.similarity(jnp.broadcast_to(p, q.shape), q, train)[0]
            if module.metric is None:
                return einsum_float32('qlc,wlc->qwl', unit(q), unit(p))
            p, q = (module.metric.project(clips_of_frames(x), train) for x in (p, q))
            found = module.metric(jax.tree.map(lambda x: x[:, None], p), q, train)
            return found[0] if isinstance(found, tuple) else found

        def pooled(subscripts, weights, maps):
            return tuple(
                einsum_float32(subscripts, w.astype(x.dtype), x) for w, x in zip(weights, maps)
            )

        def best_of_columns(module, best, row):
            maps = pooled('i,nlijc->nljc', row, (prototypes, query))
            column = lambda module, weights: alike(module, *pooled('j,nljc->nlc', weights, maps))
            step = lambda module, best, weights: (
                jnp.maximum(best, nn.remat(column)(module, weights)),
                None,
            )
            return over(step)(module, best, columns)

        over = functools.partial(
            nn.scan,
            variable_broadcast=('params', 'batch_stats'),
            split_rngs={'params': False, 'dropout': False},
        )
        rows, columns = (
            tuple(map(jnp.asarray, offset_weights(size, self.offset_step)))
            for size in prototypes.shape[2:4]
        )
        if self.is_initializing():
            p, q = (x.astype(jnp.float32).mean((-3, -2)) for x in (prototypes, query))
            best = alike(self, p, q)
        else:
            shape = len(query), *prototypes.shape[: 2 if self.metric is None else 1]
            lowest = jnp.full(shape, -jnp.inf, jnp.float32)
            best, _ = over(nn.remat(best_of_columns))(self, lowest, rows)
        return (-(1.0 - best).sum(-1) if self.metric is None else best), {}
