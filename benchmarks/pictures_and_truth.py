"""Whether pictures show what the method claims:
python benchmarks/pictures_and_truth.py --workdir=runs/strm [--num_episodes=200]

Below each picture of `python -m fsar_jax.report` stands a number for its query. This prints the
mean of these numbers over all queries of the first test episodes, with the 95% interval over
episodes, beside the number that it is to be compared with; and where the comparison is with the
truth itself, the correlation with it. Most need a dataset whose records say when and where the
action happens (synthetic_actions).
"""

import pathlib

import numpy as np
from absl import app, flags, logging

from fsar_jax import report
from fsar_jax.analysis.episode_pictures import measured
from fsar_jax.analysis.looking import look
from fsar_jax.analysis.picture_truth import TRUTH

WORKDIR = flags.DEFINE_string('workdir', None, 'The workdir of a run.', required=True)
DATA = flags.DEFINE_string('dir', None, 'Where datasets are kept, if they have moved.')
EPISODES = flags.DEFINE_integer('num_episodes', 200, 'The first so many test episodes.')


def summary(episodes):
    """Lines (picture, name, mean, half its 95% interval, other, mean of that, correlation or None)
    from the measures of each episode; what is NaN does not count."""
    lines = []
    for of_measure in zip(*episodes, strict=True):
        first = of_measure[0]
        pairs = [np.stack([m.values, m.compared]).reshape(2, -1) for m in of_measure]
        known = [pair[:, np.isfinite(pair).all(0)] for pair in pairs]
        of_episode = np.array([pair.mean(1) for pair in known if pair.size])
        mean, compared = of_episode.mean(0)
        half = 1.96 * of_episode[:, 0].std() / np.sqrt(len(of_episode))
        correlation = None
        if first.other == TRUTH:
            correlation = np.corrcoef(np.concatenate(known, 1))[0, 1]
        lines.append((first.picture, first.name, mean, half, first.other, compared, correlation))
    return lines


def main(_):
    logging.set_verbosity(logging.WARNING)
    workdir = pathlib.Path(WORKDIR.value)
    subject = report.open_subject(workdir, report.read_run(workdir), DATA.value)
    numbers = range(min(EPISODES.value, len(subject.episodes)))
    found = summary([measured(seen, subject)[0] for seen in look(subject, numbers)])
    print(f'{len(numbers)} episodes of {subject.dataset.name}')
    for picture, name, mean, half, other, compared, correlation in found:
        says = '' if correlation is None else f'   correlation {correlation:.2f}'
        print(f'{picture:<13} {name:<78} {mean:6.3f} ± {half:.3f}   {other}: {compared:.3f}{says}')


if __name__ == '__main__':
    app.run(main)
