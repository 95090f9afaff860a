"""From scores to probabilities, and how often answers on these classes will be right: both learnt
from the examples themselves, each left out in turn."""

from __future__ import annotations

import dataclasses

import numpy as np

TEMPERATURES = np.geomspace(1e-3, 1e3, 601)  # of which the best is taken
Z = 1.96  # of a 95% interval


@dataclasses.dataclass(frozen=True)
class Expected:
    """How often answers on these classes will be right, by the examples.

    Attributes:
      accuracy: share of the left-out examples that the others recognised; None where no class has
        two examples.
      low, high: its 95% interval (Wilson 1927), from 0 to 1; None where accuracy is None.
      count: how many examples were left out, one after the other.
      way: number of classes.
      tested: in how many of them an example was left out; the others have one example.
    """

    accuracy: float | None
    low: float | None
    high: float | None
    count: int
    way: int
    tested: int

    def __str__(self) -> str:
        if self.accuracy is None or self.low is None or self.high is None:
            return (
                'Expected accuracy on these classes: cannot be said, because every class has one '
                'example; give two or more.'
            )
        return (
            f'Expected accuracy on these classes: {100 * self.accuracy:.0f}% (95% interval '
            f'{100 * self.low:.0f}% to {100 * self.high:.0f}%; chance {100 / self.way:.0f}%; each '
            f'of {self.count} examples recognised by the others).{self._untested()}'
        )

    def _untested(self):
        """On which classes the number rests, where these are not all."""
        left = self.way - self.tested
        if not left:
            return ''
        others = 'other has' if left == 1 else f'other {left} have'
        return (
            f' It rests on {self.tested} of the {self.way} classes: the {others} one example, '
            'which cannot be left out; give two or more.'
        )


def others(labels: np.ndarray, left_out: int, turn: int) -> np.ndarray:
    """Which examples are to recognise the one that is left out: int rows.

    Each class that is not smaller than its class leaves one out too, by turns. The mean of more
    examples has less noise and so is more like any clip: the class that lacks one would lose more
    often than it does with all of them.

    Args:
      labels: int [N], the class of each example.
      left_out: a row.
      turn: which of the other classes' examples are left out; any whole number.
    """
    counts = np.bincount(labels)
    out = [left_out]
    for label in np.flatnonzero(counts >= counts[labels[left_out]]):
        if label != labels[left_out]:
            out.append(np.flatnonzero(labels == label)[turn % counts[label]])
    return np.delete(np.arange(len(labels)), out)


def expected_accuracy(scores: np.ndarray, labels: np.ndarray, way: int) -> Expected:
    """Of left-out examples: scores float [N, way], their classes int [N]."""
    count = len(labels)
    if not count:
        return Expected(None, None, None, 0, way, 0)
    accuracy = float((scores.argmax(-1) == labels).mean())
    spread = accuracy * (1 - accuracy) / count + Z**2 / (4 * count**2)
    half_width = Z * np.sqrt(spread) / (1 + Z**2 / count)
    # The middle lies nearer to 1/2 than the accuracy: 9 of 9 right is 70% to 100%.
    middle = (accuracy + Z**2 / (2 * count)) / (1 + Z**2 / count)
    low, high = np.clip([middle - half_width, middle + half_width], 0, 1).tolist()
    return Expected(accuracy, low, high, count, way, len(np.unique(labels)))


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T for which softmax(scores / T) fits the classes of N left-out examples best
    (Guo et al. 2017, on the negative log likelihood).

    A class that was right N times is only given the share (N + 1) / (N + way), the rule of
    succession, as Platt (1999) does: a few examples that are all recognised do not prove that
    answers are certain.

    Args:
      scores: float [N, way], N ≥ 1; labels: int [N].
    """
    count, way = scores.shape
    target = np.full((count, way), 1 / (count + way))
    target[np.arange(count), labels] = (count + 1) / (count + way)
    losses = [-(target * log_softmax(scores / t)).sum(-1).mean() for t in TEMPERATURES]
    return float(TEMPERATURES[np.argmin(losses)])


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis, float64."""
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def probabilities(scores: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(scores / T), float64 [N, way]."""
    return np.exp(log_softmax(np.asarray(scores, np.float64) / temperature))
