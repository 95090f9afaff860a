"""The plan of a run, printed as it starts."""

import ml_collections


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


def resolved_plan(config: ml_collections.ConfigDict, mode: str, runtime: dict[str, str]) -> str:
    """The text printed at start: what will run (mode 'train' or 'evaluate'), each hidden factor by
    name, and `runtime`, the lines about data and devices (training.inputs.runtime_summary)."""
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
    rows.update(runtime)
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
