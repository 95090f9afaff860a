"""Evaluation: embeds each video once, then matches all episodes on the device.

With `config.eval.cache = False` it embeds all clips of every episode again, as the published code
does. Both give the same logits (float32: to 1e-5, relative), because a clip always looks the same
in a test and batch norm uses its running statistics.
"""

import contextlib
import dataclasses
import functools
import json
import time
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from fsar_jax import mesh as meshes
from fsar_jax.data import episodes as episode_lists
from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos, content_hash, videos_present
from fsar_jax.data.episodes import Episodes
from fsar_jax.evaluation import results
from fsar_jax.evaluation.embeddings import (
    TrainedModel,
    batch_of_clips,
    batch_size,
    delivered,
    embed_into_storage,
    episodes_at_once,
    exchanges,
    row_of_each,
    storage,
)
from fsar_jax.memory import named_out_of_memory
from fsar_jax.named_arrays import params_hash
from fsar_jax.progress import Progress
from fsar_jax.stages import frames_read


class Outcome(NamedTuple):
    """Results of evaluating E episodes.

    Attributes:
      logits: float32 [E, Q, way].
      correct: int32 [E], how many of an episode's Q queries are answered right.
      classes: names of the C classes that the dataset's clips have.
      confusion: int64 [C, C], row the true class, column the answer, in the order of `classes`.
      episodes_hash: of the list of episodes (fsar_jax.data.episodes.episodes_hash).
      seconds: {'embed': …, 'match': …} or, without the cache, {'episodes': …}; compilation
        included.
    """

    logits: np.ndarray
    correct: np.ndarray
    classes: list[str]
    confusion: np.ndarray
    episodes_hash: str
    seconds: dict[str, float]


class Description(NamedTuple):
    """What a results file says about an evaluation, besides its numbers.

    Attributes:
      method: name of the config, e.g. 'strm'.
      selected_on: how the checkpoint was chosen, e.g. 'val accuracy at step 1200'.
      changed: {'episode.shot': (1, 2)}, what is not as in the run whose results are results.json:
        (in the run, here).
    """

    method: str = ''
    selected_on: str = 'last step'
    changed: dict[str, tuple] = {}


def evaluate_episodes(
    model: TrainedModel, dataset: Videos, episodes: Episodes, cache: bool | None = None
) -> Outcome:
    """Runs a list of episodes.

    Args:
      episodes: E of them, whose positions index `dataset`.
      cache: embed each video that occurs once, then match in chunks of eval.episodes_per_chunk.
        False, or where the embeddings have no room: load and embed all clips of every episode
        again, about eval.videos_per_batch clips at a time. None: config.eval.cache.

    Raises:
      ValueError: logits that are not finite, with the first such episode.
      MemoryError: one line with the settings that need less of a device's memory.
    """
    cache = model.config.eval.cache if cache is None else cache
    model = model._replace(variables=meshes.replicate(model.mesh, model.variables))
    with named_out_of_memory(model.config, 'evaluation'):
        found = _run_cached(model, dataset, episodes) if cache else None
        logits, seconds = found or _run_uncached(model, dataset, episodes)
    finite = np.isfinite(logits).all((1, 2))
    if not finite.all():
        raise ValueError(
            f'the logits of {np.sum(~finite)} of {len(finite)} episodes are not finite, first '
            f'in episode {np.argmin(finite)}: the parameters have diverged (train in another '
            f'--workdir with a lower config.train.learning_rate), or a setting of config.model '
            f'does not suit them'
        )
    answers = logits.argmax(-1)
    labels = np.asarray(episodes.labels)
    present = np.unique(dataset.labels)
    confusion_row = np.searchsorted(present, np.asarray(episodes.classes))  # of each class
    truth, answered = (np.take_along_axis(confusion_row, which, 1) for which in (labels, answers))
    return Outcome(
        logits=logits,
        correct=(answers == labels).sum(1, dtype=np.int32),
        classes=[dataset.class_names[label] for label in present],
        confusion=results.confusion_matrix(truth, answered, len(present)),
        episodes_hash=episode_lists.episodes_hash(dataset, episodes),
        seconds=seconds,
    )


def evaluate(
    model: TrainedModel, dataset: Videos, num_episodes: int, description: Description | None = None
) -> dict:
    """Evaluates on the split that `dataset` holds and returns the content of results.json
    (`summarise`).

    The episodes are drawn from (config.eval.seed, split). For config.eval.split they are those of
    config.eval.episodes_file where it is set, and `num_episodes` does not matter.

    Raises:
      FileNotFoundError, ValueError: too few classes or clips, an episode list of another shape,
        logits that are not finite.
    """
    started = time.perf_counter()
    dataset = loader.usable(dataset, model.config)
    episodes = episodes_of(dataset, model.config, num_episodes)
    outcome = evaluate_episodes(model, dataset, episodes)
    seconds = {**outcome.seconds, 'total': time.perf_counter() - started}
    return summarise(
        outcome._replace(seconds=seconds), dataset, model, description or Description()
    )


def summarise(
    outcome: Outcome, dataset: Videos, model: TrainedModel, description: Description
) -> dict:
    """The content of results.json.

    Args:
      outcome: of the episodes drawn with config.eval.seed, or of a list of episodes.
      dataset: the split that they are drawn from.
      model: its config is kept whole, its parameters are hashed.

    Returns:
      dict with these keys:
        method, selected_on: from `description`.
        dataset, split, way, shot, queries (of an episode, all classes together), seed,
        num_episodes, config: the setting.
        accuracy, ci95, chance: fractions, see `results.accuracy_with_interval`.
        per_class: {name: fraction of its queries answered right, None when never asked}.
        classes, confusion: as in `Outcome`.
        correct: per episode, so that runs can be compared episode by episode.
        episodes_hash, params_hash: SHA-256 of the episode list and of the parameters.
        videos_present, content, records: which videos the split holds
          (fsar_jax.data.dataset.videos_present; missing videos are why published numbers drift),
          the hash of all that it holds (content_hash), and how its records were made (short side,
          stored frames, JPEG quality, …).
        extractor: of a run on features alone: what made them, see fsar_jax/data/features.py.
        versions: of python, jax, …; 'made_with' are those that made the pixels of the dataset.
        computed_on: the device, and how it multiplies float32 numbers (`results.computed_on`).
        seconds: the only values that differ from run to run.
    """
    correct, confusion = np.asarray(outcome.correct), np.asarray(outcome.confusion)
    queries = int(confusion.sum()) // len(correct)
    accuracy, ci95 = results.accuracy_with_interval(correct, queries)
    asked, right = confusion.sum(1), confusion.diagonal()
    config = model.config
    return {
        'method': description.method,
        'dataset': config.data.dataset,
        'split': dataset.split,
        'way': config.episode.way,
        'shot': config.episode.shot,
        'queries': queries,
        'seed': config.eval.seed,
        'num_episodes': len(correct),
        'accuracy': accuracy,
        'ci95': ci95,
        'chance': 1 / config.episode.way,
        'selected_on': description.selected_on,
        'videos_present': videos_present(dataset),
        'per_class': {
            name: int(r) / int(n) if n else None
            for name, r, n in zip(outcome.classes, right, asked, strict=True)
        },
        'classes': list(outcome.classes),
        'confusion': confusion.tolist(),
        'episodes_hash': outcome.episodes_hash,
        'params_hash': params_hash(model.variables['params']),
        'content': content_hash(dataset),
        'records': dataset.settings,
        **({'extractor': dataset.extractor} if dataset.extractor else {}),
        'config': json.loads(config.to_json()),
        'versions': results.versions() | {'made_with': dict(dataset.made_with)},
        'computed_on': results.computed_on(),
        'correct': correct.tolist(),
        'seconds': {name: round(value, 3) for name, value in outcome.seconds.items()},
    }


def episodes_of(dataset: Videos, config: ml_collections.ConfigDict, num_episodes: int) -> Episodes:
    """The evaluation episodes of the split that `dataset` holds: drawn from config.eval.seed, or
    for config.eval.split those in config.eval.episodes_file where it is set.

    Raises:
      FileNotFoundError, ValueError: the file is absent, or not a list of this dataset and these
        way, shot and queries.
    """
    way, shot, asked = config.episode.way, config.episode.shot, config.episode.query_classes
    path = config.eval.episodes_file
    if not path or dataset.split != config.eval.split:
        return episode_lists.draw_episodes(
            dataset,
            way,
            shot,
            config.eval.query,
            config.eval.seed,
            num_episodes,
            query_classes=asked,
        )
    episodes = episode_lists.read_episodes(path, dataset)
    found = (*episodes.support.shape[1:], episodes.query.shape[1])
    wanted = (way, shot, (asked or way) * config.eval.query)
    if found != wanted:
        raise ValueError(
            f'{path} holds {found[0]}-way {found[1]}-shot episodes of {found[2]} queries, the '
            f'config asks for {wanted[0]}-way {wanted[1]}-shot with {wanted[2]}: set '
            f'config.episode and config.eval.query to match'
        )
    return episodes


def _run_cached(model, dataset, episodes):
    """(logits, seconds); None where the embeddings have no room."""
    learner, variables, config, mesh = model
    positions = np.concatenate([episodes.support.ravel(), episodes.query.ravel()])
    used, embedding = np.unique(positions, return_inverse=True)  # row of each clip's embedding
    kept = storage(model, batch_of_clips(dataset, model), len(used))
    if kept is None:
        return None
    started = time.perf_counter()
    store = embed_into_storage(model, dataset, used, kept)
    embedded = time.perf_counter()
    if kept.parts > 1:
        embedding = row_of_each(len(used), batch_size(model), mesh.size)[embedding]
    support, query = np.split(embedding.astype(np.int32), [episodes.support.size])
    support, query = support.reshape(episodes.support.shape), query.reshape(episodes.query.shape)
    count, clips = len(support), support[0].size + query[0].size
    if learner.encodes_in_match and kept.method != 'embed_frames':  # as many clips as in embedding
        chunk, doing = max(1, config.eval.videos_per_batch // clips), 'encoding and matching'
    else:
        chunk, doing = episodes_at_once(model, kept, clips, count), 'matching'
    if kept.method == 'embed_frames':
        learner = learner.on_embedded_frames()
    chunk = meshes.round_up(min(chunk, count), mesh)
    starts = range(0, count, chunk)
    chunks = [
        tuple(_pad(x[start : start + chunk], chunk) for x in (support, query)) for start in starts
    ]
    rows, devices = meshes.local_rows(mesh, chunk), meshes.local_rows(mesh, mesh.size)
    if kept.parts > 1:
        part = len(jax.tree.leaves(store)[0]) // kept.parts
        chunks = exchanges(chunks, part, mesh.size)
    logits, used_config = [], config.copy_and_resolve_references()
    used_config.eval.episodes_per_chunk = chunk  # of which half needs less
    with (
        named_out_of_memory(used_config, 'evaluation'),
        Progress(count, doing, 'episode') as progress,
    ):
        for start, of_chunk in zip(starts, chunks):
            *send, support, query = of_chunk
            local = [x[devices] for x in send], support[rows], query[rows]
            answer = _match_chunk(learner, variables, store, *meshes.shard(mesh, local, 0), mesh)
            logits.append(np.asarray(answer)[: count - start])
            progress.advance(len(logits[-1]))
    return np.concatenate(logits), {
        'embed': embedded - started,
        'match': time.perf_counter() - embedded,
    }


def _run_uncached(model, dataset, episodes):
    learner, variables, config, mesh = model
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
    batches = loader.episode_batches(dataset, config, padded, len(rows), frames_read(config))
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


# Compiled as those of fsar_jax/evaluation/embeddings.py: static learner and mesh, constant shapes.


@functools.partial(jax.jit, static_argnames=('learner', 'mesh'))
def _match_chunk(learner, variables, store, send, support, query, mesh):
    """Logits [E, Q, way]. `send` is [] where each device has all embeddings, else that of an
    `Exchange` alone."""

    def match(support, query):
        return learner.apply(variables, support, query, train=False, method='match').logits

    def find_and_match(*rows):
        return match(*(jax.tree.map(lambda x: x[of], store) for of in rows))

    if send:
        logits = jax.vmap(match)(*delivered(store, send[0], (support, query), mesh))
    else:
        logits = jax.vmap(find_and_match)(support, query)
    return jax.lax.with_sharding_constraint(logits, meshes.replicated(mesh))


@functools.partial(jax.jit, static_argnames=('learner', 'mesh'))
def _predict_chunk(learner, variables, support, query, mesh):
    def episode(support, query):
        return learner.apply(variables, support, query, train=False).logits

    return jax.lax.with_sharding_constraint(
        jax.vmap(episode)(support, query), meshes.replicated(mesh)
    )


def _pad(x, count):
    """Repeats the last row until there are `count`. The results of the repeats are dropped."""
    return np.pad(x, [(0, count - len(x))] + [(0, 0)] * (x.ndim - 1), mode='edge')
