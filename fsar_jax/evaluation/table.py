"""Many results.json → one table: a row per method, dataset, way and shot, averaged over seeds.

`fsar_jax/table.py` prints it. Two numbers stand behind each accuracy, because they answer different
questions: the spread over seeds says how far another training run would move it, the interval over
episodes how far another draw of test episodes would.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fsar_jax.config import SETTINGS, flatten, keys_that_affect, with_newer_settings
from fsar_jax.evaluation.compare import PairedDifference, paired_difference
from fsar_jax.evaluation.results import accuracy_with_interval, short_key
from fsar_jax.messages import listed, printable

# What the test episodes are. Rows are paired only where all of it is equal.
EPISODES = ('dataset', 'split', 'way', 'shot', 'queries', 'num_episodes', 'episodes_hash')
CHECKPOINT = 'checkpoint'  # only in results of a checkpoint that another may be better than


class Row(NamedTuple):
    """One line of the table.

    Attributes:
      method: its name; with the settings in which it differs from another row of this name.
      episodes: {'dataset': …, 'split': …, …}, the keys of EPISODES.
      seeds: config.seed of each run, ascending.
      accuracy: mean over the seeds, a fraction.
      spread: standard deviation over the seeds (divisor n − 1); None for one seed.
      ci95: half-width of the 95% interval over episodes. Each episode counts with its mean accuracy
        over the seeds.
      difference: to the row that all are compared with, paired by episode; None for that row, and
        for rows on other episodes.
    """

    method: str
    episodes: dict
    seeds: tuple[int, ...]
    accuracy: float
    spread: float | None
    ci95: float
    difference: PairedDifference | None

    @property
    def starred(self) -> bool:
        """Whether the interval of the paired difference excludes 0."""
        return (
            self.difference is not None and abs(self.difference.difference) > self.difference.ci95
        )


def table(runs: Mapping[str, dict], against: str | None = None) -> tuple[list[Row], list[str]]:
    """The rows of a table, and what a reader must know about them.

    Runs are averaged when nothing but config.seed differs: the same method, settings, training
    videos and test episodes. Settings that cost time or memory alone may differ. Results of a run
    that was not over, or whose best checkpoint was damaged, have a row that names their checkpoint.

    Args:
      runs: {path: content of results.json}; in the order in which the rows are to stand.
      against: the method that the others are compared with, or a row's whole name; None for that
        of the first row.

    Returns:
      The rows, and notes of one line each, such as which rows have other episodes.

    Raises:
      ValueError: a seed twice in one row, one that is no number, or an `against` that is unknown or
        stands for several rows; one line.
    """
    groups: dict[tuple, dict[int, str]] = {}
    for path, results in runs.items():
        paths = groups.setdefault(_identity(results), {})
        seed = _config(results).get('seed', 0)
        if type(seed) is not int:
            raise ValueError(
                f"{printable(path, 1000)}: 'config.seed' is {printable(seed)}, not a whole number: "
                'evaluate that run again'
            )
        if seed in paths:
            raise ValueError(
                f'{printable(paths[seed], 1000)} and {printable(path, 1000)} are the same method '
                f'and settings with the same seed {seed}: give each seed once'
            )
        paths[seed] = path
    seeds_of = [tuple(sorted(paths)) for paths in groups.values()]
    members = [
        [runs[paths[seed]] for seed in seeds] for paths, seeds in zip(groups.values(), seeds_of)
    ]
    names = _names([group[0] for group in members])
    means = [_mean_of(group) for group in members]

    methods = [group[0]['method'] for group in members]
    if against is not None and against not in (*methods, *names):
        choices = listed(list(dict.fromkeys(names)))
        raise ValueError(f"no row is '{printable(against)}': compare with one of {choices}")
    base = against or (names[0] if names else None)

    def bases_for(row: int) -> list[int]:
        """The rows on the episodes of `row` that `base` names, those of its method where none has
        this very name."""
        twins = [i for i, mean in enumerate(means) if _episodes(mean) == _episodes(means[row])]
        named = [i for i in twins if names[i] == base]
        return named or [i for i in twins if methods[i] == base]

    bases = [bases_for(row) for row in range(len(names))]
    for of_row in bases:
        several = list(dict.fromkeys(names[i] for i in of_row))
        if against is not None and len(several) > 1:
            raise ValueError(
                f"'{printable(against)}' stands for {len(several)} rows: compare with one of "
                f'{listed(several)}'
            )

    rows, notes = [], []
    if against is not None and all(row in of_row for row, of_row in enumerate(bases)):
        notes.append(f'nothing is compared: there is no other row than {printable(against)}')
    for row, (name, seeds, group, mean) in enumerate(zip(names, seeds_of, members, means)):
        episodes, difference = _episodes(mean), None
        if row not in bases[row]:
            if bases[row]:
                difference = paired_difference(means[bases[row][0]], mean)
            else:
                notes.append(f'{name} on {_shown(episodes)}: no run of {base} on these episodes')
        each = [run['accuracy'] for run in group]
        spread = float(np.std(each, ddof=1)) if len(each) > 1 else None
        accuracy = float(np.mean(each))
        rows.append(Row(name, episodes, seeds, accuracy, spread, mean['ci95'], difference))
    return rows, notes + _apart(rows)


def _episodes(results: dict) -> dict:
    return {key: results.get(key) for key in EPISODES}


def _config(results: dict) -> dict:
    config = results.get('config')
    return flatten(config) if isinstance(config, dict) else {}


def _settings(results: dict) -> dict:
    """{key: value} of all settings that may change a number, but for the seed; and the checkpoint
    that another may be better than. What a list of episodes holds is in episodes_hash."""
    ignored = {key for key, known in SETTINGS.items() if known.affects in ('cost', 'list')}
    settings = with_newer_settings(_config(results))
    for key in settings.keys() & set(keys_that_affect('start')):  # wherever the file lay
        settings[key] = settings[key] and pathlib.Path(settings[key]).name
    checkpoint = {key: results[key] for key in [CHECKPOINT] if key in results}
    return checkpoint | {k: value for k, value in settings.items() if k not in {'seed', *ignored}}


def _identity(results: dict) -> tuple:
    """Equal for runs that differ in the seed alone."""
    # The clips of a training on few of each class are drawn by the seed; 'content' covers how the
    # clips were stored, which older results do not say.
    left_out = 'limited_to', 'records'
    trained_on = {
        split: {key: value for key, value in note.items() if key not in left_out}
        for split, note in (results.get('trained_on') or {}).items()
    }
    clips = [results.get(key) for key in ('content', 'extractor')]
    parts = (results['method'], _episodes(results), _settings(results), trained_on, clips)
    return tuple(json.dumps(part, sort_keys=True) for part in parts)


def _names(firsts: Sequence[dict]) -> list[str]:
    """The methods' names, with the checkpoint of a run that was not over; those that stand for
    several rows on the same episodes name the settings in which they differ."""
    names = []
    for results in firsts:
        twins = [
            _settings(other)
            for other in firsts
            if (other['method'], _episodes(other)) == (results['method'], _episodes(results))
        ]
        own = _settings(results)
        differing = [
            key
            for key in own
            if key == CHECKPOINT or any(twin.get(key) != own[key] for twin in twins)
        ]
        words = [f'{short_key(key, own)}={own[key]}' for key in differing]
        names.append(results['method'] + (f' ({", ".join(words)})' if words else ''))
    return names


def _mean_of(group: Sequence[dict]) -> dict:
    """The first run of a row, with each episode's right answers averaged over the runs."""
    correct = np.mean([run['correct'] for run in group], axis=0)
    accuracy, ci95 = accuracy_with_interval(correct, group[0]['queries'])
    return group[0] | {'correct': correct, 'accuracy': accuracy, 'ci95': ci95}


def _apart(rows: Sequence[Row]) -> list[str]:
    """One line for each method that has two rows which look alike, on other episodes or clips."""
    looks: dict[tuple, int] = {}
    for row in rows:
        shown = row.method, _shown(row.episodes)
        looks[shown] = looks.get(shown, 0) + 1
    return [
        f'{method} on {shown}: {count} rows, because the test episodes or the videos differ: not '
        'averaged'
        for (method, shown), count in looks.items()
        if count > 1
    ]


def _shown(episodes: dict) -> str:
    dataset, split, way, shot = (episodes[key] for key in ('dataset', 'split', 'way', 'shot'))
    return printable(f'{dataset} ({split}), {way}-way {shot}-shot')


HEADER = ('method', 'dataset', 'split', 'way', 'shot', 'accuracy', 'over seeds', 'over episodes')


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text, header first. Accuracies and intervals are percentages and percentage
    points."""
    compared = any(row.difference for row in rows)
    text = [[*HEADER, *(['difference'] if compared else [])]]
    for row in rows:
        spread = '' if row.spread is None else f'±{100 * row.spread:.2f} '
        line = [
            printable(row.method, 200),
            *(printable(row.episodes[key]) for key in ('dataset', 'split', 'way', 'shot')),
            f'{100 * row.accuracy:.2f}',
            f'{spread}({len(row.seeds)} seed{"s" if len(row.seeds) > 1 else ""})',
            f'±{100 * row.ci95:.2f}',
        ]
        if compared:
            line.append(
                f'{100 * row.difference.difference:+.2f} ±{100 * row.difference.ci95:.2f}'
                + (' *' if row.starred else '')
                if row.difference
                else ''
            )
        text.append(line)
    return text


def as_markdown(rows: Sequence[Row]) -> str:
    """The table for a README: cells of one column have one width."""
    text = [[cell.replace('|', r'\|') for cell in line] for line in cells(rows)]
    widths = [max(len(line[i]) for line in text) for i in range(len(text[0]))]
    lines = [
        '| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths)) + ' |'
        for line in text
    ]
    return '\n'.join([lines[0], '|' + '|'.join('-' * (w + 2) for w in widths) + '|', *lines[1:]])


def as_latex(rows: Sequence[Row]) -> str:
    """The table for a paper: a tabular with the rules of the package booktabs."""
    header, *text = ([_latex(cell) for cell in line] for line in cells(rows))
    lines = [rf'{" & ".join(line)} \\' for line in text]
    return '\n'.join(
        [
            rf'\begin{{tabular}}{{{"l" * 3}{"r" * (len(header) - 3)}}}',
            r'\toprule',
            rf'{" & ".join(header)} \\',
            r'\midrule',
            *lines,
            r'\bottomrule',
            r'\end{tabular}',
        ]
    )


def _latex(cell: str) -> str:
    special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}
    special |= {character: f'\\{character}' for character in '&%$#_{}'}
    special['±'] = r'$\pm$'
    text = cell.removesuffix(' *')
    star = '$^{*}$' if text != cell else ''
    return ''.join(special.get(character, character) for character in text) + star
