"""How misaligned the actions of a dataset are to a classifier that knows its classes (TA2N, Table 1
and Fig. 2). `python -m fsar_jax.pretrain --evolution` trains one and prints this."""

import contextlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from fsar_jax.analysis.misalignment import action_start, aem_of_all_pairs
from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos
from fsar_jax.progress import Progress


def measure(
    answer: Callable[[np.ndarray, np.ndarray], tuple],
    dataset: Videos,
    config: ml_collections.ConfigDict,
    batch_size: int,
) -> dict[str, Any]:
    """How misaligned the actions of all clips of a dataset are to a classifier of its classes
    (TA2N, supplement; row A20 of docs/paper_vs_code.md).

    Args:
      answer: (clips uint8 [B, L, S, S, 3], labels int [B]) → the probability of the true class at
        each frame, [B, L], and whether the mean of the frames' logits tells it, bool [B].
      batch_size: B; the last batch may be smaller.

    Returns:
      {'clips': N; 'accuracy': the share that it tells; 'aem': `aem_of_all_pairs` of them;
      'action_start': how many clips start at frame 0 … L − 1, and how many never do;
      'probability': the mean at each frame}. Where the accuracy is low, the rest says nothing.
    """
    labels = np.searchsorted(np.unique(dataset.labels), dataset.labels)
    parts = np.split(labels, range(batch_size, len(labels), batch_size))
    batches = loader.video_batches(dataset, config, np.arange(len(dataset)), batch_size)
    answers = []
    with contextlib.closing(batches), Progress(len(dataset), 'measuring', 'clip') as progress:
        for clips, part in zip(batches, parts, strict=True):
            answers.append([np.asarray(x) for x in answer(clips, part)])
            progress.advance(len(clips))
    probabilities, right = map(np.concatenate, zip(*answers))
    starts = np.bincount(action_start(probabilities), minlength=probabilities.shape[1] + 1)
    return {
        'clips': len(dataset),
        'accuracy': float(right.mean()),
        'aem': aem_of_all_pairs(probabilities),
        'action_start': starts.tolist(),
        'probability': [round(float(p), 4) for p in probabilities.mean(0)],
    }


def as_text(evolution: dict[str, Any]) -> str:
    """What `measure` found, in four lines."""
    *starts, never = (count / evolution['clips'] for count in evolution['action_start'])
    row = lambda numbers: '  '.join(f'{x:.2f}' for x in numbers)
    return '\n'.join(
        (
            f'told right, with running statistics: {evolution["accuracy"]:.1%} of the '
            f'{evolution["clips"]:,} training clips (if few, the next lines say nothing)',
            f'AEM of all pairs of clips: {evolution["aem"]:.3f}',
            f'clips whose action starts at each frame: {row(starts)}, never {never:.2f}',
            f'mean probability at each frame:          {row(evolution["probability"])}',
        )
    )
