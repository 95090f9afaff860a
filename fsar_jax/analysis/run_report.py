"""The report of a run: its pictures, what each shows, and one HTML page with all of them.

`fsar_jax/report.py` is the command. A picture that a run has nothing for is left out, and a line
says why.
"""

import base64
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fsar_jax.analysis import figures
from fsar_jax.analysis.html_page import document, table, text
from fsar_jax.evaluation.compare import PairedDifference, paired_difference
from fsar_jax.files import write_whole
from fsar_jax.messages import one_line, printable

PAGE = 'index.html'
BEGUN = '.begun'  # names of the pictures of a report whose page is not written yet, one a line
FILES = '.png, .pdf)</figcaption>'  # after the name of a picture, on the page
STYLE = 'img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }'
MOST_CLASSES = 150  # of a confusion matrix; beyond, its cells are smaller than a pixel's worth


class Picture(NamedTuple):
    """One picture of a report.

    Attributes:
      name: of its files, without suffix.
      title: a few words.
      caption: what it shows, how to read it, and which figures of the papers it is like.
      figure: matplotlib's.
    """

    name: str
    title: str
    caption: str
    figure: Figure


class Run(NamedTuple):
    """What is known of a run.

    Attributes:
      name: for a reader, such as 'strm'.
      results: content of results.json; None where the run was not evaluated.
      metrics: lines of metrics.jsonl; [] where it was not trained here.
      scheduled: {'learning rate': [num_steps], …}, the values that follow from the settings.
      selected: the step that is evaluated; None if unknown.
    """

    name: str
    results: dict | None
    metrics: Sequence[dict] = ()
    scheduled: Mapping[str, np.ndarray] = {}
    selected: int | None = None


def run_pictures(run: Run, against: Run | None = None) -> Iterator[Picture | str]:
    """The pictures of training and test, each as soon as it is drawn; in the place of one that is
    left out, a line that says so.

    Args:
      run: the run.
      against: another one; what is compared is `run` minus `against`.
    """
    panels = training_panels(run)
    if panels:
        yield Picture(
            'training_curves',
            'Training',
            'What each step logged, and its running mean. The dotted line is the checkpoint that '
            'is evaluated.',
            figures.training_curves(panels, run.selected),
        )
    else:
        yield 'training curves: the run has no metrics.jsonl with a finished step'

    if run.results is None:
        yield 'test accuracy, confusion matrix and classes: the run has no results.json'
        return
    results = run.results
    paired = None if against is None else pairing(run, against)
    tested = {run.name: results}
    if against is not None and against.results is not None and not isinstance(paired, str):
        tested[against.name] = against.results
    yield Picture(
        'accuracy',
        'Test accuracy',
        'With the 95% interval over episodes. It says how far other test episodes would move '
        'the number, not how far another training run would.',
        figures.accuracies(
            {name: (found['accuracy'], found['ci95']) for name, found in tested.items()},
            results.get('chance', 0.0),
        ),
    )
    classes, confusion = results.get('classes'), results.get('confusion')
    if not classes or not confusion:
        yield 'confusion matrix: results.json has none'
    elif len(classes) > MOST_CLASSES:
        yield f'confusion matrix: {len(classes)} classes do not fit a page'
    else:
        yield Picture(
            'confusion',
            'Confusion matrix',
            'Row: the true class; column: the answer. A query can only be taken for the other '
            "classes of its episode. Numbers are percent of the row's queries.",
            figures.confusion_matrix(confusion, classes),
        )
    known = asked(results)
    if known:
        left_out = len(results['per_class']) - len(known)
        yield Picture(
            'classes',
            'Accuracy of each class',
            'Best first.' + (f' {left_out} classes were never asked for.' if left_out else ''),
            figures.class_accuracies(known, results.get('chance', 0.0)),
        )
    else:
        yield 'accuracy of each class: results.json has none'
    if isinstance(paired, str):
        yield paired
    elif against is not None and paired is not None:
        yield from comparison(run, against, paired)


def pairing(run: Run, against: Run) -> PairedDifference | str:
    """The difference of two runs that were tested on the same episodes; else a line that says what
    is left out, and why."""
    if run.results is None or against.results is None:
        return f'comparison: {against.name} has no results.json'
    try:
        return paired_difference(against.results, run.results)
    except ValueError as error:
        return f'accuracy of {against.name}, and comparison with it: {one_line(error)}'


def comparison(run: Run, against: Run, paired: PairedDifference) -> Iterator[Picture | str]:
    """The pictures of `run` minus `against`, whose difference `paired` is."""
    assert run.results is not None and against.results is not None
    first, second = (np.array(r['correct'], float) for r in (against.results, run.results))
    queries = run.results['queries']
    verdict = 'excludes' if abs(paired.difference) > paired.ci95 else 'includes'
    yield Picture(
        'paired_difference',
        f'{run.name} minus {against.name}',
        f'Paired over {paired.num_episodes} episodes: {100 * paired.difference:+.2f} ± '
        f'{100 * paired.ci95:.2f} points. The 95% interval {verdict} 0.',
        figures.paired_differences(
            (second - first) / queries, paired.difference, paired.ci95, queries
        ),
    )
    of_first, of_second = asked(against.results), asked(run.results)
    both = [name for name in of_second if name in of_first]
    if both:
        yield Picture(
            'class_gains',
            'Gain of each class',
            f'Accuracy of {run.name} minus that of {against.name}, largest gain first. As in STRM, '
            'Fig. 9; TA2N, Fig. 9; VIM, Fig. 16.',
            figures.class_gains(
                {name: of_second[name] - of_first[name] for name in both}, (against.name, run.name)
            ),
        )
    else:
        yield 'gain of each class: the two results have no class in common'


def training_panels(run: Run) -> dict[str, dict[str, figures.Line]]:
    """{quantity: {line: (steps, values)}} for `figures.training_curves`; {} if nothing was
    logged."""
    if not run.metrics:
        return {}

    def logged(name: str) -> dict[str, figures.Line]:
        lines = [line for line in run.metrics if name in line]
        values = [np.nan if line[name] is None else line[name] for line in lines]
        return {name.replace('_', ' '): ([line['step'] for line in lines], values)} if lines else {}

    last = max(line['step'] for line in run.metrics)
    panels = {
        'loss': logged('loss'),
        'accuracy of training episodes': logged('accuracy'),
        'accuracy of val episodes': logged('val_accuracy'),
        'gradient norm': logged('gradient_norm'),
    }
    for name, values in run.scheduled.items():
        panels[name] = {name: (np.arange(1, last + 1), values[:last])}
    return {quantity: lines for quantity, lines in panels.items() if lines}


def asked(results: dict) -> dict[str, float]:
    """The accuracy of each class that was asked for."""
    per_class = results.get('per_class') or {}
    return {name: value for name, value in per_class.items() if value is not None}


def facts(run: Run) -> dict[str, str]:
    """What the page says above the pictures, {name: value}, plain text."""
    found = {'run': run.name}
    results = run.results
    if results is not None:
        found |= {
            'method': results['method'],
            'data': f'{results["dataset"]}, {results["split"]}',
            'accuracy': f'{100 * results["accuracy"]:.2f} ± {100 * results["ci95"]:.2f} % '
            f'(95% interval over {results["num_episodes"]} episodes)',
        }
        if 'way' in results:
            found['episodes'] = (
                f'{results["way"]}-way {results["shot"]}-shot, {results["queries"]} queries'
            )
        if 'selected_on' in results:
            found['checkpoint'] = f'chosen by {results["selected_on"]}'
    return found


def write_report(
    folder: pathlib.Path,
    title: str,
    about: Mapping[str, str],
    sections: Iterable[tuple[str, Iterable[Picture | str]]],
) -> tuple[pathlib.Path, list[str]]:
    """Writes every picture as PNG and PDF, then the page that holds all of them.

    Args:
      folder: is made if it does not exist; files of these names in it are replaced. Pictures of an
        earlier report there that this one does not have are removed, also where it was killed.
      title: of the page, plain text.
      about: {name: value} of a table at the top, plain text.
      sections: (heading, pictures or lines about those that are left out); drawn one after the
        other, so that one picture is in memory at a time.

    Returns:
      The path of the page, and the lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / PAGE
    earlier, drawn = pictures_of(folder), set()
    parts, notes = [f'<h1>{text(title)}</h1>', ''], []
    for heading, pictures in sections:
        shown = []
        for picture in pictures:
            if isinstance(picture, str):
                notes.append(picture)
                shown.append(f'<p class="soft">Left out: {text(picture, 1000)}</p>')
                continue
            with open(folder / BEGUN, 'a') as begun:
                begun.write(f'{picture.name}\n')
            png = figures.save(picture.figure, folder / picture.name)
            drawn.add(picture.name)
            address = f'data:image/png;base64,{base64.b64encode(png).decode()}'
            shown.append(
                f'<figure><h3>{text(picture.title)}</h3>'
                f'<img src="{address}" alt="{text(picture.title)}">'
                f'<figcaption>{text(picture.caption, 2000)} ({text(picture.name)}{FILES}'
                '</figure>'
            )
        if shown:
            parts.append(f'<section><h2>{text(heading)}</h2>{"".join(shown)}</section>')
    rows = [[text(name), text(value, 500)] for name, value in about.items()]
    parts[1] = table(['', ''], rows)
    for name in earlier - drawn:
        for ending in ('.png', '.pdf'):
            (folder / f'{name}{ending}').unlink(missing_ok=True)
    write_whole(page, document(printable(title), parts, STYLE))
    (folder / BEGUN).unlink(missing_ok=True)
    return page, notes


def pictures_of(folder: pathlib.Path) -> set[str]:
    """Names of the pictures in the folder of a report, also of one that was killed."""
    written = {
        name: (folder / name).read_text(errors='replace') if (folder / name).exists() else ''
        for name in (PAGE, BEGUN)
    }
    on_page = re.findall(rf'\((\w+){re.escape(FILES)}', written[PAGE])
    return {*on_page, *re.findall(r'^\w+$', written[BEGUN], re.MULTILINE)}
