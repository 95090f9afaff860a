"""Few-shot action recognition in JAX. Start with `create_learner`; docs/how_it_works.md explains
the rest.

Names are imported when they are first used, so that processes which only read or decode clips never
import JAX.
"""

import importlib
import sys

if sys.platform == 'win32':
    raise ImportError(
        'fsar_jax does not run on Windows itself, which has no array_record: install WSL (wsl '
        '--install) and use it there'
    )

__version__ = '0.1.0'

_HOMES = {
    'create_learner': 'learner',
    'FewShotLearner': 'learner',
    'Prediction': 'learner',
    'Recognizer': 'recognition.recognizer',
    'default_config': 'config',
    'episodes': 'data.episode_source',
    'published_recipe': 'recipe',
    'validate': 'config',
}
_SUBMODULES = (
    'backbones',
    'config',
    'data',
    'enrichment',
    'learner',
    'matchers',
    'samplers',
    'training',
    'ingest',
    'recognition',
    'evaluation',
    'analysis',
    'weights',
)
__all__ = [*_HOMES, *_SUBMODULES]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f'fsar_jax.{_HOMES[name]}'), name)
    if name in _SUBMODULES:
        return importlib.import_module(f'fsar_jax.{name}')
    raise AttributeError(f"module 'fsar_jax' has no attribute '{name}'")
