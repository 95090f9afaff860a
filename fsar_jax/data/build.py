"""Builds a dataset: python -m fsar_jax.data.build --dataset=synthetic_actions/misaligned --dir=data

    python -m fsar_jax.data.build --dataset=video_folder/mine --videos=/my/clips --dir=data

The second argument of a dataset's name is its config; for video_folder it is a name of your choice. A dataset
that is built already is left alone; a build that was killed is done again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import pathlib
import shutil
import sys
import time

import tensorflow_datasets as tfds

from fsar_jax.data.dataset import version_directory
from tfds_builders import video_builder
from tfds_builders.synthetic_actions import synthetic_actions_dataset_builder as synthetic_actions
from tfds_builders.video_folder import video_folder_dataset_builder as video_folder

BUILDERS = {'synthetic_actions': synthetic_actions.Builder, 'video_folder': video_folder.Builder}

# values of a builder's config that are flags: name -> what it means
CONFIG_FLAGS = {
    'short_side': 'short side of the stored frames in pixels; 0: as in the file',
    'max_frames': 'stored frames of a clip, evenly spaced; 0: all',
    'min_frames': 'a clip with fewer frames is skipped as too short',
    'jpeg_quality': 'quality of the stored frames, 1 to 100',
    'size': 'synthetic_actions: height and width of the clips in pixels',
    'num_frames': 'synthetic_actions: frames of a clip',
    'clips_per_class': 'synthetic_actions: clips of each class',
    'seed': 'synthetic_actions: of everything that is drawn',
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m fsar_jax.data.build',
        description='Builds a dataset from video files.',
        allow_abbrev=False,
    )
    parser.add_argument(
        '--dataset',
        required=True,
        help='synthetic_actions/{aligned,misaligned,shifted,untrimmed} or '
        'video_folder/NAME with a name of your choice',
    )
    parser.add_argument(
        '--dir', default='data', help='where datasets are kept, as config.data.dir; default %(default)s'
    )
    parser.add_argument(
        '--videos', help='video_folder: the folder with <split>/<class>/<clip> or <class>/<clip>'
    )
    parser.add_argument('--strict', action='store_true', help='stop at the first file that cannot be used')
    parser.add_argument(
        '--processes', type=int, help='that decode; default one per core, 0: none but this one'
    )
    parser.add_argument('--overwrite', action='store_true', help='build again what is there already')
    for name, meaning in CONFIG_FLAGS.items():
        parser.add_argument(f'--{name}', type=int, help=meaning)
    return parser.parse_args(arguments)


def make_config(
    args: argparse.Namespace,
) -> tuple[type[video_builder.VideoBuilder], video_builder.VideoConfig]:
    """(builder class, its config) that the flags ask for; ValueError in one line."""
    name, _, config_name = args.dataset.partition('/')
    if name not in BUILDERS:
        raise ValueError(
            f"unknown dataset '{args.dataset}': choose one of {', '.join(BUILDERS)}, followed by /<config>"
        )
    builder = BUILDERS[name]
    if name == 'video_folder':
        if not args.videos:
            raise ValueError(
                'video_folder needs --videos=FOLDER with your clips in <split>/<class>/ or <class>/'
            )
        config = video_folder.VideoFolderConfig(name=config_name, root=args.videos)
        if not config_name or not config_name.replace('_', '').replace('-', '').isalnum():
            raise ValueError(
                f"'{args.dataset}' needs a name of letters, digits, - and _: --dataset=video_folder/my_clips"
            )
    else:
        if args.videos:
            raise ValueError(f"--videos is for video_folder, '{args.dataset}' does not read a folder")
        if config_name not in builder.builder_configs:
            raise ValueError(
                f"'{args.dataset}' is not a config of {name}: choose {name}/ followed by one of "
                f'{", ".join(builder.builder_configs)}'
            )
        config = builder.builder_configs[config_name]
    given = {flag: getattr(args, flag) for flag in CONFIG_FLAGS if getattr(args, flag) is not None}
    for flag in given.keys() - {field.name for field in dataclasses.fields(config)}:
        raise ValueError(f'--{flag} is not a setting of {name}')
    return builder, dataclasses.replace(config, **given)


def build(args: argparse.Namespace) -> pathlib.Path:
    """Builds what the flags ask for, unless it is there; returns its directory. ValueError in one line."""
    builder_class, config = make_config(args)
    if args.processes is not None and args.processes < 0:
        raise ValueError(f'--processes={args.processes} must be at least 0')
    settings = config.settings()
    folder = pathlib.Path(args.dir) / args.dataset
    folder.mkdir(parents=True, exist_ok=True)
    with _only_builder(folder):
        built = version_directory(args.dataset, args.dir)
        if built and not args.overwrite:
            metadata = tfds.builder_from_directory(built).info.metadata
            _check_same(args.dataset, metadata['settings'], settings)
            failed = (
                f', {len(metadata["failed"])} files skipped, see skipped.tsv there'
                if metadata['failed']
                else ''
            )
            print(f'{args.dataset} is built already: {built}{failed}')
            return built
        unfinished = folder / 'incomplete'
        shutil.rmtree(unfinished, ignore_errors=True)  # of a build that was killed
        start = time.monotonic()
        builder = builder_class(
            config=config, data_dir=unfinished, processes=args.processes, strict=args.strict
        )
        tfds.display_progress_bar(False)  # ours counts videos
        try:
            builder.download_and_prepare()
            if built:
                shutil.rmtree(built)
            directory = folder / str(builder.version)
            builder.data_path.rename(directory)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        print(f'built {args.dataset} in {time.monotonic() - start:.0f} s: {directory}\n{_summary(builder)}')
        return directory


def _check_same(name, there, settings):
    """What is built must be what is asked for."""
    different = [
        f'{key} is {there.get(key)}, asked for {value}'
        for key, value in settings.items()
        if there.get(key) != value
    ]
    if different:
        raise ValueError(
            f'{name} is built already with other settings ({"; ".join(different)}): '
            f'use --overwrite to build it again, or another --dir'
        )


@contextlib.contextmanager
def _only_builder(folder):
    """Two builds of one dataset would remove each other's files. The lock ends with the process, in any case."""
    with open(folder / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'another process is building {folder}: wait for it to end') from None
        yield


def _summary(builder):
    """Per split what there is, then the table of what is not."""
    lines = []
    for split, videos in builder.info.metadata['videos'].items():
        frames = videos['num_frames']
        stored = f'{min(frames)} to {max(frames)} frames' if frames else 'EMPTY'
        lines.append(f'  {split:<6} {len(set(videos["label"])):>4} classes {len(frames):>7} videos, {stored}')
    return '\n'.join(lines + [video_builder.skipped_table(builder.skipped)])


def main():
    try:
        build(parse())
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    except KeyboardInterrupt:
        sys.exit('stopped, nothing was kept')


if __name__ == '__main__':
    main()
