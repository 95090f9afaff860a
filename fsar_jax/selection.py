"""Says whether a run looks at its clips: python -m fsar_jax.selection --workdir=runs/vim

For a sampler that chooses frames it prints how many of them are inside the action, beside evenly
spaced frames and beside frames that were chosen for another clip (the null test: a habit is as good
for any clip); whether the choice changes with the support set; and how much of the gradient of the
scores is signal. For an alignment it prints the same null test: windows, offsets and M of another
clip or pair. What needs to know where the action is, only datasets like synthetic_actions have.

It writes WORKDIR/selection/selection.json, and index.html with pictures: ten clips with the chosen
frames framed and the action marked, and the places that the clips of each class choose.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fsar_jax.stopping import errors_in_one_line, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('nothing is written before all is measured')

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax.analysis.episode_report import Truth, look_at, of_clips, selection_measures
from fsar_jax.analysis.null_tests import null_tests
from fsar_jax.analysis.selection import changed_by_support, places_by_class, push_of_the_loss
from fsar_jax.arguments import Parser
from fsar_jax.config import resolve_paths
from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos
from fsar_jax.data.episodes import Episodes, draw_episodes
from fsar_jax.evaluation.evaluate import TrainedModel, episodes_of
from fsar_jax.evaluation.results import with_nulls
from fsar_jax.files import check_output_folder, local_path, write_whole
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.messages import printable
from fsar_jax.progress import Progress
from fsar_jax.samplers.task_adaptive import TaskAdaptiveSampler
from fsar_jax.stages import frames_read
from fsar_jax.training.inputs import open_split, open_training_split
from fsar_jax.training.losses import episode_loss
from fsar_jax.training.run_settings import run_config
from fsar_jax.training.selected import best_of_run

if TYPE_CHECKING:  # needs the extra, which `main` checks first
    from fsar_jax.analysis.run_report import Picture

FILE = 'selection.json'


def main(arguments: list[str] | None = None) -> None:
    """Measures what `arguments` ask for (None: those of the command line), prints and writes it.

    Raises:
      ValueError, OSError: one line about a flag or the run.
    """
    parser = Parser(prog='python -m fsar_jax.selection', description=__doc__)
    parser.add_argument('--workdir', required=True, help='workdir of the run')
    parser.add_argument(
        '--episodes', default='200', help='test episodes, at least 2. Default %(default)s'
    )
    parser.add_argument(
        '--gradient',
        default='16',
        help='training episodes for the gradient of the scores, about 2 s each on a CPU. '
        'Default %(default)s; 0 for none',
    )
    parser.add_argument(
        '--pictures',
        default='10',
        help='clips to draw. Default %(default)s; 0 for no pictures, which then need no matplotlib',
    )
    parser.add_argument('--dir', help='folder of the built datasets; default that of the run')
    parser.add_argument('--out', help='folder to write; default WORKDIR/selection')
    args = parser.parse(arguments)
    episodes, gradient, pictures = (
        number(getattr(args, name), f'--{name}', least)
        for name, least in (('episodes', 2), ('gradient', 0), ('pictures', 0))
    )
    if pictures and importlib.util.find_spec('matplotlib') is None:
        raise ValueError(
            "the pictures need matplotlib, not installed here: pip install 'fsar_jax[report]', or "
            'set --pictures=0'
        )
    workdir = local_path(args.workdir, '--workdir')
    out = workdir / 'selection' if args.out is None else local_path(args.out, '--out')
    if args.out or workdir.is_dir():  # else there is no such run, which is said below
        check_output_folder(out, '--out')

    config, mesh = run_config(workdir), episode_mesh(1)
    if args.dir is not None:
        config.data.dir = args.dir
    config = resolve_paths(config)
    learner = create_learner(config.model)
    if config.data.features:
        raise ValueError(
            f'the run in {printable(workdir, 1000)} is on stored features, whose frames nobody '
            'chooses: give a run on frames'
        )
    dataset = open_split(config, config.eval.split, config.eval.query)
    train = open_training_split(config) if gradient and chooses_by_score(learner) else None
    model = TrainedModel(learner, best_of_run(workdir, mesh).state.variables, config, mesh)
    drawn, seen = look_at(model, dataset, episodes_of(dataset, config, episodes), episodes)
    truth = Truth.of(dataset, drawn)
    found: dict[str, Any] = {'episodes': len(drawn)}
    found |= null_tests(seen, truth, drawn, config)
    indices = seen['auxiliary'].get('query_indices')
    if indices is None and len(found) == 1:
        why = 'neither chooses frames nor aligns clips'
        if truth is None:
            why += ' by M, and its dataset does not say where the action is'
        raise ValueError(
            f'nothing to measure: the method of the run in {printable(workdir, 1000)} {why}'
        )
    if indices is not None:
        found['selection'] = selection_measures(seen['auxiliary'], truth, config)
        found['selection']['changed_by_support'] = changed_by_support(indices, drawn.query)
        found['places_by_class'] = of_classes(seen, drawn, dataset, config)
        if train is not None:
            found['gradient'] = push_of_scores(model, train, gradient)
    found, _ = with_nulls(found)
    for line in in_words(found):
        print(line)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / FILE, json.dumps(found, indent=1) + '\n')
    if pictures and indices is not None:
        from fsar_jax.analysis.run_report import write_report

        about = {'run': str(workdir), 'data': f'{config.data.dataset}, {dataset.split}'}
        drawings = draw(model, dataset, drawn, indices, found, pictures)
        page, _ = write_report(out, f'What {workdir.name} looks at', about, drawings)
        print(page)
    print(out / FILE)


def number(given: str, flag: str, least: int) -> int:
    """The value of a flag, a whole number.

    Raises:
      ValueError: it is not one, or less than `least`; one line.
    """
    if not given.isascii() or not given.isdigit() or len(given) > 9 or int(given) < least:
        raise ValueError(f'{flag}={printable(given)} is not a whole number, {least} or more')
    return int(given)


def of_classes(
    seen: dict[str, Any], episodes: Episodes, dataset: Videos, config: Any
) -> dict[str, list[float]]:
    """{class: how often the clips of the episodes choose each of the M frames, [M]}."""
    chosen = of_clips(seen['auxiliary'], 'indices')
    assert chosen is not None
    clips = np.concatenate([episodes.support.reshape(len(episodes), -1), episodes.query], 1)
    labels = np.asarray(dataset.labels)[clips.ravel()]
    places = places_by_class(chosen.reshape(-1, chosen.shape[-1]), labels, frames_read(config))
    return {dataset.class_names[label]: shares.tolist() for label, shares in places.items()}


def chooses_by_score(learner: nn.Module) -> bool:
    """Whether the frames of this learner are chosen by scores that are trained."""
    sampler = getattr(learner, 'sampler', None)
    return isinstance(sampler, TaskAdaptiveSampler) and sampler.learns_to_choose


def push_of_scores(model: TrainedModel, dataset: Videos, count: int) -> dict:
    """`push_of_the_loss` over `count` training episodes of `dataset`, as clips look in a test, with
    σ as at the start of training (at the end of a schedule there may be no gradient left)."""
    learner, variables, config, _ = model
    e = config.episode
    episodes = draw_episodes(
        dataset, e.way, e.shot, e.query, config.seed, count, query_classes=e.query_classes
    )

    def loss(moved, key, support, query, labels, classes):
        taken = 0

        def choose(call, given, named, context):
            """`choose` with a number added to each score, whose gradient is wanted."""
            nonlocal taken
            if not isinstance(context.module, TaskAdaptiveSampler):
                return call(*given, **named)
            if context.method_name != 'choose':
                return call(*given, **named)
            sampler, (features, guide, weights, *_) = context.module, given
            hard, _, scores = call(features, guide, weights, False)
            scores = scores + moved[taken : taken + len(scores)]
            taken += len(scores)
            return hard, sampler.soft_choice(scores), scores

        rngs = {'dropout': key, 'sampler': jax.random.fold_in(key, 1)}
        with nn.intercept_methods(choose):
            prediction, _ = learner.apply(
                variables, support, query, train=True, mutable=['batch_stats'], rngs=rngs
            )
        return episode_loss(prediction, labels, config, classes)

    clips, of_split = e.way * e.shot + episodes.query.shape[1], np.unique(dataset.labels)
    zero = jnp.zeros((clips, frames_read(config)))
    push = jax.jit(lambda *given: -jax.grad(loss)(zero, *given))
    batches = loader.episode_batches(dataset, config, episodes, 1, frames_read(config))
    pushes: list[list[np.ndarray]] = []
    with Progress(count, 'measuring the gradient', 'episode') as progress:
        for index, batch in enumerate(batches):
            keys = (jax.random.key(2 * index + draw) for draw in range(2))
            given = batch['support'][0], batch['query'][0], episodes.labels[index]
            classes = np.searchsorted(of_split, episodes.classes[index]).astype(np.int32)
            pushes.append([np.asarray(push(key, *given, classes)) for key in keys])
            progress.advance()
    truth = Truth.of(dataset, episodes)
    inside = None
    if truth is not None:
        read = truth.stored(config)
        inside = (read >= truth.start[..., None]) & (read <= truth.end[..., None])
    return {'episodes': count, **push_of_the_loss(np.stack(pushes, 1), inside)}


def in_words(found: dict[str, Any]) -> Iterator[str]:
    """The lines that are printed."""
    share = lambda x: 'unknown' if x is None else f'{x:.3f}'
    row = lambda name, values: (
        f'{name:<38} ' + '   '.join(f'{key.replace("_", " ")} {value}' for key, value in values)
    )
    shares = lambda values: [(key, share(value)) for key, value in values.items()]
    if inside := found.get('selection', {}).get('inside_action'):
        yield row('chosen frames inside the action', shares(inside))
    if 'selection' in found:
        changed = share(found['selection']['changed_by_support'])
        yield row('frames that change with the support', [('share', changed)])
        if boxes := found['selection'].get('inside_box'):
            yield row("inside the object's box", shares(boxes))
    if gradient := found.get('gradient'):
        said = [('two draws correlate', share(gradient['draws_agree']))]
        if 'towards_action' in gradient:
            said.append(
                ('towards the action', '{:.3f} ± {:.3f}'.format(*gradient['towards_action']))
            )
        yield row('gradient of the scores', said)
    if 'window' in found:
        yield row('overlap of the window with the action', shares(found['window']['overlap']))
    if 'offsets' in found:
        yield row('displacement that is left', shares(found['offsets']['displacement']))
    if 'moves' in found:
        yield row('AEM of the query rearranged by M', shares(found['moves']['aem']))
        if 'apart' in found['moves']:
            yield row('frames joined by M are apart', shares(found['moves']['apart']))


def draw(
    model: TrainedModel,
    dataset: Videos,
    episodes: Episodes,
    indices: np.ndarray,
    found: dict[str, Any],
    count: int,
) -> list[tuple[str, list[Picture]]]:
    """The sections of the page: the first `count` different queries, and the places by class.

    Args:
      indices: int [E, Q, T], the chosen frames of the queries.
    """
    from fsar_jax.analysis.episode_figures import chosen_frames
    from fsar_jax.analysis.figures import places_by_class as draw_places
    from fsar_jax.analysis.run_report import Picture

    config, truth = model.config, Truth.of(dataset, episodes)
    positions, first = np.unique(episodes.query, return_index=True)
    order = np.argsort(first)[:count]
    where = list(zip(*np.unravel_index(first[order], episodes.query.shape)))
    batches = loader.video_batches(dataset, config, positions[order], 1, frames_read(config))
    support = episodes.support[0].size
    clips = []
    for (episode, query), position, frames in zip(where, positions[order], batches):
        action = None
        if truth is not None:
            read = truth.stored(config)[episode, support + query]
            ends = (of_all[episode, support + query] for of_all in (truth.start, truth.end))
            start, end = ends
            inside = np.flatnonzero((read >= start) & (read <= end))
            action = (inside[0], inside[-1]) if len(inside) else None
        name = dataset.class_names[dataset.labels[position]]
        clips.append((name, np.asarray(frames[0]), indices[episode, query], action))
    batches.close()
    places = {name: np.array(shares) for name, shares in found['places_by_class'].items()}
    pictures = [
        Picture(
            'chosen_frames',
            f'{len(clips)} queries',
            'The frames that are read of each clip. Framed: those that the sampler chooses. The '
            'line below: those that show the action. Like VIM, Fig. 14.',
            chosen_frames(clips),
        ),
        Picture(
            'places_by_class',
            'Places by class',
            'How often the clips of each class choose each frame. Rows that all look alike are a '
            'habit.',
            draw_places(places),
        ),
    ]
    return [('Chosen frames', pictures)]


if __name__ == '__main__':
    with errors_in_one_line():
        main()
