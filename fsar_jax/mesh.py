"""One mesh over all devices: episodes (and videos in evaluation) are sharded, parameters are
replicated.

The same calls work for one device, for several, and for several processes that were started with
`jax.distributed.initialize`.
"""

import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fsar_jax.messages import first_line, printable
from fsar_jax.stage import ArrayTree

AXIS = 'episodes'


def check_devices() -> None:
    """ValueError, one line, where JAX cannot start its devices."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get('JAX_PLATFORMS')
        cause = f' ({words})' if (words := first_line(error)) else ''
        raise ValueError(
            f'JAX finds no device for JAX_PLATFORMS={printable(asked)}{cause}: unset it for the '
            "CPU; a GPU needs its driver and pip install -e '.[cuda]', a TPU '.[tpu]'"
            if asked
            else f'JAX cannot start its device{cause}: JAX_PLATFORMS=cpu computes on the CPU'
        ) from error


def episode_mesh(episodes: int = 0) -> Mesh:
    """All devices of all processes, along one axis 'episodes'. Those of a process are neighbours,
    in the order of the processes, as the loader cuts a step into their shares.

    episodes: of a training step. A single process then uses the largest number of devices that
      divides them.

    Raises:
      ValueError: JAX cannot start its devices.
    """
    check_devices()
    count = jax.device_count()
    if episodes and jax.process_count() == 1:
        count = max(n for n in range(1, count + 1) if episodes % n == 0)
    devices = np.array(in_order(jax.devices())[:count])
    return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def float32_products(device: jax.Device) -> str:
    """What a device makes of the factors of float32 products and convolutions: 'float32',
    'tensorfloat32' (10 bits of the mantissa; NVIDIA's GPUs since compute capability 8.0),
    'bfloat16' (7 bits; TPUs), or 'default' where that is not known.

    JAX rounds them for speed, unless JAX_DEFAULT_MATMUL_PRECISION or
    `jax.default_matmul_precision` says otherwise.
    """
    settings: Any = jax.config  # has no types
    asked = settings.jax_default_matmul_precision
    if device.platform == 'cpu' or asked in ('highest', 'float32'):
        return 'float32'
    if asked not in (None, 'default', 'fastest', 'bfloat16'):  # JAX's names of the default
        return asked
    if device.platform == 'tpu':
        return 'bfloat16'
    try:
        capability = float(getattr(device, 'compute_capability', ''))
    except ValueError:  # not NVIDIA's
        return 'default'
    return 'tensorfloat32' if capability >= 8 else 'float32'


def in_order(devices: Iterable[Any]) -> list[Any]:
    """By process, then by number. `jax.make_mesh` follows the wires of a TPU, and refuses three of
    four chips."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters: a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along(mesh: Mesh, axis: int) -> NamedSharding:
    """The sharding that splits `axis` of an array over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def replicate(mesh: Mesh, tree: ArrayTree) -> ArrayTree:
    """Puts a whole copy of every leaf on every device. All processes must pass the same values.

    The result may share memory with a leaf that is on the device already: donating the one loses
    the other.
    """
    sharding = replicated(mesh)

    def put(x):
        if jax.process_count() == 1 or (isinstance(x, jax.Array) and x.sharding == sharding):
            return jax.device_put(x, sharding)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, tree)


def shard(mesh: Mesh, batch: ArrayTree, axis: int) -> ArrayTree:
    """Splits `axis` of every leaf over the devices.

    Args:
      batch: pytree of numpy arrays, the part of the batch that this process loaded.
      axis: the episode axis, e.g. 1 for the loader's [A, M, ...].

    Returns:
      The same tree of global arrays: along `axis` as long as all the processes' parts together.

    Raises:
      ValueError: the axis does not divide evenly over this process's devices.
    """
    sharding, devices = along(mesh, axis), len(mesh.local_devices)

    def put(x):
        if x.shape[axis] % devices:
            raise ValueError(
                f'{x.shape[axis]} episodes do not divide over {devices} devices: make '
                f'config.train.episodes_per_step / config.train.accumulation_steps a '
                f'multiple of {mesh.size}'
            )
        return jax.make_array_from_process_local_data(sharding, np.asarray(x))

    return jax.tree.map(put, batch)


def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """Which of `size` rows live on this process's devices, int64, ascending. Load these, then
    `shard`."""
    slices = along(mesh, 0).addressable_devices_indices_map((size,)).values()
    return np.sort(np.concatenate([np.arange(size)[index] for index in slices]))


def round_up(size: int, mesh: Mesh) -> int:
    """The smallest multiple of the number of devices that is at least `size`."""
    return -(-size // mesh.size) * mesh.size
