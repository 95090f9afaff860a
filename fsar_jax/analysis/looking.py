"""Episodes as a trained model sees them: frames, logits, and what its stages show on request."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos
from fsar_jax.data.episodes import Episodes
from fsar_jax.evaluation.evaluate import TrainedModel
from fsar_jax.stages import frames_read


class Subject(NamedTuple):
    """A model to look into.

    Attributes:
      name: for a reader.
      model: the trained model.
      dataset: the split of its test episodes.
      episodes: all of them; positions index `dataset`.
    """

    name: str
    model: TrainedModel
    dataset: Videos
    episodes: Episodes


class Seen(NamedTuple):
    """One episode as a model sees it.

    Attributes:
      number: which of the test episodes.
      support, query: uint8 [way, shot, M, H, W, 3] and [Q, M, H, W, 3], the frames that are read.
      labels: int [Q].
      names: of the classes, [way].
      logits: float [Q, way].
      shown: {name: array}, the auxiliary of `FewShotLearner.explain`.
      position: which query is drawn: the first that is answered wrong, or the first.
    """

    number: int
    support: np.ndarray
    query: np.ndarray
    labels: np.ndarray
    names: list[str]
    logits: np.ndarray
    shown: dict[str, np.ndarray]
    position: int

    @property
    def label(self) -> int:
        """The true class of the drawn query."""
        return int(self.labels[self.position])

    @property
    def answer(self) -> int:
        """The class that the model gives it."""
        return int(self.logits[self.position].argmax())

    def of_query(self, name: str) -> np.ndarray:
        """An output of the drawn query: 'maps', 'indices', …"""
        return self.shown[f'query_{name}'][self.position]


def look(subject: Subject, numbers: Sequence[int]) -> Iterator[Seen]:
    """Runs the episodes of these numbers, one after the other.

    Raises:
      ValueError: a clip that is too short or cannot be decoded; one line that names it.
    """
    episodes = part(subject.episodes, numbers)
    for number, seen in zip(numbers, look_through(subject, episodes)):
        yield seen._replace(number=int(number))


def look_through(subject: Subject, episodes: Episodes) -> Iterator[Seen]:
    """As `look`, for episodes that need not be the subject's."""
    learner, variables, config, _ = subject.model
    explain = _compiled(learner)
    batches = loader.episode_batches(subject.dataset, config, episodes, 1, frames_read(config))
    for index, batch in enumerate(batches):
        support, query = batch['support'][0], batch['query'][0]
        prediction = jax.tree.map(np.asarray, explain(variables, support, query))
        labels = episodes.labels[index]
        wrong = np.flatnonzero(prediction.logits.argmax(-1) != labels)
        yield Seen(
            number=index,
            support=support,
            query=query,
            labels=labels,
            names=[subject.dataset.class_names[label] for label in episodes.classes[index]],
            logits=prediction.logits,
            shown=prediction.auxiliary,
            position=int(wrong[0]) if len(wrong) else 0,
        )


_programs: dict = {}


def _compiled(learner):
    if learner not in _programs:
        _programs[learner] = jax.jit(lambda *args: learner.apply(*args, method='explain'))
    return _programs[learner]


def part(episodes: Episodes, numbers: Sequence[int]) -> Episodes:
    """Some of the episodes, in this order."""
    fields = (field.name for field in dataclasses.fields(episodes))
    return dataclasses.replace(
        episodes, **{name: getattr(episodes, name)[np.asarray(numbers, int)] for name in fields}
    )


def hardest(correct: Sequence[int], count: int) -> list[int]:
    """The episodes with the fewest right answers, fewest first; of equals the first."""
    return np.argsort(np.asarray(correct), kind='stable')[:count].tolist()
