"""The state of a run, its optimiser, and the one jitted step that advances it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from fsar_jax.backbones import BatchNorm
from fsar_jax.learner import FewShotLearner
from fsar_jax.mesh import replicated
from fsar_jax.stage import ArrayTree
from fsar_jax.stages import frames_read
from fsar_jax.training.losses import episode_loss


@flax.struct.dataclass
class TrainState:
    """All that a checkpoint holds. `step` is also the position in the data, because episode i
    depends only on (seed, split, i)."""

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        return {'params': self.params, 'batch_stats': self.batch_stats}


def learning_rate_schedule(train: ConfigDict) -> optax.Schedule:
    """The learning rate over optimiser steps that config.train describes: linear warm-up, then
    constant, cosine, steps or periodic drops."""
    rate, warmup = train.learning_rate, train.warmup_steps
    after = {
        'constant': lambda: optax.constant_schedule(rate),
        'cosine': lambda: optax.cosine_decay_schedule(rate, max(train.num_steps - warmup, 1)),
        'steps': lambda: optax.piecewise_constant_schedule(
            rate, {int(s) - warmup: train.schedule_factor for s in train.schedule_steps}
        ),
        'periodic': lambda: optax.exponential_decay(
            rate, train.schedule_every, train.schedule_factor, staircase=True
        ),
    }[train.schedule]()
    return (
        optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])
        if warmup
        else after
    )


def schedules(config: ConfigDict, learner: FewShotLearner) -> dict[str, optax.Schedule]:
    """All values that change with the optimiser step, in words: {"learning rate (train.schedule=
    'constant')": function of the step, 'sampler sigma': …}."""
    train = config.train
    of_stages = {
        f'{stage} {name}': schedule
        for stage, named in learner.schedules(train.num_steps).items()
        for name, schedule in named.items()
    }
    rate = f'learning rate (train.schedule={train.schedule!r})'
    return {rate: learning_rate_schedule(train)} | of_stages


def create_optimizer(train: ConfigDict) -> optax.GradientTransformation:
    """SGD or Adam with the rate of `learning_rate_schedule`, and optional clipping by global norm.

    Weight decay is decoupled for Adam (AdamW), and added to the gradient for SGD.
    """
    rate = learning_rate_schedule(train)
    parts = []
    if train.clip_norm:
        parts.append(optax.clip_by_global_norm(train.clip_norm))
    if train.optimizer == 'adam':
        parts.append(optax.adamw(rate, weight_decay=train.weight_decay))
    else:
        if train.weight_decay:
            parts.append(optax.add_decayed_weights(train.weight_decay))
        parts.append(optax.sgd(rate, momentum=train.momentum or None))
    return optax.chain(*parts)


def example_episode(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Support and query of the run's shapes, for initialisation: zeros [way, shot, L, …] and [way,
    L, …], of uint8 frames [S, S, 3] or of features [h, w, C]."""
    e, features = config.episode, tuple(config.get('data', {}).get('feature_shape', ()))
    shape, dtype = (features, np.float32) if features else ((e.image_size,) * 2 + (3,), np.uint8)
    frames = np.zeros((frames_read(config), *shape), dtype)
    return np.broadcast_to(frames, (e.way, e.shot, *frames.shape)), np.broadcast_to(
        frames, (e.way, *frames.shape)
    )


def create_train_state(config: ConfigDict, learner: FewShotLearner) -> TrainState:
    """Initial state from config.seed alone."""
    # The last level of XLA's CPU compiler takes up to six times as long, for the same numbers but
    # for the last bit of some.
    options = {'xla_backend_optimization_level': 2} if jax.default_backend() == 'cpu' else None
    return _train_state(
        config, jax.jit(partial(learner.init, train=False), compiler_options=options)
    )


def train_state_shapes(config: ConfigDict, learner: FewShotLearner) -> TrainState:
    """What `create_train_state` returns, of `jax.ShapeDtypeStruct`; nothing is computed."""
    return jax.eval_shape(lambda: _train_state(config, partial(learner.init, train=False)))


def _train_state(config: ConfigDict, init: Callable[..., Any]) -> TrainState:
    variables = init(jax.random.key(config.seed), *example_episode(config))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables.get('params', {}),  # prototypes on features have none
        batch_stats=variables.get('batch_stats', {}),
        opt_state=create_optimizer(config.train).init(variables.get('params', {})),
    )


def make_train_step(
    learner: FewShotLearner, config: ConfigDict, mesh: jax.sharding.Mesh
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The jitted step: (state, batch) → (state, metrics). The state is donated.

    batch: from `fsar_jax.data.loader.training_batches`, axes [A, M, …]: A parts in sequence
    (gradient accumulation), the M episodes of a part at once, sharded over the mesh. metrics:
    'loss' and 'accuracy' (means over the step), 'losses' [A, M], 'gradient_norm' (over all
    parameters, before clipping), 'finite' (bool, of the state that the step leaves).

    The running statistics of batch norm end up as if the episodes had passed one after the other,
    as in the published codes, whatever A and the number of devices: training does not read them, so
    each episode's update can be computed from the same start and folded in order
    (`fold_running_statistics`).
    """
    optimizer = create_optimizer(config.train)
    mirrored = not learner.backbone.takes_maps  # stored features come as they are
    schedules = learner.schedules(config.train.num_steps)

    def run_episode(params, batch_stats, schedule, episode):
        support, query = episode['support'], episode['query']
        if mirrored:
            support = flip_clips(support, episode['support_flip'])
            query = flip_clips(query, episode['query_flip'])
        key = jax.random.fold_in(jax.random.key(config.seed), episode['episode'])
        variables = {'params': params, 'batch_stats': batch_stats, 'schedule': schedule}
        with nn.intercept_methods(partial(check_batch_norm, learner)):
            prediction, updated = learner.apply(
                variables,
                support,
                query,
                train=True,
                mutable=['batch_stats'],
                rngs={'dropout': key, 'sampler': jax.random.fold_in(key, 1)},
            )
        loss = episode_loss(prediction, episode['labels'], config, episode['classes'])
        accuracy = (prediction.logits.argmax(-1) == episode['labels']).mean()
        return loss, accuracy, updated.get('batch_stats', {})

    def run_part(params, batch_stats, schedule, episodes):
        losses, accuracies, statistics = for_each_episode(run_episode)(
            params, batch_stats, schedule, episodes
        )
        return losses.mean(), (losses, accuracies, statistics)

    @partial(jax.jit, donate_argnums=0, out_shardings=(replicated(mesh), replicated(mesh)))
    def train_step(state, batch):
        # A function of the step, so that a resumed run goes on with it.
        schedule = jax.tree.map(lambda at: at(state.step), schedules)

        def accumulate(carry, episodes):
            gradients, batch_stats = carry
            (_, (losses, accuracies, statistics)), new = jax.value_and_grad(run_part, has_aux=True)(
                state.params, batch_stats, schedule, episodes
            )
            passes = learner.batch_norm_passes(batch_stats, episodes['labels'].shape[-1])
            batch_stats = batch_stats | {
                stage: fold_running_statistics(
                    batch_stats[stage],
                    statistics[stage],
                    learner.stages[stage].batch_norm_momentum ** count,
                )
                for stage, count in passes.items()
            }
            return (jax.tree.map(jnp.add, gradients, new), batch_stats), (losses, accuracies)

        alone = faster_one_by_one(learner, state.params, mesh)
        parts = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), batch) if alone else batch
        start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
        (gradients, batch_stats), (losses, accuracies) = run_in_sequence(accumulate, start, parts)
        gradients = jax.tree.map(lambda g: g / losses.shape[0], gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        for keys, rate in learner.rates.items():  # at a rate of 0, weight decay does nothing either
            updates = scaled(updates, keys, rate)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state)]).all()
        return state, {
            'loss': losses.mean(),
            'accuracy': accuracies.mean(),
            'losses': losses.reshape(batch['labels'].shape[:2]),
            'gradient_norm': optax.global_norm(gradients),
            'finite': finite,
        }

    return train_step


def scaled(updates: ArrayTree, keys: tuple[str, ...], rate: float) -> ArrayTree:
    """Nested dicts with all arrays below `keys` times `rate`, as they are where there are none."""
    if not keys:
        return jax.tree.map(lambda update: rate * update, updates)
    if keys[0] not in updates:
        return updates
    return updates | {keys[0]: scaled(updates[keys[0]], keys[1:], rate)}


def check_batch_norm(
    learner: FewShotLearner,
    call: Callable[..., Any],
    arguments: tuple,
    named: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Calls a method of a module of the learner, for `nn.intercept_methods` while a step is traced.

    Raises:
      ValueError: one line. It is a batch norm that normalises by the batch although the config
        freezes it, or whose running statistics would not be folded with its own momentum.
    """
    norm = context.module
    if isinstance(norm, (BatchNorm, nn.BatchNorm)) and context.method_name == '__call__':
        part = norm.path[0]
        stage = learner.stages[part]
        where = f'the batch norm {norm.path[-1]} of {part.replace("_", " ")} {type(stage).__name__}'
        if not _by_running_statistics(norm, *arguments, **named):
            if learner.frozen:
                raise ValueError(
                    f"{where} normalises by the batch, although batch_norm='frozen': give the "
                    'class a field `frozen: bool = False`, and its batch norms '
                    '`frozen=self.frozen` (fsar_jax.backbones.BatchNorm)'
                )
            if norm.momentum != stage.batch_norm_momentum:
                raise ValueError(
                    f'{where} has momentum {norm.momentum}, and the class says '
                    f'{stage.batch_norm_momentum}: use fsar_jax.backbones.BatchNorm, or give the '
                    f'class `batch_norm_momentum = {norm.momentum}`'
                )
    return call(*arguments, **named)


def _by_running_statistics(norm, x, *arguments, **named):
    """Whether a batch norm, of this package or of Flax, leaves the batch alone in a call."""
    if isinstance(norm, BatchNorm):
        return norm.frozen or not (arguments[0] if arguments else named.get('train'))
    given = arguments[0] if arguments else named.get('use_running_average')
    return norm.use_running_average if given is None else given


def for_each_episode(run_episode: Callable) -> Callable:
    """`jax.vmap` over the leading axis of the last of four arguments; without it for one episode,
    because an axis more makes the gradients of a product of matrices slow on a CPU."""

    def run(*arguments):
        *shared, episodes = arguments
        if len(jax.tree.leaves(episodes)[0]) > 1:
            return jax.vmap(run_episode, (None, None, None, 0))(*arguments)
        outputs = run_episode(*shared, jax.tree.map(lambda x: x[0], episodes))
        return jax.tree.map(lambda x: x[None], outputs)

    return run


def faster_one_by_one(learner: FewShotLearner, params: ArrayTree, mesh: jax.sharding.Mesh) -> bool:
    """Whether a part of a step should be a single episode: on one CPU, where frames are embedded,
    or the parameters are few.

    The arrays of one episode fit in the caches. For all at once, the system also clears new pages
    in every step, a quarter of the time of TRX on features. But each part adds its gradients to a
    sum, and for the 16 M parameters of HyRSM on features that takes longer.
    """
    if jax.default_backend() != 'cpu' or mesh.size > 1:
        return False
    parameters = sum(x.size for x in jax.tree.leaves(params))
    return not learner.backbone.takes_maps or parameters < 2**22


def run_in_sequence(
    function: Callable, carry: ArrayTree, batch: ArrayTree
) -> tuple[ArrayTree, ArrayTree]:
    """`jax.lax.scan`; without a loop for a single part."""
    if len(jax.tree.leaves(batch)[0]) > 1:
        return jax.lax.scan(function, carry, batch)
    carry, output = function(carry, jax.tree.map(lambda x: x[0], batch))
    return carry, jax.tree.map(lambda x: x[None], output)


def flip_clips(clips: jax.Array, flip: jax.Array) -> jax.Array:
    """Mirrors the width of those clips whose flag is set: clips [..., L, H, W, 3], flip bool
    [...]."""
    return jnp.where(flip[..., None, None, None, None], clips[..., ::-1, :], clips)


def fold_running_statistics(before: ArrayTree, after: ArrayTree, decay: float) -> ArrayTree:
    """Running statistics after E episodes in a row, from each episode's own update of the same
    start.

    With r_e = d·r + u_e for episode e alone, the sequence gives d^E·r + Σ_e d^(E−1−e)·u_e.

    Args:
      before: tree of r.
      after: tree of r_e, leading axis E.
      decay: d, the momentum of batch norm to the power of its passes per episode.
    """

    def fold(r, r_e):
        count = r_e.shape[0]
        weight = decay ** jnp.arange(count - 1, -1, -1, dtype=r.dtype)
        # Accelerators would round the factors of a float32 product.
        update = jnp.tensordot(weight, r_e - decay * r, 1, precision=jax.lax.Precision.HIGHEST)
        return decay**count * r + update

    return jax.tree.map(fold, before, after)
