"""The plan of a run, which is printed when the run starts."""

from typing import Any

import ml_collections

from fsar_jax.config import SECTIONS, SETTINGS, setting_of
from fsar_jax.stages import chosen

# What the papers leave out and their code decides silently: docs/paper_vs_code.md.
FACTORS = {
    'N': 'input scaling',
    'L': 'loss over queries',
    'B': 'batch norm',
    'S': 'frame sampling',
    'D': 'short videos',
    'F': 'flip',
    'R': 'resize and crop',
    'C': 'cardinalities',
    'E': 'queries at test',
    'Z': 'seeds',
    'T': 'selection',
}


def resolved_plan(config: ml_collections.ConfigDict, mode: str, runtime: dict[str, str]) -> str:
    """The text that a run prints when it starts, for mode 'train' or 'evaluate'.

    It has a row for each stage with its settings, a row for each hidden factor, a row of the
    settings that differ from the default but have no effect, and `runtime`, the lines about data
    and devices (training.inputs.runtime_summary).
    """
    episode, train = config.episode, config.train
    asked = f' (of {episode.query_classes} of them)' if episode.query_classes else ''
    rows = {
        'episode': f'{episode.way}-way {episode.shot}-shot, {episode.query} queries per class'
        f'{asked} in training, {episode.frames} frames of {episode.image_size} px',
        'variant': config.model.variant,
        **stage_rows(config),
    }
    if mode == 'train':
        rows['optimisation'] = (
            f'{train.num_steps} steps of {train.episodes_per_step} episodes (in '
            f'{train.accumulation_steps} parts), {train.optimizer}, '
            f'rate {train.learning_rate:g} {train.schedule}'
        )
    for letter, name in FACTORS.items():
        of_factor = {
            key: setting_of(config, key)
            for key, known in SETTINGS.items()
            if known.factor == letter
            and has_effect(config, key)
            and (mode == 'train' or known.affects not in ('training', 'length'))
        }
        if of_factor or letter == 'C':
            short = {key.removeprefix('model.'): value for key, value in of_factor.items()}
            rows[f'{letter}  {name}'] = listed_values(short) or 'none'
    idle = {
        key: setting_of(config, key)
        for key, known in SETTINGS.items()
        if not has_effect(config, key) and not same(setting_of(config, key), known.default)
    }
    if idle:
        rows['without effect'] = listed_values(idle, '=')
    rows.update(runtime)
    width = max(map(len, rows))
    return '\n'.join(f'  {key:<{width}}  {value}' for key, value in rows.items())


def stage_rows(config: ml_collections.ConfigDict) -> dict[str, str]:
    """{'sampler': 'task_adaptive: frames 8, …', …}, with the settings that change results and are
    not a hidden factor; a section that changes nothing is left out."""
    rows = {}
    for section, part in SECTIONS.items():
        if not section.startswith('model.'):
            continue
        values = {
            name: setting_of(config, f'{section}.{name}')
            for name, known in part.settings().items()
            if has_effect(config, f'{section}.{name}')
            and known.affects != 'cost'
            and not known.factor
        }
        values = {name: value for name, value in values.items() if value is not None}
        name = values.pop('name', None)
        text = ': '.join(filter(None, (name, listed_values(values))))
        if text:
            rows[section.removeprefix('model.').replace('_', ' ')] = text
    return rows


def has_effect(config: ml_collections.ConfigDict, key: str) -> bool:
    """Whether a module that config.model chooses reads this setting; True for one that does not
    depend on a choice."""
    section, _, name = key.rpartition('.')
    readers = SECTIONS[section].used_by(name).values()
    modules = [module for _, module in chosen(config.model).values()]
    return not readers or any(module in modules for module in readers)


def same(value: Any, default: Any) -> bool:
    """Whether a value is the default; a list is the same as a tuple."""
    return (tuple(value) if isinstance(default, tuple) else value) == default


def listed_values(values: dict, between: str = ' ') -> str:
    """'frames 8, sigma 0.1'."""
    text = lambda value: f'{value:g}' if isinstance(value, float) else f'{value}'
    return ', '.join(f'{name}{between}{text(value)}' for name, value in values.items())
