"""What a recogniser says about a clip, and about a long recording."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fsar_jax.ingest.clip_reader import decoded

NONE_OF_THESE = 'none of these'


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What a recogniser says about one clip.

    Of a clip that cannot be read, only `clip` and `error` are set.

    Attributes:
      clip: its path as it was given, or 'clip 3 (array of 40 frames)'.
      label: the class it shows; None where it is none of the classes (`unknown`), and of a clip
        that cannot be read.
      best: the class with the highest score, also where `label` is None for `unknown_below`.
      unknown: whether `probability` is below `unknown_below`: none of the classes.
      probability: of `best`, 0 … 1.
      runner_up: the class with the second score.
      margin: by how much the probability of `best` exceeds that of `runner_up`.
      scores: {class: score}, in the order of the classes. Higher is better; the scale depends on
        the model.
      probabilities: {class: probability}, of the calibrated scores; they add up to 1.
      example: (class, name) of the example of `best` that is most like the clip.
      pairs: [(frame of the clip, frame of the example, cosine similarity)] that decided, the most
        similar first.
      thumbnails, example_thumbnails: JPEG bytes of the L frames of the clip that the model saw,
        whole and small, and of those of the example; `frames` and `example_frames` decode them.
      error: why the clip cannot be read, one line; None where it can.
      note: what else to know, one line: that the clip is itself an example; '' for nothing.
    """

    clip: str
    label: str | None = None
    best: str = ''
    unknown: bool = False
    probability: float = 0.0
    runner_up: str = ''
    margin: float = 0.0
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    probabilities: dict[str, float] = dataclasses.field(default_factory=dict)
    example: tuple[str, str] = ('', '')
    pairs: list[tuple[int, int, float]] = dataclasses.field(default_factory=list)
    thumbnails: list[bytes] = dataclasses.field(default_factory=list)
    example_thumbnails: list[bytes] = dataclasses.field(default_factory=list)
    error: str | None = None
    note: str = ''

    @property
    def frames(self) -> np.ndarray:
        """The frames of the clip that the model saw, uint8 [L, h, w, 3]."""
        return decoded(self.thumbnails)

    @property
    def example_frames(self) -> np.ndarray:
        """Those of the example, uint8 [L, h, w, 3]."""
        return decoded(self.example_thumbnails)

    @property
    def text(self) -> str:
        """The answer in words: the class, 'none of these', or the reason why there is none."""
        if self.error is not None:
            return f'cannot be read: {self.error}'
        return NONE_OF_THESE if self.label is None else self.label

    def to_json(self) -> dict[str, Any]:
        """All but the pixels, for json.dumps."""
        names = [field.name for field in dataclasses.fields(self) if 'thumbnails' not in field.name]
        content = {name: getattr(self, name) for name in names}
        if self.error is not None:
            return {'clip': self.clip, 'error': self.error}
        pairs = [dict(zip(('frame', 'example_frame', 'similarity'), p)) for p in self.pairs]
        example = dict(zip(('class', 'name'), self.example))
        return content | {'text': self.text, 'example': example, 'pairs': pairs}


@dataclasses.dataclass(frozen=True)
class Window:
    """What one window of a recording shows.

    Attributes:
      start, end: in seconds from the first frame.
      label, best, unknown, probability, probabilities: as of `Answer`.
    """

    start: float
    end: float
    label: str | None
    best: str
    unknown: bool
    probability: float
    probabilities: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Segment:
    """Neighbouring windows with the same answer, as one stretch of a recording.

    Attributes:
      start, end: in seconds. A segment begins where the one before ends.
      label: the class; None for none of them.
      probability: mean of its windows.
    """

    start: float
    end: float
    label: str | None
    probability: float


@dataclasses.dataclass(frozen=True)
class Timeline:
    """What a recording shows when.

    Attributes:
      clip: its path.
      duration: in seconds.
      windows: in the order of their starts; [] where it cannot be read.
      segments: neighbouring windows with the same answer, merged.
      error: why it cannot be read, one line; None where it can.
    """

    clip: str
    duration: float = 0.0
    windows: list[Window] = dataclasses.field(default_factory=list)
    segments: list[Segment] = dataclasses.field(default_factory=list)
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For json.dumps."""
        if self.error is not None:
            return {'clip': self.clip, 'error': self.error}
        return {
            'clip': self.clip,
            'duration': self.duration,
            'windows': [dataclasses.asdict(window) for window in self.windows],
            'segments': [dataclasses.asdict(segment) for segment in self.segments],
        }
