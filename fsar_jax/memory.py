"""What a training step needs of a device's memory, and what to change where that is too much."""

import contextlib
import copy
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections

from fsar_jax.config import SETTINGS, setting_of, validate
from fsar_jax.fields import Setting
from fsar_jax.machine import give_back_freed_memory
from fsar_jax.messages import first_line, is_out_of_memory
from fsar_jax.plan import has_effect
from fsar_jax.processes import print_once
from fsar_jax.stage import ArrayTree
from fsar_jax.stages import build_stages

KEEP_UP_TO = 1 / 4  # of a CPU's memory, by a step; freed memory that is kept may double it
HARMS = ('', ' (results move by rounding)', ' (with other results)')  # of a `Saving`


def announced(step: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """The jitted training step (state, batch) → (state, metrics), which at its first call prints
    what it will need: parameters, state and batch before it is compiled, and then the compiler's
    count of everything, where the backend gives it. A function that is not jitted stays as it
    is."""
    if not hasattr(step, 'lower'):
        return step
    compiled: list[Any] = []

    def run(state, batch):
        if not compiled:
            count = sum(x.size for x in jax.tree.leaves(state.params))
            whole, part = bytes_of(state), bytes_of(batch) / mesh.size
            print_once(
                f'compiling the training step: {count / 1e6:.2f} M parameters, state with '
                f'optimiser {gibibytes(whole)}, batch {gibibytes(part)} of each device'
            )
            compiled.append(step.lower(state, batch).compile())
            if counted := counted_memory(compiled[0]):
                device = mesh.devices.flat[0]
                print_once(in_words(*counted, device))
                if device.platform == 'cpu' and sum(counted) > KEEP_UP_TO * free_memory_of(device):
                    give_back_freed_memory()
        return compiled[0](state, batch)

    return run


def bytes_of(tree: ArrayTree) -> int:
    """Of all arrays of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def gibibytes(size: float) -> str:
    """'6.9 GiB'; below 0.1 GiB in MiB."""
    gib = size / 2**30
    return f'{gib:.1f} GiB' if gib >= 0.1 else f'{size / 2**20:.1f} MiB'


def counted_memory(compiled: Any) -> tuple[int, int] | None:
    """The compiler's count of a compiled step, in bytes of each device: arguments and results, and
    temporaries. None where the backend does not count."""
    try:
        count = compiled.memory_analysis()
        fixed = count.argument_size_in_bytes + count.output_size_in_bytes
        # Outputs in the place of donated arguments count once.
        return fixed - count.alias_size_in_bytes, count.temp_size_in_bytes
    except (AttributeError, jax.errors.JaxRuntimeError, NotImplementedError):
        return None


def in_words(fixed: int, temporary: int, device: jax.Device) -> str:
    """One line with a `counted_memory` beside what `device` has."""
    has = memory_of(device)
    line = (
        f'the training step needs {gibibytes(fixed + temporary)} of each device, '
        f'{gibibytes(temporary)} of it for activations and other temporaries'
    )
    if has:
        line += f'; {device.device_kind} has {gibibytes(has)}'
    return line + (', which is less' if has and has < fixed + temporary else '')


def memory_of(device: jax.Device) -> int:
    """Bytes that JAX may use of an accelerator, or that a CPU's machine has; 0 if unknown."""
    if device.platform == 'cpu':
        with contextlib.suppress(ValueError, OSError, AttributeError):
            return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        return 0
    return (device.memory_stats() or {}).get('bytes_limit', 0)


def free_memory_of(device: jax.Device) -> float:
    """Bytes that are free on an accelerator. Of a CPU, an equal share of the memory of its machine,
    used or not, for each device that JAX makes of it. Infinite if unknown."""
    if device.platform == 'cpu':
        return memory_of(device) / len(jax.local_devices()) or math.inf
    stats = device.memory_stats() or {}
    if 'bytes_limit' not in stats:
        return math.inf
    return max(0, stats['bytes_limit'] - stats.get('bytes_in_use', 0))


@contextlib.contextmanager
def named_out_of_memory(config: ml_collections.ConfigDict, phase: str) -> Iterator[None]:
    """In the block, a device without enough memory raises MemoryError: one line with the settings
    that need less.

    Args:
      phase: 'training', 'evaluation', or 'extraction', which embeds as an evaluation does.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f'{out_of_memory(config, phase)} ({first_line(error)})') from error


def out_of_memory(config: ml_collections.ConfigDict, phase: str) -> str:
    """The line of `named_out_of_memory`: what still can be changed, the least harmful first."""
    stages = build_stages(config.model)
    able = [
        (known.saving.harm, f'--config.{key}={shown(less)}{HARMS[known.saving.harm]}')
        for key, known in SETTINGS.items()
        if known.saving
        and phase in (known.saving.phases or [phase])
        and known.saving.devices <= jax.device_count()
        and has_effect(config, key)
        and (known.saving.where is None or known.saving.where(stages, config))
        and (less := smaller(known, setting_of(config, key), config, phase)) is not None
        and is_allowed(config, key, less)
    ]
    found = [text for _, text in sorted(able, key=lambda item: item[0])]
    if phase == 'training' and not config.data.features:
        found.append('the training of the head alone on features that fsar_jax.extract stores')
    if jax.default_backend() == 'gpu':
        found.append('another GPU if other processes use this one (CUDA_VISIBLE_DEVICES)')
    return f'a device has too little memory for the {phase}' + (
        f': try {", or ".join(found)}' if found else ''
    )


def is_allowed(config: ml_collections.ConfigDict, key: str, value: Any) -> bool:
    """Whether the config may have this value."""
    config = copy.deepcopy(config)
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    try:
        validate(config)
    except ValueError:
        return False
    return True


def smaller(known: Setting, value: Any, config: ml_collections.ConfigDict, phase: str) -> Any:
    """The value to try in the place of `value`; None where there is none that needs less."""
    saving = known.saving
    assert saving
    if saving.up_to:  # a divisor of another setting, from which on there is no more to split
        most = setting_of(config, saving.up_to)
        devices = max(n for n in range(1, jax.device_count() + 1) if most % n == 0)
        able = (n for n in range(value + 1, most + 1) if most % (n * devices) == 0)
        return next(able, None)
    if saving.value is not None:
        return None if value == saving.value else saving.value
    half = value // 2 if isinstance(value, int) else value / 2
    lowest = known.at_least or 0
    if isinstance(value, int) and phase == 'evaluation':  # rounded up to the devices
        lowest = max(lowest, jax.device_count())
    return half if value and half >= lowest and half != value else None


def shown(value: Any) -> str:
    """As on the command line."""
    return f'{value:g}' if isinstance(value, float) else f'{value}'
