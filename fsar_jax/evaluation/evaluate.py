"""Evaluation: each video is embedded once, then all episodes are gathers and matches on the device.

`config.eval.cache = False` is the published way, everything again for every episode. Both give the
same logits (float32: to 1e-5, relative), because a clip has one test view and batch norm uses its
running statistics.
"""

import contextlib
import dataclasses
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax import mesh as meshes
from fsar_jax.data import dataset as data
from fsar_jax.data import episodes as episode_lists
from fsar_jax.data import loader
from fsar_jax.evaluation import results
from fsar_jax.progress import Progress


class Outcome(NamedTuple):
    """What came of E episodes.

    Attributes:
      logits: float32 [E, Q, way].
      correct: int32 [E], right answers of each episode's Q.
      classes: names of the C classes that the dataset's clips have.
      confusion: int64 [C, C], row true, column answered.
      seconds: {'embed': …, 'match': …} or, without the cache, {'episodes': …}; compilation
        included.
    """

    logits: np.ndarray
    correct: np.ndarray
    classes: list[str]
    confusion: np.ndarray
    seconds: dict[str, float]


def embed_videos(learner, variables, dataset, config, mesh, positions=None):
    """Embeds videos of a split, each once: test frames, centre crop, running batch statistics.

    Args:
      learner: Flax module with `embed`; its fields must be hashable.
      variables: {'params': …, 'batch_stats': …}.
      dataset: VideoDataset.
      config: the whole config; eval.videos_per_batch is rounded up to a multiple of the devices.
      positions: int [N], which videos, in which order; None is all that config.data.short_videos
        allows.

    Returns:
      What `learner.embed` returns, leading axis N, on every device of the mesh. With several
      processes, each loads its part.
    """
    if positions is None:
        dataset = loader.usable(dataset, config)
        positions = np.arange(len(dataset))
    positions = np.asarray(positions)
    variables = meshes.replicate(mesh, variables)
    batch = meshes.round_up(config.eval.videos_per_batch, mesh)
    rows = meshes.local_rows(mesh, batch)
    starts = range(0, len(positions), batch)
    padded = _pad(positions, len(starts) * batch).reshape(-1, batch)
    store = None
    batches = loader.video_batches(dataset, config, padded[:, rows].ravel(), len(rows))
    with contextlib.closing(batches), Progress(len(positions), 'embedding', 'video') as progress:
        for start, frames in zip(starts, batches, strict=True):
            frames = meshes.shard(mesh, np.asarray(frames), 0)
            if store is None:
                store = _empty_store(learner, variables, frames, len(positions), mesh)
            store = _embed_into(store, np.int32(start), learner, variables, frames, mesh)
            progress.advance(min(batch, len(positions) - start))
        jax.block_until_ready(store)
    return store


def evaluate_episodes(
    learner, variables, dataset, episodes, config, mesh, cache: bool = True
) -> Outcome:
    """Runs a list of episodes.

    Args:
      episodes: `Episodes`, E of them; positions index `dataset`.
      cache: embed the videos that occur once each, then match in chunks of eval.episodes_per_chunk;
        False: load and embed all clips of every episode again, about eval.videos_per_batch clips at
        a time.

    Raises:
      ValueError: logits that are not finite, with the first such episode.
    """
    variables = meshes.replicate(mesh, variables)
    run = _run_cached if cache else _run_uncached
    logits, seconds = run(learner, variables, dataset, episodes, config, mesh)
    finite = np.isfinite(logits).all((1, 2))
    if not finite.all():
        raise ValueError(
            f'the logits of {np.sum(~finite)} of {len(finite)} episodes are not finite, first '
            f'in episode {np.argmin(finite)}: the parameters have diverged (evaluate an '
            f'earlier checkpoint), or a setting of config.model does not suit them'
        )
    answers = logits.argmax(-1)
    labels = np.asarray(episodes.labels)
    present = np.unique(dataset.labels)
    place = np.searchsorted(
        present, np.asarray(episodes.classes)
    )  # dataset label -> row of the confusion
    truth, answered = (np.take_along_axis(place, which, 1) for which in (labels, answers))
    return Outcome(
        logits=logits,
        correct=(answers == labels).sum(1, dtype=np.int32),
        classes=[dataset.class_names[label] for label in present],
        confusion=results.confusion_matrix(truth, answered, len(present)),
        seconds=seconds,
    )


def evaluate(
    learner,
    variables,
    config,
    split: str,
    num_episodes: int,
    *,
    method: str = '',
    selected_on: str = 'last step',
    mesh=None,
    dataset=None,
    cache: bool | None = None,
) -> dict:
    """Evaluates on one split and returns the content of results.json (fsar_jax.evaluation.results).

    The episodes are those of (config.eval.seed, split), or for config.eval.split the list in
    config.eval.episodes_file where it is set (then its length counts, not `num_episodes`).

    Args:
      method, selected_on: recorded as they are.
      mesh: None is all devices.
      dataset: an open VideoDataset of this split; None opens the one that config.data names.
      cache: None is config.eval.cache.

    Raises:
      FileNotFoundError, ValueError: dataset absent, split empty, too few classes or clips, an
        episode list of another shape.
    """
    started = time.perf_counter()
    mesh = meshes.episode_mesh() if mesh is None else mesh
    dataset = (
        data.open_dataset(config.data.dataset, config.data.dir, split)
        if dataset is None
        else dataset
    )
    dataset = loader.usable(dataset, config)
    episodes = episodes_of(dataset, config, split, num_episodes)
    outcome = evaluate_episodes(
        learner,
        variables,
        dataset,
        episodes,
        config,
        mesh,
        cache=config.eval.cache if cache is None else cache,
    )
    seconds = {**outcome.seconds, 'total': time.perf_counter() - started}
    return results.summarise(
        method=method,
        config=config,
        split=split,
        seed=config.eval.seed,
        records=dataset.settings,
        selected_on=selected_on,
        classes=outcome.classes,
        correct=outcome.correct,
        confusion=outcome.confusion,
        episodes_hash=episode_lists.episodes_hash(dataset, episodes),
        content=data.content_hash(dataset),
        made_with=dataset.made_with,
        videos_present=data.videos_present(dataset),
        params=variables['params'],
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )


def episodes_of(dataset, config, split: str, num_episodes: int):
    """The episode list of a split: drawn from config.eval.seed, or for config.eval.split read from
    config.eval.episodes_file.

    Raises:
      FileNotFoundError, ValueError: the file is absent, or not a list of this dataset and these
        way, shot and queries.
    """
    way, shot = config.episode.way, config.episode.shot
    path = config.eval.episodes_file
    if not path or split != config.eval.split:
        return episode_lists.draw_episodes(
            dataset, way, shot, config.eval.query, config.eval.seed, num_episodes
        )
    episodes = episode_lists.read_episodes(path, dataset)
    found = (*episodes.support.shape[1:], episodes.query.shape[1])
    wanted = (way, shot, way * config.eval.query)
    if found != wanted:
        raise ValueError(
            f'{path} holds {found[0]}-way {found[1]}-shot episodes of {found[2]} queries, the '
            f'config asks for {wanted[0]}-way {wanted[1]}-shot with {wanted[2]}: set '
            f'config.episode and config.eval.query to match'
        )
    return episodes


def _run_cached(learner, variables, dataset, episodes, config, mesh):
    positions = np.concatenate([episodes.support.ravel(), episodes.query.ravel()])
    used, place = np.unique(positions, return_inverse=True)
    support, query = np.split(place.astype(np.int32), [episodes.support.size])
    support, query = support.reshape(episodes.support.shape), query.reshape(episodes.query.shape)
    started = time.perf_counter()
    embeddings = embed_videos(learner, variables, dataset, config, mesh, used)
    embedded = time.perf_counter()
    count = len(support)
    chunk = config.eval.episodes_per_chunk
    if getattr(learner, 'encodes_in_match', False):  # as many clips at once as in embedding
        chunk = max(1, config.eval.videos_per_batch // (support[0].size + query[0].size))
    chunk = meshes.round_up(min(chunk, count), mesh)
    rows = meshes.local_rows(mesh, chunk)
    logits = []
    with Progress(count, 'matching', 'episode') as progress:
        for start in range(0, count, chunk):
            part = [_pad(x[start : start + chunk], chunk)[rows] for x in (support, query)]
            answer = _match_chunk(
                learner, variables, embeddings, *meshes.shard(mesh, part, 0), mesh
            )
            logits.append(np.asarray(answer)[: count - start])
            progress.advance(len(logits[-1]))
    return np.concatenate(logits), {
        'embed': embedded - started,
        'match': time.perf_counter() - embedded,
    }


def _run_uncached(learner, variables, dataset, episodes, config, mesh):
    started = time.perf_counter()
    count, videos = len(episodes.support), episodes.support[0].size + episodes.query[0].size
    chunk = meshes.round_up(max(1, config.eval.videos_per_batch // videos), mesh)
    rows = meshes.local_rows(mesh, chunk)
    starts = range(0, count, chunk)
    order = _pad(np.arange(count), len(starts) * chunk).reshape(-1, chunk)[:, rows].ravel()
    fields = (field.name for field in dataclasses.fields(episodes))
    padded = dataclasses.replace(
        episodes, **{name: getattr(episodes, name)[order] for name in fields}
    )
    logits = []
    batches = loader.episode_batches(dataset, config, padded, len(rows))
    with (
        contextlib.closing(batches),
        Progress(count, 'evaluating without cache', 'episode') as progress,
    ):
        for start, batch in zip(starts, batches, strict=True):
            clips = meshes.shard(
                mesh, (np.asarray(batch['support']), np.asarray(batch['query'])), 0
            )
            logits.append(
                np.asarray(_predict_chunk(learner, variables, *clips, mesh))[: count - start]
            )
            progress.advance(len(logits[-1]))
    return np.concatenate(logits), {'episodes': time.perf_counter() - started}


# The three compiled functions take the learner and the mesh as static arguments, so that a second
# evaluation with the same learner, e.g. at the next checkpoint, does not compile again. Shapes are
# constant: last batches are padded, not shorter.


@functools.partial(jax.jit, static_argnames=('learner', 'mesh'), donate_argnames='store')
def _embed_into(store, start, learner, variables, frames, mesh):
    embeddings = learner.apply(variables, frames, train=False, method='embed')
    rows = start + jnp.arange(len(frames))
    store = jax.tree.map(
        lambda all_rows, new: all_rows.at[rows].set(new, mode='drop'), store, embeddings
    )
    return jax.lax.with_sharding_constraint(store, meshes.replicated(mesh))


@functools.partial(jax.jit, static_argnames=('learner', 'mesh'))
def _match_chunk(learner, variables, embeddings, support, query, mesh):
    def episode(support, query):
        support, query = (jax.tree.map(lambda x: x[rows], embeddings) for rows in (support, query))
        return learner.apply(variables, support, query, train=False, method='match').logits

    return jax.lax.with_sharding_constraint(
        jax.vmap(episode)(support, query), meshes.replicated(mesh)
    )


@functools.partial(jax.jit, static_argnames=('learner', 'mesh'))
def _predict_chunk(learner, variables, support, query, mesh):
    def episode(support, query):
        return learner.apply(variables, support, query, train=False).logits

    return jax.lax.with_sharding_constraint(
        jax.vmap(episode)(support, query), meshes.replicated(mesh)
    )


def _empty_store(learner, variables, frames, count, mesh):
    """Zeros shaped as the embeddings of `count` videos, on every device."""
    embed = functools.partial(learner.apply, train=False, method='embed')
    one_batch = jax.eval_shape(embed, variables, frames)
    sharding = meshes.replicated(mesh)
    return jax.tree.map(
        lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype, device=sharding), one_batch
    )


def _pad(x, count):
    """Repeats the last row until there are `count`; what comes of the repeats is dropped."""
    return np.pad(x, [(0, count - len(x))] + [(0, 0)] * (x.ndim - 1), mode='edge')
