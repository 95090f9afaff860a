"""Builds a dataset: python -m fsar_jax.build --dataset=synthetic_actions/misaligned --dir=data

    python -m fsar_jax.build --dataset=video_folder/mine --videos=/my/clips --dir=data
    python -m fsar_jax.build --dataset=ucf101_arn --videos=/my/UCF-101 --dir=data

The second part of a dataset's name is its config. For video_folder you choose this name. The public
benchmarks need none, but you can choose one for a build with other settings. If the dataset is
built already, nothing is done. To continue a build that was stopped, repeat the command: it only
builds the shards that are not finished.

On a cluster, machines that share --dir can build one slice each, in any order. With 16 slices these
are 0/16 to 15/16. When all are built, one last call with --finish makes them a dataset:

    python -m fsar_jax.build --dataset=NAME --videos=DIR --dir=data --shards=$SLURM_ARRAY_TASK_ID/16
    python -m fsar_jax.build --dataset=NAME --videos=DIR --dir=data --finish

On a Ray cluster whose nodes share the folders, --ray does all of that (`pip install
'fsar_jax[ray]'`):

    python -m fsar_jax.build --dataset=NAME --videos=DIR --dir=data --ray
"""

from __future__ import annotations

from fsar_jax.stopping import errors_in_one_line, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('the same command goes on with the shards that are not finished')

    import os
    import resource
    import sys

    # OpenBLAS, which nothing here needs, starts a thread per core in each process, and crashes in
    # the import where it cannot.
    os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
    if 0 <= resource.getrlimit(resource.RLIMIT_AS)[0] < 650e6:
        sys.exit(
            'error: the limit on memory (ulimit -v) is below the 650 MB that the libraries need: '
            'raise it'
        )

import argparse
import contextlib
import dataclasses
import pathlib
import shutil
import sys
import time

try:
    import tensorflow_datasets as tfds
    from tqdm import tqdm

    from fsar_jax.arguments import Parser, slice_of
    from fsar_jax.data.dataset import described, version_directory
    from fsar_jax.files import local_path
    from fsar_jax.ingest import benchmark_builder, video_builder
    from fsar_jax.ingest.shards import (
        DISK_FULL,
        FILE_FORMATS,
        check_can_write,
        notes_in,
        read_note,
        remove_notes,
    )
    from fsar_jax.ingest.skipped import is_utf8, skipped_table, write_skipped
    from fsar_jax.ingest.video_files import decoder_generation
    from fsar_jax.machine import file_lock
    from fsar_jax.messages import one_line, printable
    from fsar_jax.on_ray import PARTS_PER_SLOT, Cluster, spelled_out
    from tfds_builders.activitynet100 import activitynet100_dataset_builder as activitynet100
    from tfds_builders.hmdb51_arn import hmdb51_arn_dataset_builder as hmdb51_arn
    from tfds_builders.kinetics100_cmn import kinetics100_cmn_dataset_builder as kinetics100_cmn
    from tfds_builders.ssv2_full_otam import ssv2_full_otam_dataset_builder as ssv2_full_otam
    from tfds_builders.ssv2_small_cmn import ssv2_small_cmn_dataset_builder as ssv2_small_cmn
    from tfds_builders.synthetic_actions import (
        synthetic_actions_dataset_builder as synthetic_actions,
    )
    from tfds_builders.ucf101_arn import ucf101_arn_dataset_builder as ucf101_arn
    from tfds_builders.video_folder import video_folder_dataset_builder as video_folder
# A library that finds no room in memory cannot be imported either.
except (ImportError, MemoryError, OSError) as error:
    if __name__ != '__main__':
        raise
    words = ' '.join(f'{error}'.split()) or type(error).__name__
    sys.exit(
        f'error: a library cannot be imported ({words}): install it (./run.sh), or raise the limit '
        'on memory (ulimit -v)'
    )

BENCHMARKS = {
    'ucf101_arn': ucf101_arn.Builder,
    'hmdb51_arn': hmdb51_arn.Builder,
    'kinetics100_cmn': kinetics100_cmn.Builder,
    'ssv2_small_cmn': ssv2_small_cmn.Builder,
    'ssv2_full_otam': ssv2_full_otam.Builder,
    'activitynet100': activitynet100.Builder,
}
BUILDERS = {
    'synthetic_actions': synthetic_actions.Builder,
    'video_folder': video_folder.Builder,
} | BENCHMARKS

# flags that are fields of a builder's config: name -> help
CONFIG_FLAGS = {
    'short_side': 'short side of the stored frames in pixels; 0: as in the file',
    'max_frames': 'largest number of stored frames per clip, evenly spaced; 0: all',
    'min_frames': 'clips with fewer frames are skipped as too short',
    'jpeg_quality': 'quality of the stored frames, 1 to 100',
    'square_pixels': '1 (default): store frames as players show them, stretched where the pixels '
    'are not square; 0: as coded',
    'videos_per_shard': 'number of videos in a record file; 0: so many that it has about 250 MB',
    'size': 'synthetic_actions: height and width of the clips in pixels',
    'num_frames': 'synthetic_actions: number of frames of a clip',
    'clips_per_class': 'synthetic_actions: number of clips of each class',
    'seed': 'synthetic_actions: random seed of the clips',
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command, of sys.argv by default."""
    parser = Parser(
        prog='python -m fsar_jax.build', description='Builds a dataset from video files.'
    )
    parser.add_argument(
        '--dataset',
        required=True,
        help='synthetic_actions/{aligned,misaligned,shifted,untrimmed,spliced,two_actions,'
        'two_objects,two_scenes,small,small_plain}, '
        f'video_folder/NAME with a name of your choice, or one of {", ".join(BENCHMARKS)}',
    )
    parser.add_argument(
        '--dir', default='data', help='folder for the built datasets; default %(default)s'
    )
    parser.add_argument(
        '--videos',
        help='video_folder: the folder with <split>/<class>/<clip> or <class>/<clip>; '
        'benchmarks: the folder or archive that the README of its builder describes',
    )
    parser.add_argument(
        '--manual_dir',
        help='benchmarks: folder with the list files, for a machine without network access; '
        'without --videos, also with the videos. Default <dir>/downloads/manual',
    )
    parser.add_argument(
        '--own_lists',
        action='store_true',
        help='benchmarks: accept list files that are not the published ones',
    )
    parser.add_argument(
        '--shards',
        metavar='I/N',
        help='build only slice I (from 0) of N; slices may be built in any order, on any machine',
    )
    parser.add_argument(
        '--finish',
        action='store_true',
        help='check that all slices are built and make them a dataset; reads no video',
    )
    parser.add_argument(
        '--ray',
        metavar='ADDRESS',
        help='build the slices as tasks on a Ray cluster, one core each (or --processes); without '
        'ADDRESS, on that of RAY_ADDRESS or of this machine',
    )
    parser.add_argument(
        '--strict', action='store_true', help='stop at the first file that cannot be used'
    )
    parser.add_argument(
        '--file_format',
        choices=FILE_FORMATS,
        default='array_record',
        help='of the records; default %(default)s, which training reads; tfrecord is for tfds.load '
        'and tf.data, and needs TensorFlow',
    )
    parser.add_argument(
        '--processes',
        type=int,
        help='number of processes that decode; default one per core, 0: decode in this process',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='build again what is built already'
    )
    for name, meaning in CONFIG_FLAGS.items():
        parser.add_argument(f'--{name}', type=int, help=meaning)
    return parser.parse(spelled_out(sys.argv[1:] if arguments is None else arguments))


def make_config(
    args: argparse.Namespace,
) -> tuple[type[video_builder.VideoBuilder], video_builder.VideoConfig]:
    """(builder class, its config) that the flags ask for; ValueError in one line."""
    name, _, config_name = args.dataset.partition('/')
    if name not in BUILDERS:
        raise ValueError(
            f"unknown dataset '{printable(args.dataset)}': choose one of {', '.join(BUILDERS)}, "
            'followed by /<config>'
        )
    if name == 'video_folder':
        config = _folder_config(args, config_name)
    elif name in BENCHMARKS:
        config = _benchmark_config(args, name, config_name)
    else:
        config = _synthetic_config(args, name, config_name)
    given = _given(args)
    for flag in given.keys() - {field.name for field in dataclasses.fields(config)}:
        raise ValueError(f'--{flag} is not a setting of {name}')
    return BUILDERS[name], dataclasses.replace(config, **given)


def _given(args):
    return {flag: getattr(args, flag) for flag in CONFIG_FLAGS if getattr(args, flag) is not None}


def _folder_config(args, config_name):
    if not args.videos:
        raise ValueError(
            'video_folder needs --videos=FOLDER with your clips in <split>/<class>/ or <class>/'
        )
    if not _is_plain(config_name):
        raise ValueError(
            f"'{printable(args.dataset)}' needs a name of letters, digits, - and _: "
            '--dataset=video_folder/my_clips'
        )
    return video_folder.VideoFolderConfig(name=config_name, root=args.videos)


def _benchmark_config(args, name, config_name):
    if config_name and not _is_plain(config_name):
        raise ValueError(
            f"'{printable(args.dataset)}': after {name}/ comes nothing or a name of letters, "
            'digits, - and _'
        )
    if config_name in ('incomplete', 'replaced'):  # folders of the build itself
        raise ValueError(f"'{printable(args.dataset)}': choose another name after {name}/")
    return benchmark_builder.BenchmarkConfig(
        name=config_name or 'default',
        videos=args.videos or '',
        manual_dir=args.manual_dir or str(pathlib.Path(args.dir) / 'downloads' / 'manual'),
        own_lists=args.own_lists,
    )


def _synthetic_config(args, name, config_name):
    if args.videos:
        raise ValueError(
            f"--videos is for video_folder and the benchmarks, '{printable(args.dataset)}' does "
            'not read a folder'
        )
    configs = BUILDERS[name].builder_configs
    if config_name not in configs:
        raise ValueError(
            f"'{printable(args.dataset)}' is not a config of {name}: choose {name}/ followed by "
            f'one of {", ".join(configs)}'
        )
    return configs[config_name]


def _is_plain(name):
    return name.replace('_', '').replace('-', '').isalnum()


def build(args: argparse.Namespace) -> pathlib.Path:
    """Builds the dataset that the flags ask for, unless it is built already.

    Returns:
      The dataset's directory; with --shards, the directory of the unfinished build.

    Raises:
      ValueError, OSError: in one line; finished shards are kept.
    """
    start = time.monotonic()
    args = _with_local_paths(args)
    builder_class, config = make_config(args)
    check_can_write(args.file_format)
    if args.processes is not None and args.processes < 0:
        raise ValueError(f'--processes={args.processes} must be at least 0')
    slice_ = slice_of(args.shards)
    if slice_ and args.finish:
        raise ValueError('--shards builds a slice and --finish ends the build: give one of them')
    if args.ray and (slice_ or args.finish):
        raise ValueError('--ray builds all slices and ends the build: give no --shards or --finish')
    settings = config.settings()
    folder = pathlib.Path(args.dir) / args.dataset
    if isinstance(config, video_folder.VideoFolderConfig):
        video_folder.check_outside(folder, config.root)
    folder.mkdir(parents=True, exist_ok=True)
    # Two builds of one dataset would remove each other's files; slices only add to them.
    busy = f'another process is building {printable(folder, 1000)}: wait for it to end'
    directory = folder / str(builder_class.VERSION)
    if args.ray and (args.overwrite or not _built_before(args, directory)):
        with file_lock(folder / '.lock', busy, shared=True):
            _build_on_ray(args, builder_class, config, directory.with_name('incomplete'))
        args.finish = True
    with file_lock(folder / '.lock', busy, shared=slice_ is not None):
        built = _built_before(args, directory)
        if built and not args.overwrite:
            remove_notes(built)  # of a build that was killed in its last moment
            print(_already_built(args, built, settings))
            return built
        builder = _builder(args, builder_class, config)
        return _build(args, builder, slice_, directory, built, start)


def _builder(args, builder_class, config) -> video_builder.VideoBuilder:
    return builder_class(
        config=config,
        data_dir=pathlib.Path(args.dir) / args.dataset / 'incomplete',
        processes=args.processes,
        strict=args.strict,
        file_format=args.file_format,
        flags=_given(args),
    )


def _build_on_ray(args, builder_class, config, unfinished) -> None:
    """Builds all shards that are not finished, in slices that run elsewhere."""
    builder = _builder(args, builder_class, config)
    shards = builder.plan(builder.download_manager(pathlib.Path(args.dir) / 'downloads'))
    videos = {f'{shard.file_name}.json': len(shard.sources) for shard in shards}
    done = lambda: sum(videos.get(path.name, 0) for path in unfinished.glob('*.json'))
    processes = 1 if args.processes is None else args.processes
    with Cluster(args.ray) as cluster:
        room = cluster.room_for(max(1, processes))
        count = min(len(shards), PARTS_PER_SLOT * room.slots)
        given = vars(args) | {'ray': None, 'processes': processes}
        parts = [argparse.Namespace(**given | {'shards': f'{i}/{count}'}) for i in range(count)]
        print(f'{len(shards)} shards in {count} slices, {room.slots} at once', flush=True)
        with tqdm(
            total=sum(videos.values()),
            initial=done(),
            desc=builder.info.full_name,
            unit=' videos',
            mininterval=0.5 if sys.stderr.isatty() else 15,
        ) as progress:
            for _ in cluster.run('fsar_jax.build:build', parts, room.options):
                progress.update(max(0, done() - progress.n))


def _with_local_paths(args):
    """The flags, with absolute paths; ValueError where --dir cannot hold a dataset."""
    paths = {
        flag: getattr(args, flag) for flag in ('dir', 'videos', 'manual_dir') if getattr(args, flag)
    }
    args = argparse.Namespace(
        **vars(args) | {flag: str(local_path(path, f'--{flag}')) for flag, path in paths.items()}
    )
    if not is_utf8(str(pathlib.Path(args.dir).absolute())):
        raise ValueError(
            f'--dir={printable(args.dir, 1000)}: the path is not UTF-8, and files of records '
            'cannot be read from there: choose another'
        )
    return args


def _built_before(args, directory) -> pathlib.Path | None:
    """The directory of the build that exists already. It may be damaged where it is to be
    overwritten, else that is a ValueError."""
    built = version_directory(args.dataset, args.dir)
    if built or not directory.exists():
        return built
    if not args.overwrite:
        raise ValueError(
            f'{printable(directory, 1000)} exists, but is not a dataset: dataset_info.json is '
            'missing: copy it again, or give --overwrite to build it again'
        )
    return directory


def _already_built(args, built, settings) -> str:
    """What to print about a dataset that is built already; ValueError if with other settings."""
    name = args.dataset
    builder, metadata = described(built, name)
    file_format = {'file_format': builder.info.file_format.value}
    _check_same(
        name, metadata['settings'] | file_format, settings | {'file_format': args.file_format}
    )
    failed = metadata.get('failed') or {}
    again = sum(reason in video_builder.AGAIN for reason in failed.values())
    text = f'{name} is built already: {printable(built, 1000)}'
    if failed:
        text += f', {len(failed)} files skipped, see skipped.tsv there'
    if again:
        text += f'; {again} of them may be readable now: build again with --overwrite'
    return text + _other_decoder(metadata.get('made_with'))


def _check_same(name, built, settings):
    """ValueError if a dataset was built with other settings than those asked for. Settings that are
    newer than the dataset are not compared."""
    different = [
        f'{key} is {built[key]}, asked for {value}'
        for key, value in settings.items()
        if key in built and built[key] != value
    ]
    if different:
        raise ValueError(
            f'{name} is built already with other settings ({"; ".join(different)}): use '
            '--overwrite to build it again, or another --dir'
        )


def _build(args, builder, slice_, directory, built, start) -> pathlib.Path:
    """Builds a slice, or all, in the builder's `incomplete` folder, which then becomes `directory`
    in the place of `built`. `start` is when the command began, in seconds."""
    unfinished = directory.with_name('incomplete')
    tfds.display_progress_bar(False)  # ours counts videos
    shards = []
    try:
        shards = builder.plan(builder.download_manager(pathlib.Path(args.dir) / 'downloads'))
        if slice_:
            mine = shards[slice_[0] :: slice_[1]]
            count = builder.write_shards(mine, unfinished, args.overwrite)
            print(
                f'slice {args.shards} of {args.dataset}: {count} shards built, {len(mine) - count} '
                f'were there, {len(shards)} in all slices; when all are built, run the command '
                'with --finish'
            )
            return unfinished
        if not args.finish:
            done = _count_finished(shards, unfinished)
            if done:
                print(f'{done} of {len(shards)} shards are there from an earlier call', flush=True)
            builder.write_shards(shards, unfinished, args.overwrite)
        builder.finish(shards, unfinished)
        _replace(directory, unfinished, built)
    except video_builder.NoVideoError:
        print(skipped_table(builder.skipped))
        raise
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise _disk_full(builder, shards, unfinished, error) from None
    finally:
        if not slice_ and unfinished.is_dir():
            if not notes_in(unfinished):  # not one finished shard
                shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(directory.with_name('replaced'), ignore_errors=True)
    print(
        f'built {args.dataset} in {time.monotonic() - start:.0f} s: '
        f'{printable(directory, 1000)}\n{_summary(builder)}'
    )
    return directory


def _replace(directory, unfinished, built):
    """Gives the finished build its name; what was `built` before is moved aside."""
    for path in unfinished.iterdir():  # a dataset has no folders; tfds makes some
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
    if built:
        replaced = directory.with_name('replaced')
        shutil.rmtree(replaced, ignore_errors=True)
        built.rename(replaced)
    if directory.exists():  # a copy that has lost its dataset_info.json, else it would be `built`
        shutil.rmtree(directory)
    unfinished.rename(directory)
    remove_notes(directory)


def _count_finished(shards, folder):
    return sum(read_note(folder, shard) is not None for shard in shards)


def _other_decoder(made_with):
    """What to add about a finished dataset whose pixels this machine would not make."""
    if made_with is None:
        return '; by an older version, which did not note its decoder'
    decoder, installed = made_with['decoder'], decoder_generation()
    if decoder in (None, installed):
        return ''
    return (
        f'; made with {printable(decoder)}, and {installed} is installed here, which makes other '
        'pixels'
    )


def _disk_full(builder, shards, unfinished, error):
    """Prints what was skipped so far; returns the error to raise, in one line."""
    done = _count_finished(shards, unfinished)
    builder.collect_skipped(shards, unfinished)
    print(skipped_table(builder.skipped))
    with contextlib.suppress(OSError):  # there may be room for a small file
        write_skipped(unfinished / 'skipped.tsv', builder.skipped)
    return OSError(
        f'the disk is full: {error.strerror}; {done} of {len(shards)} shards are finished and '
        'kept, make room and give the same command again'
    )


def _summary(builder):
    """What each split holds, then the table of what was skipped."""
    lines = []
    for split, videos in builder.info.metadata['videos'].items():
        frames = videos['num_frames']
        stored = f'{min(frames)} to {max(frames)} frames' if frames else 'EMPTY'
        lines.append(
            f'  {split:<6} {len(set(videos["label"])):>4} classes {len(frames):>7} videos, {stored}'
        )
    return '\n'.join(lines + builder.notes + [skipped_table(builder.skipped)])


def main() -> None:
    try:
        build(parse())
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and 'start new thread' not in str(error):
            raise  # a bug, to be seen as one
        raise MemoryError(
            f'the memory is used up ({one_line(error)}): raise the limit (ulimit -v, the job), or '
            'give fewer --processes'
        ) from error


if __name__ == '__main__':
    with errors_in_one_line():
        main()
