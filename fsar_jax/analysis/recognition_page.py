"""The page of `recognize`: what each clip shows, and why.

For each clip it draws its frames above those of the best example, joined by lines where two frames
decided, and a bar for each class. `fsar_jax/serve.py` shows the same parts in a browser.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from fsar_jax.analysis.html_page import bars, document, jpeg_uri, table, text
from fsar_jax.files import write_whole

SIDE = 160  # pixels of a frame's longer side at most
# Pictures of more clips than this are drawn smaller, so that the page does not grow beyond about
# 15 MB; beyond MOST_PICTURES clips, the others have bars only.
FULL_SIZE, MOST_PICTURES = 100, 1000
MOST_LINES = 24  # of one clip
UNIT, GAP, NUMBER, BETWEEN = 100, 6, 18, 64  # a drawing's frame, space, line of numbers, lines

STYLE = """
.frames { min-width: 34rem; }
.frames text { fill: var(--soft); font-size: 13px; text-anchor: middle; }
.frames line { stroke: var(--accent); stroke-linecap: round; }
.strip { height: 2.2rem; }
.ends { display: flex; justify-content: space-between; margin: 0 0 .5rem; }
.answer { font-size: 1.1rem; }
"""


class Answer(Protocol):
    """What the page shows of a fsar_jax.recognition.answers.Answer, which says what each is."""

    @property
    def clip(self) -> str: ...
    @property
    def label(self) -> str | None: ...
    @property
    def best(self) -> str: ...
    @property
    def probability(self) -> float: ...
    @property
    def runner_up(self) -> str: ...
    @property
    def margin(self) -> float: ...
    @property
    def scores(self) -> Mapping[str, float]: ...
    @property
    def probabilities(self) -> Mapping[str, float]: ...
    @property
    def example(self) -> tuple[str, str]: ...
    @property
    def pairs(self) -> Sequence[tuple[int, int, float]]: ...
    @property
    def frames(self) -> np.ndarray: ...
    @property
    def example_frames(self) -> np.ndarray: ...
    @property
    def error(self) -> str | None: ...
    @property
    def note(self) -> str: ...


class Segment(Protocol):
    """What the page shows of a fsar_jax.recognition.answers.Segment."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...
    @property
    def label(self) -> str | None: ...
    @property
    def probability(self) -> float: ...


HOW_TO_READ = """<details><summary>How to read this page</summary>
<ul>
<li><b>Score</b>: how alike the clip and the examples of a class are. Only its order counts: the
class with the highest score is the answer.</li>
<li><b>Probability</b>: the scores of all classes turned into shares that add up to 100%. It only
compares your classes with each other. A clip that shows something else still gets 100% in all,
unless you let the program answer "none of these".</li>
<li><b>Margin</b>: the probability of the best class minus that of the runner-up. Where it is small,
look for yourself.</li>
<li><b>Frames</b>: above, those that were read from the clip; below, those of the example that is
most like it. Lines join the frames that decided: the thicker, the more alike.</li>
</ul></details>"""


def write_page(
    path: str | os.PathLike,
    answers: Sequence[Answer],
    expected: str,
    title: str = 'Which class each clip shows',
    timelines: Sequence[tuple[str, float, Sequence[Segment]]] = (),
) -> None:
    """Writes the page, whole or not at all: one file that needs no network.

    Args:
      answers: of each clip, in order.
      expected: one sentence, how often answers on these classes are right.
      timelines: (clip, its seconds, its segments) of long clips.

    Raises:
      OSError: with the path.
    """
    write_whole(path, recognition_page(answers, expected, title, timelines))


def recognition_page(
    answers: Sequence[Answer],
    expected: str,
    title: str = 'Which class each clip shows',
    timelines: Sequence[tuple[str, float, Sequence[Segment]]] = (),
) -> str:
    """The page that `write_page` writes, as HTML."""
    read = sum(answer.error is None for answer in answers)
    count = len(answers) + len(timelines)
    counted = f'{count:,} clip{"s" * (count != 1)}'
    clips = [answer.clip for answer in answers] + [clip for clip, *_ in timelines]
    folder = common_folder(clips)
    names = [clip.removeprefix(folder) for clip in clips]
    if folder:
        counted += f' in {text(folder, 1000)}'
    if read < len(answers):
        counted += f', {len(answers) - read:,} of which could not be read'
    side = round(SIDE * min(1, FULL_SIZE / max(1, min(read, MOST_PICTURES))) ** 0.5)
    parts = [f'<h1>{text(title)}</h1>', f'<p>{counted}. {text(expected, 500)}</p>', HOW_TO_READ]
    if read > MOST_PICTURES:
        parts.append(
            f'<p class="soft">Only the first {MOST_PICTURES:,} clips have pictures here.</p>'
        )
    if answers:
        parts.append(summary(answers, names))
    for name, (_, seconds, segments) in zip(names[len(answers) :], timelines):
        strip = timeline_parts(seconds, segments)
        parts.append(f'<section class="timeline"><h2>{text(name)}</h2>\n{strip}</section>')
    drawn = 0
    for number, answer in enumerate(answers):
        if answer.error is None:
            drawn += 1
            body = answer_parts(answer, side if drawn <= MOST_PICTURES else 0)
            parts.append(
                f'<section id="clip{number}"><h2>{text(names[number])}</h2>\n{body}</section>'
            )
    return document(title, parts, STYLE)


def common_folder(paths: Sequence[str]) -> str:
    """The folder in which all of them are, with '/' at its end; '' where there is none."""
    folder = os.path.commonprefix([path.rpartition('/')[0] + '/' for path in paths])
    return folder[: folder.rfind('/') + 1] if len(folder) > 1 else ''


def summary(answers: Sequence[Answer], names: Sequence[str]) -> str:
    """The table: a row for each clip, with the reason where it could not be read.

    names: by which the page calls them.
    """
    rows = []
    for number, (answer, name) in enumerate(zip(answers, names)):
        if answer.error is not None:
            reason = f'<span class="bad">could not be read: {text(answer.error, 500)}</span>'
            rows.append([text(name), reason])
            continue
        rows.append(
            [
                f'<a href="#clip{number}">{text(name)}</a>',
                named(answer.label),
                percent(answer.probability),
                text(answer.runner_up, 80),
                percent(answer.margin),
            ]
        )
    head = ['Clip', 'Best class', 'Probability', 'Runner-up', 'Margin']
    return '<section><h2>All clips</h2>\n' + table(head, rows, numbers=(2, 4)) + '</section>'


def answer_parts(answer: Answer, side: int = SIDE) -> str:
    """The answer, the frames and the bars of one clip, as HTML.

    side: pixels of a frame's longer side at most; 0 leaves the frames out.
    """
    numbers = {
        name: f'{percent(answer.probabilities[name])} <span class="soft">score {score:.3f}</span>'
        for name, score in answer.scores.items()
    }
    best = '' if answer.label == answer.best else f'; the nearest is {text(answer.best, 80)}'
    parts = [
        f'<p class="answer"><b>{named(answer.label)}</b>{best}, '
        f'<span class="soft">{percent(answer.probability)}</span></p>'
    ]
    if answer.note:
        parts.append(f'<p class="soft">{text(answer.note, 500)}</p>')
    if side and len(answer.frames) and len(answer.example_frames):
        parts.append(matched_frames(answer, side))
    parts.append(bars(answer.probabilities, numbers))
    return '\n'.join(parts)


def matched_frames(answer: Answer, side: int = SIDE) -> str:
    """The clip's frames above those of the best example, joined by a line where two decided: the
    strongest MOST_LINES pairs, thicker the more alike the two are."""
    rows = answer.frames, answer.example_frames
    heights = [round(UNIT * frames.shape[1] / frames.shape[2]) for frames in rows]
    tops = [NUMBER, NUMBER + heights[0] + BETWEEN]
    left = lambda frame: frame * (UNIT + GAP)
    drawing = []
    for frames, height, top, numbers in zip(rows, heights, tops, (12, tops[1] + heights[1] + 14)):
        for i, frame in enumerate(frames):
            drawing.append(
                f'<image href="{jpeg_uri(frame, side)}" x="{left(i)}" y="{top}" width="{UNIT}" '
                f'height="{height}"/><text x="{left(i) + UNIT // 2}" y="{numbers}">{i + 1}</text>'
            )
    pairs = sorted(answer.pairs, key=lambda pair: -pair[2])[:MOST_LINES]
    strongest, weakest = (pairs[0][2], pairs[-1][2]) if pairs else (0, 0)
    for of_clip, of_example, similarity in pairs:
        share = (similarity - weakest) / (strongest - weakest) if strongest > weakest else 1
        drawing.append(
            f'<line x1="{left(of_clip) + UNIT // 2}" y1="{tops[0] + heights[0] + 3}" '
            f'x2="{left(of_example) + UNIT // 2}" y2="{tops[1] - 3}" '
            f'stroke-width="{1.5 + 4.5 * share:.1f}" stroke-opacity="{0.35 + 0.65 * share:.2f}">'
            f'<title>frames {of_clip + 1} and {of_example + 1}: {similarity:.3f}</title></line>'
        )
    class_name, example = answer.example
    example = example.rpartition('/')[2]
    size = left(max(map(len, rows))) - GAP, tops[1] + heights[1] + NUMBER
    return (
        f'<figure><figcaption>the clip</figcaption>'
        f'<div class="wide"><svg class="frames" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="frames of the clip and of the example">{"".join(drawing)}</svg></div>'
        f'<figcaption>the most similar example: {text(example)} of <b>{text(class_name, 80)}</b>'
        f'</figcaption></figure>'
    )


def timeline_parts(seconds: float, segments: Sequence[Segment]) -> str:
    """A strip of a long clip, coloured by what it shows when, and the times as a table.

    Args:
      seconds: how long it is.
      segments: in order of time.
    """
    names = list(dict.fromkeys(segment.label for segment in segments if segment.label is not None))
    # Neighbours in the list get hues far apart.
    colour: dict[str | None, str] = {
        name: f'hsl({i * 137.5 % 360:.0f} 55% 50%)' for i, name in enumerate(names)
    }
    scale = 1000 / max(seconds, 1e-9)
    drawing, rows = [], []
    for segment in segments:
        span = f'{clock(segment.start)} – {clock(segment.end)}'
        title = f'{span}: {named(segment.label)}, {percent(segment.probability)}'
        drawing.append(
            f'<rect x="{segment.start * scale:.1f}" y="0" height="36" '
            f'width="{max(1.0, (segment.end - segment.start) * scale):.1f}" '
            f'fill="{colour.get(segment.label, "var(--line)")}"><title>{title}</title></rect>'
        )
        dot = f'<span style="color:{colour.get(segment.label, "var(--line)")}">&#9632;</span>'
        rows.append(
            [
                f'<span class="number">{span}</span>',
                f'{dot} {named(segment.label)}',
                percent(segment.probability),
            ]
        )
    return (
        f'<svg class="strip" viewBox="0 0 1000 36" preserveAspectRatio="none" role="img" '
        f'aria-label="what it shows when"><rect width="1000" height="36" fill="var(--line)"/>'
        f'{"".join(drawing)}</svg><p class="ends soft"><span>0:00</span>'
        f'<span>{clock(seconds)}</span></p>'
        + table(['Time', 'Class', 'Probability'], rows, numbers=(2,))
    )


def named(label: str | None) -> str:
    """The class as HTML; None is none of them."""
    return 'none of these' if label is None else text(label, 80)


def percent(share: float) -> str:
    """'93%' as HTML; 100% and 0% only where the share is 1 or 0."""
    if 0 < share < 0.001:
        return '&lt;0.1%'
    if 0.999 < share < 1:
        return '&gt;99.9%'
    return f'{100 * share:.{int(share < 0.01 or share > 0.99) * (share not in (0, 1))}f}%'


def clock(seconds: float) -> str:
    """'1:05', '1:00:05'; tenths of a second where they are not 0: '0:02.5'."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f'{hours}:{minutes:02d}' if hours else f'{minutes}'
    return f'{start}:{rest // 10:02d}' + (f'.{rest % 10}' if rest % 10 else '')
