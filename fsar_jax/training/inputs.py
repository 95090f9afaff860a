"""Opens the splits of a run, fits it to its devices, and describes both for the printed plan."""

import jax
import ml_collections
import numpy as np

from fsar_jax.data import episodes, loader
from fsar_jax.data.dataset import Videos, open_dataset, videos_present
from fsar_jax.data.features import open_features, open_header
from fsar_jax.learner import create_learner
from fsar_jax.matchers.classifier import count_classes
from fsar_jax.mesh import float32_products
from fsar_jax.messages import listed, printable
from fsar_jax.stages import frames_read


def open_split(config: ml_collections.ConfigDict, split: str, query: int) -> Videos:
    """Opens a split, with the clips that are long enough.

    Args:
      query: how many query clips per class an episode takes. Where config.eval.episodes_file lists
        the episodes of this split, it says itself what they take.

    Raises:
      FileNotFoundError, ValueError: one line. The dataset is not built, or the split does not hold
        the way, shot and queries of an episode.
    """
    dataset = loader.usable(open_videos(config, split), config)
    if not (config.eval.episodes_file and split == config.eval.split):
        episodes.check_dataset(dataset, config.episode.way, config.episode.shot, query)
    return dataset


def open_training_split(config: ml_collections.ConfigDict) -> Videos:
    """The split 'train' with the clips that a run trains on: config.data.train_clips_per_class of
    each class.

    Raises:
      FileNotFoundError, ValueError: as `open_split`.
    """
    dataset = open_split(config, 'train', config.episode.query)
    return episodes.limited(dataset, config.data.train_clips_per_class, config.seed)


def open_videos(config: ml_collections.ConfigDict, split: str) -> Videos:
    """A split of config.data.dataset: its frames, or its features in config.data.features.

    Raises:
      FileNotFoundError, OSError, ValueError: as `open_dataset` and `open_features`.
    """
    data = config.data
    if data.features:
        return open_features(data.dataset, data.features, split)
    return open_dataset(data.dataset, data.dir, split)


def with_features(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with what the features in config.data.features decide: their shape, and the size,
    crop and flip of the frames that they are of. The config itself for a run on frames.

    Raises:
      FileNotFoundError, OSError, ValueError: one line. There are no features there, or the model
        cannot work on them.
    """
    if not config.data.features:
        return config
    header, on_maps = open_header(config.data.features), create_learner(config.model).stages_on_maps
    shape, frames = header.shape, header.extractor['frames']
    shown = f'config.data.features={printable(config.data.features, 1000)}'
    if header.extractor['features']['kind'] == 'pooled' and on_maps:
        stages = listed(name.replace('_', ' ') for name in on_maps)
        raise ValueError(
            f'{shown} holds features that are pooled over each frame, and the {stages} of this '
            'method needs maps: extract them with --maps into another folder'
        )
    if tuple(config.data.feature_shape) not in ((), shape):
        raise ValueError(
            f'{shown} holds features of shape {shape}, and config.data.feature_shape='
            f'{tuple(config.data.feature_shape)}: leave the latter out'
        )
    config = config.copy_and_resolve_references()
    config.data.feature_shape = shape
    config.episode.image_size, config.data.resize = frames['image_size'], frames['resize']
    several = frames['views'] > 1
    config.data.crop = frames['crop'] if several else 'centre'
    config.data.flip = frames['flip'] and several
    return config


def with_training_classes(
    config: ml_collections.ConfigDict, train_set: Videos
) -> ml_collections.ConfigDict:
    """The config with the number of training classes, if a classifier is trained and the config
    leaves this number open.

    Raises:
      ValueError: it says another number than the dataset has.
    """
    config = config.copy_and_resolve_references()
    found = len(np.unique(train_set.labels))
    count_classes(config.model, found, f'{config.data.dataset} train')
    return config


def fit_accumulation(config: ml_collections.ConfigDict, devices: int) -> ml_collections.ConfigDict:
    """The config with the number of sequential parts per step that it asks for, or the next larger
    one that divides the episodes of a step over parts and devices (which takes no more memory); or
    where there is none, the largest, which has one episode for each device in a part.

    The result of a step does not depend on this number: 16 parts of one episode suit one GPU, and
    2 parts of 8 episodes suit eight.

    Raises:
      ValueError: the episodes of a step do not divide over the devices.
    """
    total, parts = config.train.episodes_per_step, config.train.accumulation_steps
    if total % devices:
        multiple = -(-total // devices) * devices
        raise ValueError(
            f'config.train.episodes_per_step={total} must be a multiple of the {devices} devices '
            f'of all processes: set --config.train.episodes_per_step={multiple}'
        )
    each = total // devices
    fitting = next(p for p in range(min(parts, each), each + 1) if each % p == 0)
    config = config.copy_and_resolve_references()
    config.train.accumulation_steps = fitting
    return config


def runtime_summary(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, datasets: list[Videos]
) -> dict[str, str]:
    """Lines of the printed plan that the config does not hold: {'devices': …, 'data train': …}."""
    lines = {'devices': _devices(config, mesh)}
    for dataset in datasets:
        lines[f'data {dataset.split}'] = _clips(config, dataset)
    if datasets[0].extractor:
        lines['features'] = _features(datasets[0].extractor)
    lines['S, R  as stored'] = ', '.join(
        f'{key} {value}' for key, value in sorted(datasets[0].settings.items())
    )
    return lines


def _features(extractor) -> str:
    """'pooled [1, 1, 2048] of resnet50 in float16, 1 view, parameters 1a2b3c4d'."""
    features, views = extractor['features'], extractor['frames']['views']
    name = printable(extractor['backbone']['name'])
    return (
        f'{features["kind"]} {list(features["shape"])} of {name} in {features["dtype"]}, {views} '
        f'view{"s" * (views > 1)}, parameters {extractor["params_hash"][:8]}'
    )


def _devices(config, mesh) -> str:
    device, total = mesh.devices.flat[0], jax.device_count()
    text = (
        f'{mesh.size} x {device.device_kind} ({device.platform}), {jax.process_count()} '
        f'process(es), compute in {config.model.dtype}'
    )
    products = float32_products(device)
    if config.model.dtype == 'float32' and products != 'float32':
        text += f' (products {products} unless JAX_DEFAULT_MATMUL_PRECISION=highest)'
    if mesh.size < total:
        all_used = -(-config.train.episodes_per_step // total) * total
        text += (
            f'; {total - mesh.size} idle, --config.train.episodes_per_step={all_used} would use '
            f'all {total}'
        )
    return text


def _clips(config, dataset: Videos) -> str:
    """How many clips and classes a split has, and how many are missing."""
    length, read = config.episode.frames, frames_read(config)
    present = videos_present(dataset)
    text = f'{config.data.dataset}: {len(np.unique(dataset.labels))} classes, {len(dataset)} clips'
    if len(dataset.dropped):
        text += f' ({len(dataset.dropped)} shorter than {length} frames left out)'
    if dataset.clips_per_class:
        text += f', at most {dataset.clips_per_class} of each class'
    if present['expected']:
        text += f", videos present {present['present']:,} of {present['expected']:,}"
    absent = (present['expected_classes'] or 0) - present['classes']
    if absent > 0:
        text += f", {absent} of its {present['expected_classes']} classes have no video"
    repeating = int((np.asarray(dataset.num_frames) < read).sum()) if read > length else 0
    if repeating:
        text += f', {repeating} of fewer than {read} frames: a sampler sees some of them twice'
    return text
