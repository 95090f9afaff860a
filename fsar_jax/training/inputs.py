"""Opens the splits of a run, fits it to its devices, and describes both for the printed plan."""

import jax
import ml_collections
import numpy as np

from fsar_jax.data import episodes, loader
from fsar_jax.data.dataset import Videos, open_dataset, videos_present
from fsar_jax.matchers.classifier import count_classes
from fsar_jax.stages import frames_read


def open_split(config: ml_collections.ConfigDict, split: str, query: int) -> Videos:
    """Opens a split, with the clips that are long enough.

    Args:
      query: how many query clips per class an episode takes.

    Raises:
      FileNotFoundError, ValueError: one line. The dataset is not built, or the split does not hold
        the way, shot and queries of an episode.
    """
    dataset = loader.usable(open_dataset(config.data.dataset, config.data.dir, split), config)
    episodes.check_dataset(dataset, config.episode.way, config.episode.shot, query)
    return dataset


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
    """The config with the number of sequential parts per step that it asks for, or fewer, so that
    each part has an episode for every device.

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
    fitting = max(p for p in range(1, parts + 1) if total % (p * devices) == 0)
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
    lines['S, R  as stored'] = ', '.join(
        f'{key} {value}' for key, value in sorted(datasets[0].settings.items())
    )
    return lines


def _devices(config, mesh) -> str:
    device, total = mesh.devices.flat[0], jax.device_count()
    text = (
        f'{mesh.size} x {device.device_kind} ({device.platform}), {jax.process_count()} '
        f'process(es), compute in {config.model.dtype}'
    )
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
    if present['expected']:
        text += f", videos present {present['present']:,} of {present['expected']:,}"
    absent = (present['expected_classes'] or 0) - present['classes']
    if absent > 0:
        text += f", {absent} of its {present['expected_classes']} classes have no video"
    repeating = int((np.asarray(dataset.num_frames) < read).sum()) if read > length else 0
    if repeating:
        text += f', {repeating} of fewer than {read} frames: a sampler sees some of them twice'
    return text
