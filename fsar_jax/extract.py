"""Runs a backbone once over all stored frames of a dataset, and keeps its features.

    python -m fsar_jax.extract --config=trm --dataset=NAME --dir=features/NAME \\
        --config.model.backbone.name=resnet50 --config.model.backbone.weights=resnet50.pth \\
        --config.episode.image_size=224 --config.data.resize=256

Training on them costs the head only:

    python main.py --config=trm --config.data.dataset=NAME \\
        --config.model.backbone.name=features --config.data.features=features/NAME

The config says which backbone, from which weights, sees frames of which size. The method of the
config does not matter. By default the features are the mean over each frame; --maps keeps the maps,
which some methods need. --views=4 keeps four views of each frame: the centre crop, which evaluation
uses, and random crops and mirrored frames, as config.data.crop and config.data.flip say, for
training. To continue an extraction that was stopped, repeat the command.

On a cluster, machines that share the folders can extract one slice each, in any order: with 16
slices --shards=0/16 to --shards=15/16. The last one to end makes the folder whole. On a Ray
cluster, --ray does all of that (pip install 'fsar_jax[ray]').
"""

import sys
from typing import Any

from fsar_jax.stopping import errors_in_one_line, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('the same command goes on with the files that are not finished')

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags, logging

from fsar_jax import mesh as meshes
from fsar_jax import train
from fsar_jax.arguments import slice_of
from fsar_jax.backbones import ON_FEATURES, extractor
from fsar_jax.checksums import SUMS, write_sums
from fsar_jax.config import check_values, flatten, resolve_paths, validate
from fsar_jax.data.clips import Clips
from fsar_jax.data.dataset import (
    EmptySplitError,
    Videos,
    content_hash,
    described,
    not_built,
    open_dataset,
    version_directory,
)
from fsar_jax.data.features import (
    DTYPES,
    HEADER,
    Header,
    Shard,
    files_of,
    is_whole,
    open_header,
    read_header,
    refuse_dataset,
)
from fsar_jax.evaluation.results import versions
from fsar_jax.files import check_output_folder, local_path
from fsar_jax.ingest.feature_files import (
    beside_features,
    cut_into_files,
    read_notes,
    remove_drafts,
    remove_features,
    remove_notes,
    strangers,
    write_header,
    write_note,
    write_shard,
)
from fsar_jax.learner import FewShotLearner, create_learner
from fsar_jax.machine import file_lock, keep_what_readers_free, usable_cores
from fsar_jax.memory import named_out_of_memory
from fsar_jax.messages import decimal_size, differences, listed, printable
from fsar_jax.named_arrays import params_hash
from fsar_jax.on_ray import PARTS_PER_SLOT, Cluster, spelled_out, without_ray
from fsar_jax.programs import prepare
from fsar_jax.progress import Progress
from fsar_jax.stage import ArrayTree
from fsar_jax.stages import build_stages, choice
from fsar_jax.training.start import backbone_variables, start_of_backbone

CHUNK_BYTES = 32 << 20  # of decoded frames that a thread hands over at once


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The flags of this command, not parsed yet."""
    values = train.config_flag(argv)
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    text('dataset', None, 'Name of the built dataset; default config.data.dataset.')
    text('dir', None, 'Folder for the features, new or of the extraction that goes on.')
    flags.DEFINE_boolean(
        'maps', False, 'Keep whole maps, not their mean over each frame.', flag_values=values
    )
    flags.DEFINE_integer(
        'views',
        1,
        'Number of views of each frame: the centre crop, then random crops, every second mirrored, '
        'as config.data.crop and config.data.flip say.',
        lower_bound=1,
        upper_bound=1000,
        flag_values=values,
    )
    flags.DEFINE_enum(
        'dtype', 'float16', list(DTYPES), 'Number format of the files.', flag_values=values
    )
    flags.DEFINE_integer(
        'videos_per_shard',
        0,
        'Number of clips in a file; 0: so many that it has about 4,096 frames.',
        lower_bound=0,
        flag_values=values,
    )
    text('shards', None, 'I/N: only slice I (from 0) of N; any machine may extract any slice.')
    text(
        'ray', None, 'ADDRESS: extract slices as tasks on a Ray cluster; no ADDRESS: the local one.'
    )
    flags.DEFINE_boolean('overwrite', False, 'Replace other features in --dir.', flag_values=values)
    flags.DEFINE_boolean('help', False, 'Print this text.', flag_values=values)
    return values


def main(argv: list[str]) -> None:
    """Does what the command line asks for.

    Args:
      argv: the program and its flags, as sys.argv.

    Raises:
      ValueError, OSError: one line about what is wrong with the input.
      SystemExit: the same, for flags that cannot be parsed.
    """
    given = train.parse(spelled_out(argv), define_flags)
    if given.help:
        names = (
            'config dataset dir maps views dtype videos_per_shard shards ray overwrite help'.split()
        )
        print('\n'.join([__doc__, 'Flags:', *(f'  --{n:<17} {given[n].help}' for n in names)]))
        return
    if given.config is None or given.dir is None:
        missing = '--config' if given.config is None else '--dir'
        raise ValueError(
            f'no {missing} given: python -m fsar_jax.extract --config=trm --dataset=NAME '
            '--dir=FOLDER, with the backbone and its weights as --help shows them'
        )
    slice_ = slice_of(given.shards)
    if slice_ and (given.ray or given.overwrite):
        raise ValueError(
            f'--shards={printable(given.shards)} is a slice of what other calls extract too: give '
            f'no {"--ray" if given.ray else "--overwrite"} with it'
        )
    config = given.config
    if given.ray:
        jax.config.update('jax_platforms', 'cpu')  # the accelerators are for the slices
    prepare(config.keep_programs)
    if given.dataset is not None:
        config = config.copy_and_resolve_references()
        config.data.dataset = given.dataset
    folder = local_path(given.dir, '--dir')
    if given.ray:
        return extract_on_ray(argv, config, folder, given)
    extract(
        config,
        folder,
        maps=given.maps,
        views=given.views,
        dtype=given.dtype,
        videos_per_shard=given.videos_per_shard,
        overwrite=given.overwrite,
        slice_=slice_,
    )


def extract(
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    maps: bool = False,
    views: int = 1,
    dtype: str = 'float16',
    videos_per_shard: int = 0,
    overwrite: bool = False,
    slice_: tuple[int, int] | None = None,
) -> Header:
    """Writes the features of all stored frames of all clips of config.data.dataset.

    Args:
      config: as from configs/*.py. Its backbone, config.episode.image_size, config.data and
        config.seed, from which a backbone without weights starts, decide the features.
      folder: where they go; it may hold a part of them already.
      maps: keep maps [h, w, C]; False keeps their mean [C].
      views: of each frame.
      dtype: 'float16', 'bfloat16' or 'float32'.
      videos_per_shard: clips in a file; 0 for about 4,096 frames.
      overwrite: replace finished features in the folder, and all other ones than these.
      slice_: (i, n), only every n-th file from the i-th on. Slices may run at once.

    Returns:
      What features.json says.

    Raises:
      ValueError, OSError: one line; finished files are kept.
    """
    start = time.monotonic()
    config = _checked(config, views)
    datasets = _open_splits(config)
    check_output_folder(folder, '--dir')
    refuse_dataset(folder)  # before a lock is left in it
    mesh = meshes.episode_mesh()
    embed, variables, header = _plan(config, datasets, mesh, maps, views, dtype, videos_per_shard)

    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / '.lock', _busy(folder), shared=slice_ is not None):
        with _one_slice_at_a_time(folder, slice_):
            header = _go_on(folder, header, overwrite, slice_)
            if slice_ and not (folder / HEADER).exists():
                write_header(folder, header)
        i, n = slice_ or (0, 1)
        shards = header.all_shards()
        mine = shards[i::n]
        todo = [(split, shard) for split, shard in mine if shard.file not in header.done]
        if len(header.done) == len(shards) and not read_notes(folder):
            if not (folder / SUMS).exists():  # killed before it, or lost
                write_sums(folder, header.done)
            print(f'{header.dataset} is extracted already: {printable(folder, 1000)}')
            return header
        if todo:
            _check_disk(folder, header, [shard for _, shard in todo])
        if not slice_:
            write_header(folder, header)
            remove_notes(folder)
        rows = sum(shard.rows for _, shard in mine)
        left = sum(shard.rows for _, shard in todo)
        if left < rows:
            print(
                f'{len(mine) - len(todo)} of {len(mine)} files are there from an earlier call',
                flush=True,
            )
        keep_what_readers_free()
        threads = config.data.num_threads or usable_cores()
        batch = meshes.round_up(config.eval.videos_per_batch * config.episode.frames, mesh)
        with (
            named_out_of_memory(config, 'extraction'),
            Progress(rows, 'extracting', 'frame', rows - left) as progress,
        ):
            for split, shard in todo:
                chunks = _read_shard(Clips(datasets[split], config), shard, views, threads)
                blocks = _embedded(_batches(chunks, batch), embed, variables, mesh, batch)
                counted = _counting(blocks, progress)
                with contextlib.closing(chunks):
                    header.done[shard.file] = write_shard(folder, header, shard, counted)
                if slice_:
                    write_note(folder, shard, header.done[shard.file])
                else:
                    write_header(folder, header)
        if slice_:
            header = _end_of_slice(folder, header)
            print(
                f'slice {i}/{n} of {header.dataset}: {len(todo)} files extracted, '
                f'{len(mine) - len(todo)} were there, {len(header.done)} of {len(shards)} in all '
                'slices'
            )
        else:
            write_sums(folder, header.done)
    if len(header.done) == len(shards):
        print(_ended(header, folder, start))
    return header


def _busy(folder):
    return f'another process is extracting to {printable(folder, 1000)}: wait for it to end'


def _ended(header, folder, start):
    return (
        f'extracted {header.dataset} in {time.monotonic() - start:.0f} s: '
        f'{printable(folder, 1000)}\ntrain on it with {ON_FEATURES} '
        f'--config.data.dataset={printable(header.dataset)} '
        f'--config.data.features={printable(folder, 1000)}'
    )


def extract_on_ray(
    argv: list[str], config: ml_collections.ConfigDict, folder: pathlib.Path, given: Any
) -> None:
    """`extract` of the command line `argv`, in slices that are tasks on a Ray cluster.

    Args:
      given: the flags.

    Raises:
      ValueError, OSError: one line; finished files are kept.
    """
    start = time.monotonic()
    config = _checked(config, given.views)
    datasets = _open_splits(config)
    check_output_folder(folder, '--dir')
    refuse_dataset(folder)  # before a lock is left in it
    folder.mkdir(parents=True, exist_ok=True)
    if given.overwrite:
        of_features = (given.maps, given.views, given.dtype, given.videos_per_shard)
        *_, header = _plan(config, datasets, meshes.episode_mesh(), *of_features)
        with file_lock(folder / '.lock', _busy(folder)):
            _make_room(folder, header)
    else:
        _weights_of(config)
    rows: dict[str, int] = {}
    for split, dataset in datasets.items():
        frames = dataset.num_frames.tolist()
        of_each = cut_into_files(frames, given.videos_per_shard)
        rows |= {shard.file: shard.rows for shard in files_of(split, of_each, frames, given.views)}
    done = lambda: sum(rows.get(path.name, 0) for path in folder.glob('*.npy'))
    flags_of_parts = [word for word in without_ray(argv) if not word.startswith('--overwrite')]
    before = done()
    with Cluster(given.ray) as cluster:
        room = cluster.room_for()
        count = min(len(rows), PARTS_PER_SLOT * room.slots)
        parts = [[*flags_of_parts, f'--shards={i}/{count}'] for i in range(count)]
        print(f'{len(rows)} files in {count} slices, {room.slots} at once', flush=True)
        with Progress(sum(rows.values()), 'extracting', 'frame', before) as progress:
            for _ in cluster.run('fsar_jax.extract:main', parts, room.options):
                now = done()
                if now > before:
                    progress.advance(now - before)
                    before = now
    header = open_header(folder)
    print(_ended(header, folder, start))


def _one_slice_at_a_time(folder, slice_):
    """A block in which slices look at what all of them have written."""
    return file_lock(folder / '.slices') if slice_ else contextlib.nullcontext()


def _end_of_slice(folder, header) -> Header:
    """The header with all files that are finished now. If these are all, features.json gets them in
    the place of the notes."""
    with _one_slice_at_a_time(folder, True):
        written = read_header(folder)
        done = (written.done if written else {}) | read_notes(folder)
        found, shards = dataclasses.replace(header, done=done), header.all_shards()
        whole = [shard.file for _, shard in shards if is_whole(folder, found, shard)]
        header = dataclasses.replace(header, done={file: done[file] for file in whole})
        if len(whole) == len(shards):
            write_header(folder, header)
            remove_notes(folder)
            remove_drafts(folder)  # of slices that were lost
            write_sums(folder, header.done)
    return header


# ── What is extracted ─────────────────────────────────────────────────────────────────────────────


def _checked(config, views):
    """The config with resolved paths; ValueError where no features can be made with it."""
    check_values(config)
    backbone, name = build_stages(config.model)['backbone'], choice(config.model, 'backbone')
    if backbone.takes_maps:
        raise ValueError(
            f'{name} is none that sees frames: set it to the network whose features are wanted'
        )
    validate(config)
    if backbone.takes_clips:
        raise ValueError(
            f'{name} looks at several frames at once, so there are no features of single frames: '
            'choose a network that looks at one, without temporal_shift'
        )
    data = config.data
    if views > 1 and data.crop == 'centre' and not (data.flip and views == 2):
        raise ValueError(
            f'--views={views} would keep the same views more than once with '
            f'config.data.crop={data.crop!r} and config.data.flip={data.flip}: set '
            '--config.data.crop=random, or give fewer views'
        )
    return resolve_paths(config)


def _of_frames(extractor):
    """Without the setting that only clips can have, which older features do not name."""
    return {key: value for key, value in extractor.items() if key != 'temporal_shift'}


def _weights_of(config) -> str | None:
    """What the backbone starts from; prints a note where that is chance."""
    key, weights = start_of_backbone(config)
    if not weights:
        print(f'note: config.{key} is not set: these are features of random weights', flush=True)
    return weights


def _open_splits(config) -> dict[str, Videos]:
    """{split: its clips} of the splits that have any."""
    name, data_dir = config.data.dataset, config.data.dir
    directory = version_directory(name, data_dir)
    if directory is None:
        raise FileNotFoundError(not_built(name, data_dir))
    datasets: dict[str, Videos] = {}
    for split in described(directory, name)[1]['videos']:
        with contextlib.suppress(EmptySplitError):
            datasets[split] = open_dataset(name, data_dir, split)
    if not datasets:
        raise ValueError(f'dataset {printable(name)} has no clips')
    return datasets


def _plan(config, datasets, mesh, maps, views, dtype, videos_per_shard):
    """(the function that embeds frames, its variables, the description of the features)."""
    learner, weights = create_learner(config.model), _weights_of(config)
    variables = backbone_variables(config, learner, mesh)
    embed = functools.partial(_features, learner=learner, mesh=mesh, pooled=not maps, dtype=dtype)
    size = config.episode.image_size
    one = jax.ShapeDtypeStruct((mesh.size, size, size, 3), np.uint8)
    shape = jax.eval_shape(embed, variables, one)[0].shape[1:]
    features = {
        'kind': 'maps' if maps else 'pooled',
        'shape': [1] * (3 - len(shape)) + list(shape),
        'dtype': dtype,
    }
    made_by = versions() | {'weights': weights, 'seed': config.seed}
    header = _header(config, datasets, variables, views, features, videos_per_shard, made_by)
    return embed, variables, header


def _header(config, datasets, variables, views, features, videos_per_shard, made_by) -> Header:
    """The description of the features, none of which is there yet."""
    data = config.data
    first = next(iter(datasets.values()))
    directory = version_directory(data.dataset, data.dir)
    assert directory is not None  # its splits are open
    header = Header(
        extractor={
            'backbone': _of_frames(extractor(config.model)),
            'params_hash': params_hash(variables),
            'compute_dtype': config.model.dtype,
            'frames': {
                'resize': data.resize,
                'image_size': config.episode.image_size,
                'crop': data.crop if views > 1 else 'centre',
                'flip': data.flip and views > 1,
                'views': views,
            },
            'features': features,
        },
        dataset=data.dataset,
        version=directory.name,
        class_names=first.class_names,
        settings=first.settings,
        made_with=first.made_with,
        splits={
            split: {
                'video_id': dataset.video_ids,
                'label': dataset.labels.tolist(),
                'num_frames': dataset.num_frames.tolist(),
                'expected': dataset.expected,
                'content': content_hash(dataset),
                'shards': cut_into_files(dataset.num_frames.tolist(), videos_per_shard),
            }
            for split, dataset in datasets.items()
        },
        done={},
        made_by=made_by,
    )
    return Header(**json.loads(json.dumps(dataclasses.asdict(header))))  # as it is read again


def _go_on(folder, header, overwrite, slice_=None) -> Header:
    """The header, with the files that the folder holds of these features already. A slice leaves
    what others have written as it is.

    Raises:
      ValueError: it holds something else.
    """
    if not slice_:
        remove_drafts(folder)
    if overwrite:
        _make_room(folder, header)
    before = read_header(folder)
    if before is not None:
        before.done.update(read_notes(folder))
        if not before.done and not slice_:  # only its description
            remove_features(folder)
            before = None
    if before is None:
        _refuse_others(folder, strangers(folder))
        return header
    differing = _differing(before, header)
    if differing:
        more = f'; and {len(differing) - 4} more' if len(differing) > 4 else ''
        raise ValueError(
            f'--dir={printable(folder, 1000)} holds features that are made in another way '
            f'({"; ".join(differing[:4])}{more}): name another folder, or replace them with '
            '--overwrite'
        )
    whole = {shard.file for _, shard in before.all_shards() if is_whole(folder, before, shard)}
    header.done.update({file: sha for file, sha in before.done.items() if file in whole})
    return header


def _refuse_others(folder, others) -> None:
    if others:
        raise ValueError(
            f'--dir={printable(folder, 1000)} holds other files ({listed(others, 3)}): name a new '
            'folder for the features (datasets are looked for in --config.data.dir)'
        )


def _differing(before, header) -> list[str]:
    """In what two descriptions of features differ."""
    about = lambda of: flatten(of.extractor | {'dataset': of.dataset, 'splits': of.splits})
    return differences(about(before), about(header))


def _make_room(folder, header) -> None:
    """Removes what --overwrite is to replace. Unfinished features as `header` describes them stay:
    an earlier call of the same command has begun them, and this one goes on."""
    _refuse_others(folder, beside_features(folder))
    before = None
    with contextlib.suppress(OSError, ValueError):  # damaged, so it is replaced
        before = read_header(folder)
    if before is not None and not _differing(before, header):
        if len(before.done | read_notes(folder)) < len(before.all_shards()):
            return
    remove_features(folder)


def _check_disk(folder, header, shards) -> None:
    """Prints how much disk the features take; ValueError where there is not as much."""
    needed, free = header.num_bytes(shards), shutil.disk_usage(folder).free
    features, views = header.extractor['features'], header.views
    frames = sum(shard.rows for shard in shards) // views
    print(
        f'{header.dataset}: {features["kind"]} features of {sum(s.videos for s in shards):,} '
        f'clips, {frames:,} frames in {views} view{"s" * (views > 1)}, {list(header.row_shape)} in '
        f'{features["dtype"]}: {decimal_size(needed)} of the {decimal_size(free)} that are free in '
        f'{printable(folder, 1000)}',
        flush=True,
    )
    if needed > free:
        less = 'without --maps, ' if features['kind'] == 'maps' else ''
        raise ValueError(
            f'--dir={printable(folder, 1000)} has {decimal_size(free)} free, the features need '
            f'{decimal_size(needed)}: make room, name a folder on another disk, or extract less '
            f'({less}fewer --views)'
        )


# ── How ───────────────────────────────────────────────────────────────────────────────────────────


def _read_shard(
    clips: Clips, shard: Shard, views: int, threads: int
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """(rows [n], frames uint8 [n, S, S, 3]) of the clips of a file, decoded ahead in threads."""
    most = max(1, CHUNK_BYTES // (views * clips.size**2 * 3))
    num_frames = clips.dataset.num_frames

    def parts():
        base = 0
        for position in range(shard.first, shard.first + shard.videos):
            count = int(num_frames[position])
            for start in range(0, count, most):
                yield position, base, count, start, min(count, start + most)
            base += views * count

    def read(position, base, count, start, end):
        frames = clips.read_views(position, start, end, views)
        rows = base + np.arange(views)[:, None] * count + np.arange(start, end)
        return rows.ravel(), frames.reshape(-1, *frames.shape[2:])

    with futures.ThreadPoolExecutor(threads, 'decoding') as pool:
        waiting: collections.deque = collections.deque()
        try:
            for part in parts():
                waiting.append(pool.submit(read, *part))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same rows and frames in new arrays of `size` rows; the last may be shorter."""
    rows, frames, filled = np.empty(size, np.int64), None, 0
    for new_rows, new_frames in chunks:
        while len(new_rows):
            if frames is None:
                frames = np.empty((size, *new_frames.shape[1:]), new_frames.dtype)
            count = min(size - filled, len(new_rows))
            rows[filled : filled + count] = new_rows[:count]
            frames[filled : filled + count] = new_frames[:count]
            new_rows, new_frames, filled = new_rows[count:], new_frames[count:], filled + count
            if filled == size:
                yield rows, frames
                rows, frames, filled = np.empty(size, np.int64), None, 0
    if filled:
        assert frames is not None
        yield rows[:filled], frames[:filled]


def _embedded(
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    embed: Callable,
    variables: ArrayTree,
    mesh: jax.sharding.Mesh,
    size: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, features), two batches behind the device, so that neither waits for the other."""

    def ready():
        rows, (features, finite) = running.popleft()
        if not finite:
            raise ValueError(
                'some features are not finite in the number format of --dtype: try '
                '--dtype=bfloat16 or float32; if they are not finite in float32 either, the '
                'weights have diverged, or do not fit the settings of the backbone'
            )
        return rows, np.asarray(features)[: len(rows)]

    running: collections.deque = collections.deque()
    for rows, frames in batches:
        frames = np.pad(frames, [(0, size - len(frames))] + [(0, 0)] * 3, mode='edge')
        running.append((rows, embed(variables, meshes.shard(mesh, frames, 0))))
        if len(running) > 2:
            yield ready()
    while running:
        yield ready()


@functools.partial(jax.jit, static_argnames=('learner', 'mesh', 'pooled', 'dtype'))
def _features(
    variables: ArrayTree,
    frames: jax.Array,
    learner: FewShotLearner,
    mesh: jax.sharding.Mesh,
    pooled: bool,
    dtype: str,
) -> tuple[jax.Array, jax.Array]:
    """Frames [B, S, S, 3] → (features [B, C] or [B, h, w, C], whether all are finite)."""
    found: Any = learner.apply(variables, frames, pooled, method='frame_features')
    features = found.astype(dtype)
    whole = meshes.replicated(mesh)
    return jax.lax.with_sharding_constraint((features, jnp.isfinite(features).all()), whole)


def _counting(blocks, progress):
    for rows, features in blocks:
        yield rows, features
        progress.advance(len(rows))


if __name__ == '__main__':
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    flags.FLAGS.mark_as_parsed()
    with errors_in_one_line():
        main(sys.argv)
