"""Embeddings of the clips of a split: a copy on each device of the mesh, or a part on each.

Copies are faster: an episode finds all of its clips where it is matched. Parts take 1/n of the
memory on each of n devices. Then, for every chunk of episodes, each device gets from the others the
clips that its episodes use, each of them once (`exchanges`, `delivered`). Both give the same
logits, because the same clips are embedded in the same batches, and values only move.
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import PartitionSpec

from fsar_jax import mesh as meshes
from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos
from fsar_jax.memory import bytes_of, free_memory_of
from fsar_jax.messages import decimal_size
from fsar_jax.processes import print_once, smallest
from fsar_jax.progress import Progress
from fsar_jax.stage import ArrayTree
from fsar_jax.stages import frames_read

FOR_EMBEDDINGS = 0.75  # of a device's free memory; the rest is for the network and for matching
FOR_CHUNK = 0.25  # of what is free then, for the clips of the episodes that are matched at once


class TrainedModel(NamedTuple):
    """A learner with its variables, and how it runs.

    Attributes:
      learner: Flax module with `embed` and `match`; its fields must be hashable.
      variables: {'params': …, 'batch_stats': …}.
      config: the whole config.
      mesh: the devices, see fsar_jax.mesh.
    """

    learner: nn.Module
    variables: dict
    config: ml_collections.ConfigDict
    mesh: jax.sharding.Mesh


class Storage(NamedTuple):
    """How embeddings are kept.

    Attributes:
      method: of the learner, 'embed', or 'embed_frames' where an episode chooses among frames.
      parts: 1, a copy on each device; or as many parts as there are devices.
      shapes: what the method returns of a batch, in shapes and dtypes.
    """

    method: str
    parts: int
    shapes: ArrayTree


# ── Where they fit ────────────────────────────────────────────────────────────────────────────────


def storage(model: TrainedModel, clips: jax.ShapeDtypeStruct, count: int) -> Storage | None:
    """How to keep the embeddings of `count` clips, by config.eval.embeddings. Prints what they
    take; where they fit in no way, what to do about it. All processes decide alike.

    Args:
      clips: shape and dtype of a batch, see `batch_of_clips`.

    Returns:
      None: they fit in no way, so that every episode has to embed its clips again.
    """
    learner, _, config, mesh = model
    layout = config.eval.embeddings
    room = bytes_for_embeddings(config, mesh)
    limit = room if layout == 'auto' else math.inf
    ways = [('embed', limit)]
    if learner.encodes_in_match and learner.chooses_embedded_frames:
        ways = [('embed_frames', min(limit, 1e9 * config.eval.frame_cache_gb)), *ways]
    parts = {'auto': (1, mesh.size), 'replicated': (1,), 'sharded': (mesh.size,)}[layout]
    for method, most in ways:
        shapes = embedded_shapes(model, clips, method)
        size = count * bytes_of(shapes) / len(clips)
        for number in dict.fromkeys(parts):
            if size / number <= most:
                if mesh.size > 1 or size > 1e9:  # else no question
                    say(_what_they_take(count, size, number, mesh.size))
                return Storage(method, number, shapes)
    say(_fit_in_no_way(count, size, room, model))
    return None


def _what_they_take(count, size, parts, devices):
    where = f'a part on each of {devices} devices' if parts > 1 else 'on the device'
    where = f'a copy on each of {devices} devices' if parts == 1 < devices else where
    return f'embeddings of {count:,} clips: {decimal_size(size / parts)}, {where}'


def _fit_in_no_way(count, size, room, model):
    devices = model.mesh.size
    parts = f', {decimal_size(size / devices)} of each of {devices} in parts' if devices > 1 else ''
    others = [
        f'{math.ceil(size / room):,} such devices' if room else '',
        '--config.model.dtype=bfloat16' if model.config.model.dtype == 'float32' else '',
        '--config.eval.embeddings_gb=N if there is more memory',
    ]
    return (
        f'note: the embeddings of {count:,} clips need {decimal_size(size)} of a device{parts}, '
        f'and {decimal_size(room)} are for them: every episode embeds its clips again, which is '
        f'slower; {" or ".join(filter(None, others))} would embed each clip once'
    )


@functools.cache
def say(line: str) -> None:
    """Prints a line, unless this process has printed it before: a run evaluates many times."""
    print_once(line)


def bytes_for_embeddings(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> float:
    """Of each device: config.eval.embeddings_gb, or three quarters of what is free on the device
    with least. Infinite where the backend does not tell."""
    if config.eval.embeddings_gb is not None:
        return 1e9 * config.eval.embeddings_gb
    free = min(free_memory_of(device) for device in mesh.local_devices)
    return FOR_EMBEDDINGS * smallest(free)


def episodes_at_once(model: TrainedModel, kept: Storage, clips: int, count: int) -> int:
    """How many of `count` episodes of `clips` clips each to match at once, with the embeddings in
    place: eval.episodes_per_chunk, or as many as have room (TA2N keeps maps, 3 MB of a clip at
    paper size, and an episode gathers its clips). All processes decide alike."""
    asked, mesh = min(model.config.eval.episodes_per_chunk, count), model.mesh
    of_episode = clips * bytes_of(kept.shapes) / len(jax.tree.leaves(kept.shapes)[0])
    free = smallest(min(free_memory_of(device) for device in mesh.local_devices))
    room = FOR_CHUNK * free / of_episode  # on each device
    # A power of two, so that what is free may vary without another program.
    most = mesh.size * 2 ** int(math.log2(min(max(room, 1), asked)))
    if most >= asked or mesh.size * room >= asked:
        return asked
    say(f'matching at most {most} episodes at once, not {asked}: a device has no room for more')
    return most


def embedded_shapes(model: TrainedModel, clips: jax.ShapeDtypeStruct, method: str) -> ArrayTree:
    """Shapes and dtypes of the embeddings of a batch of clips."""
    embed = functools.partial(model.learner.apply, method=method)
    return jax.eval_shape(embed, model.variables, clips)


def batch_of_clips(dataset: Videos, model: TrainedModel) -> jax.ShapeDtypeStruct:
    """[B, L, …], shape and dtype of the clips that are embedded at once."""
    one = loader.reader(dataset, model.config, frames_read(model.config)).empty()
    return jax.ShapeDtypeStruct((batch_size(model), *one.shape), one.dtype)


def batch_size(model: TrainedModel) -> int:
    """config.eval.videos_per_batch, rounded up to a multiple of the devices."""
    return meshes.round_up(model.config.eval.videos_per_batch, model.mesh)


# ── Embedding ─────────────────────────────────────────────────────────────────────────────────────


def embed_videos(
    model: TrainedModel,
    dataset: Videos,
    positions: Sequence[int] | np.ndarray | None = None,
    method: str = 'embed',
) -> dict[str, Any]:
    """Embeds videos of a split, each once: test frames, centre crop, running batch statistics.

    Args:
      positions: int [N], which videos, in which order; None is all that config.data.short_videos
        allows.
      method: of the learner, 'embed' or 'embed_frames'.

    Returns:
      What the method returns, leading axis N, on every device of the mesh. With several
      processes, each loads its part.
    """
    if positions is None:
        dataset = loader.usable(dataset, model.config)
        positions = np.arange(len(dataset))
    shapes = embedded_shapes(model, batch_of_clips(dataset, model), method)
    return embed_into_storage(model, dataset, np.asarray(positions), Storage(method, 1, shapes))


def embed_into_storage(
    model: TrainedModel, dataset: Videos, positions: np.ndarray, kept: Storage
) -> dict[str, Any]:
    """As `embed_videos`. With several parts, the leading axis is longer and split over the devices,
    and `row_of_each` says where a video is."""
    learner, variables, config, mesh = model
    variables = meshes.replicate(mesh, variables)
    batch = batch_size(model)
    rows = meshes.local_rows(mesh, batch)
    starts = range(0, len(positions), batch)
    padded = np.pad(positions, (0, len(starts) * batch - len(positions)), mode='edge')
    if kept.parts == 1:
        count, sharding, embed_into = len(positions), meshes.replicated(mesh), _embed_into
    else:
        count, sharding, embed_into = len(padded), meshes.along(mesh, 0), _embed_into_parts
    store = jax.tree.map(
        lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype, device=sharding), kept.shapes
    )
    order = padded.reshape(-1, batch)[:, rows].ravel()
    batches = loader.video_batches(dataset, config, order, len(rows), frames_read(config))
    with contextlib.closing(batches), Progress(len(positions), 'embedding', 'video') as progress:
        for start, frames in zip(starts, batches, strict=True):
            frames = meshes.shard(mesh, np.asarray(frames), 0)
            at = np.int32(start)
            store = embed_into(store, at, learner, variables, frames, mesh, kept.method)
            progress.advance(min(batch, len(positions) - start))
        jax.block_until_ready(store)
    return store


# The compiled functions take the learner and the mesh as static arguments, so that a second
# evaluation with the same learner, e.g. at the next checkpoint, does not compile again. Shapes are
# constant: last batches are padded, not shorter.


@functools.partial(jax.jit, static_argnames=('learner', 'mesh', 'method'), donate_argnames='store')
def _embed_into(store, start, learner, variables, frames, mesh, method):
    embeddings = learner.apply(variables, frames, method=method)
    rows = start + jnp.arange(len(frames))
    store = jax.tree.map(
        lambda all_rows, new: all_rows.at[rows].set(new, mode='drop'), store, embeddings
    )
    return jax.lax.with_sharding_constraint(store, meshes.replicated(mesh))


@functools.partial(jax.jit, static_argnames=('learner', 'mesh', 'method'), donate_argnames='store')
def _embed_into_parts(store, start, learner, variables, frames, mesh, method):
    """Each device writes its slice of the batch into its part."""
    embeddings = learner.apply(variables, frames, method=method)
    along, everywhere = PartitionSpec(meshes.AXIS), PartitionSpec()

    def write(part, new, start):
        row = start // mesh.size
        return jax.tree.map(
            lambda rows, new: jax.lax.dynamic_update_slice_in_dim(rows, new, row, 0), part, new
        )

    return jax.shard_map(write, mesh=mesh, in_specs=(along, along, everywhere), out_specs=along)(
        store, embeddings, start
    )


# ── Finding them again ────────────────────────────────────────────────────────────────────────────


class Exchange(NamedTuple):
    """What the n devices send each other for a chunk of E episodes, at most K clips a pair.

    Attributes:
      send: int32 [n, n, K]: the k-th row of its own part that a device (axis 0) sends to another
        (axis 1).
      support, query: int32 [E, …], the rows of the episodes' clips in the n · K that arrive.
    """

    send: np.ndarray
    support: np.ndarray
    query: np.ndarray


def row_of_each(count: int, batch: int, devices: int) -> np.ndarray:
    """int [count], the row of each clip in embeddings that are split into as many parts as there
    are devices. A device has its slice of every batch."""
    clip = np.arange(count)
    share, batches = batch // devices, -(-count // batch)
    device, place = np.divmod(clip % batch, share)
    return device * batches * share + clip // batch * share + place


def exchanges(
    chunks: Sequence[tuple[np.ndarray, np.ndarray]], rows_of_a_part: int, devices: int
) -> list[Exchange]:
    """The exchange for each chunk, all of one shape.

    Args:
      chunks: (support int [E, way, shot], query int [E, Q]), rows of all parts together. Device i
        matches the i-th of `devices` equal shares of the E episodes.
    """
    asked = []  # of each chunk and device: its rows without repeats, and where each clip is there
    for support, query in chunks:
        clips = np.concatenate([support.reshape(len(support), -1), query], 1)
        shares = clips.reshape(devices, -1)
        asked.append([np.unique(share, return_inverse=True) for share in shares])
    counts = [
        np.bincount(rows // rows_of_a_part, minlength=devices)
        for of_chunk in asked
        for rows, _ in of_chunk
    ]
    most = int(np.max(counts))
    found = []
    for (support, query), of_chunk in zip(chunks, asked):
        send, arrived = np.zeros((devices, devices, most), np.int32), []
        for device, (rows, inverse) in enumerate(of_chunk):
            source, row = np.divmod(rows, rows_of_a_part)  # ascending
            place = np.arange(len(rows)) - np.searchsorted(source, source)
            send[source, device, place] = row
            arrived.append((source * most + place)[inverse.ravel()])
        places = np.concatenate(arrived).reshape(len(support), -1).astype(np.int32)
        of_support, of_query = np.split(places, [support[0].size], axis=1)
        found.append(
            Exchange(send, of_support.reshape(support.shape), of_query.reshape(query.shape))
        )
    return found


def delivered(
    store: ArrayTree, send: jax.Array, rows: tuple[jax.Array, ...], mesh: jax.sharding.Mesh
) -> tuple[ArrayTree, ...]:
    """Sends embeddings from device to device, as an `Exchange` says.

    Args:
      store: leaves [n · rows of a part, …].
      send: int32 [n, n, K].
      rows: int32 [E, …] each.

    Returns:
      For each of `rows`, a tree with leaves [E, …, …]. All of them are split along axis 0.
    """

    def on_each(part, send, rows):
        def of_leaf(x):
            arrived = jax.lax.all_to_all(x[send[0]], meshes.AXIS, 0, 0, tiled=True)
            arrived = arrived.reshape(-1, *x.shape[1:])
            return tuple(arrived[each] for each in rows)

        leaves, structure = jax.tree.flatten(part)
        columns = zip(*map(of_leaf, leaves))
        return tuple(structure.unflatten(column) for column in columns)

    along = PartitionSpec(meshes.AXIS)
    return jax.shard_map(on_each, mesh=mesh, in_specs=along, out_specs=along)(store, send, rows)
