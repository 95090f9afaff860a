"""Small copies of the public benchmarks in their authors' layouts and codecs: real files, few of
them, all classes or some."""

import csv
import json
import pathlib

import numpy as np

from fsar_jax import build
from fsar_jax.ingest.video_files import write_video

SPLITS = ('train', 'val', 'test')
# mpeg4 is what xvid files hold.
CODECS = {'.avi': 'mpeg4', '.mp4': 'libx264', '.webm': 'libvpx-vp9'}


def write_clip(path, number, num_frames=10):
    """32x24 pixels of a colour that depends on `number`, with a bar that moves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.array([number * 53 % 200, number * 101 % 200, number * 17 % 200], np.uint8)
    frames = np.tile(colour, (num_frames, 24, 32, 1))
    for i in range(num_frames):
        frames[i, :, 2 * i : 2 * i + 4] = 230
    write_video(path, frames, codec=CODECS[path.suffix])


def file_of(dataset, class_name, name):
    """Where a video lies below the folder that --videos names."""
    if dataset in ('ucf101_arn', 'hmdb51_arn'):
        return f'{class_name}/{name}.avi'
    if dataset == 'kinetics100_cmn':
        return f'{class_name}/{name}.mp4'
    return f'{name}.webm' if dataset.startswith('ssv2') else f'{name}.mp4'


def name_of(dataset, class_name, number):
    return {
        'ucf101_arn': f'v_{class_name}_g{number // 4 + 1:02d}_c{number % 4 + 1:02d}',
        'hmdb51_arn': f'clip_{class_name}_f_cm_np1_fr_med_{number}',
        'kinetics100_cmn': f'{abs(hash_of(class_name)) % 36**6:09d}_{number}_'
        f'{number:06d}_{number + 10:06d}',
        'ssv2_small_cmn': str(hash_of(class_name) % 200_000 + number),
        'ssv2_full_otam': str(hash_of(class_name) % 200_000 + number),
        'activitynet100': f'v_{hash_of(class_name) % 36**6:09d}_{number}',
    }[dataset]


def hash_of(text):
    return sum((i + 1) * 7919 * ord(c) for i, c in enumerate(text))


def make_copy(root, dataset, classes=3, videos=3, num_frames=10):
    """`classes` of each split with `videos` of each, and the lists where there are such.

    Returns:
      (folder for --videos, folder for --manual_dir, {split: list lines}, {line: class name}).
    """
    published = build.BENCHMARKS[dataset].published()
    folder, lists = pathlib.Path(root, 'videos'), pathlib.Path(root, 'lists')
    lists.mkdir(parents=True)
    lines, class_of, number = {}, {}, 0
    for split in SPLITS:
        names = list(published[split]['classes'])
        labels = published[split].get('list_labels', names)
        chosen, lines[split] = list(zip(names, labels))[:classes], []
        for clip in range(videos):  # the lists of SSv2 are in no order
            for class_name, label in chosen:
                name = name_of(dataset, class_name, clip)
                number += 1
                write_clip(folder / file_of(dataset, class_name, name), number, num_frames)
                lines[split].append(f'{label}/{name}')
                class_of[lines[split][-1]] = class_name
        if dataset in ('ucf101_arn', 'hmdb51_arn'):
            order = {name: i for i, name in enumerate(names)}
            lines[split].sort(key=lambda line: (order[line.split('/')[0]], line))
        else:
            name = build.BENCHMARKS[dataset].list_files()[0][split].name
            (lists / name).write_text(''.join(f'{line}\n' for line in lines[split]))
    return folder, lists, lines, class_of


def write_annotations(folder, lines, class_of, names=('train.json', 'validation.json')):
    rows = [
        {
            'id': line.split('/')[1],
            'label': 'x',
            'template': class_of[line].replace('something', '[something]'),
        }
        for split in SPLITS
        for line in lines[split]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(json.dumps(rows[::2]))
    (folder / names[1]).write_text(json.dumps(rows[1::2]))


def build_copy(dataset, data_dir, videos, lists, *flags):
    return build.build(
        build.parse(
            [
                f'--dataset={dataset}',
                f'--dir={data_dir}',
                f'--videos={videos}',
                f'--manual_dir={lists}',
                '--processes=0',
                '--short_side=24',
                *flags,
            ]
        )
    )


def skipped_in(directory):
    with open(directory / 'skipped.tsv', newline='') as file:
        rows = csv.DictReader(file, delimiter='\t')
        return {
            (row['split'], row['class'], row['name']): (row['reason'], row['detail'])
            for row in rows
        }
