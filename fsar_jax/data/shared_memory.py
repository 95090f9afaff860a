"""Shared memory, through which worker processes hand over what they read: how much the loader
needs, and whether it is there."""

from __future__ import annotations

import mmap
import os
import sys

from ml_collections import ConfigDict

FOLDER = '/dev/shm'  # Linux's; macOS has shared memory, but no such folder


def batches_ahead(config: ConfigDict, batch_size: int) -> int:
    """Elements that the loader keeps ready."""
    return max(1, config.data.prefetch) * batch_size


def per_worker(config: ConfigDict, batch_size: int) -> int:
    """Elements that each worker process keeps ready."""
    return -(-batches_ahead(config, batch_size) // config.data.num_workers)


def bytes_needed(
    config: ConfigDict, clip: int, clips_each: int, batch_size: int, count: int
) -> int:
    """The most bytes that config.data.num_workers processes keep in shared memory, for `count`
    elements of `clips_each` clips of `clip` bytes.

    Each process holds the elements of its queue and the one that it is reading. As many wait in
    this process, which holds another one while it copies it.
    """
    held = min(count, config.data.num_workers * (2 * per_worker(config, batch_size) + 2) + 1)
    return held * (
        clips_each * clip + 8 * mmap.PAGESIZE
    )  # labels, flips and the like take a page each


def bytes_for_validation(
    config: ConfigDict, clip: int, process_count: int, devices: int, count: int
) -> int:
    """What the evaluation on val (fsar_jax/evaluation/evaluate.py) needs. It runs while batches of
    training are kept ready. Arguments as of `bytes_needed`; a batch is rounded up to `devices`,
    those of all processes."""
    if not config.data.num_workers or not config.get('eval') or not config.eval.val_episodes:
        return 0
    share = lambda size: -(-size // devices) * devices // process_count
    videos = config.eval.videos_per_batch
    if config.eval.cache:
        return bytes_needed(config, clip, 1, share(videos), count)
    episode = config.episode
    asked = episode.get('query_classes') or episode.way
    clips = episode.way * episode.shot + asked * config.eval.query
    return bytes_needed(config, clip, clips, share(max(1, videos // clips)), count)


def check(config: ConfigDict, needed: int) -> None:
    """Raises ValueError unless `needed` bytes of shared memory are free: the system kills a process
    that writes beyond them."""
    asked = f'config.data.num_workers={config.data.num_workers}'
    without = 'set config.data.num_workers=0, whose threads need none'
    try:
        disk = os.statvfs(FOLDER)
    except OSError:
        if sys.platform == 'linux':
            raise ValueError(f'{asked} needs {FOLDER}, which is not there: {without}') from None
        return
    if not os.access(FOLDER, os.W_OK):
        raise ValueError(f'{asked} needs {FOLDER}, which may not be written: {without}')
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise ValueError(
            f'{asked} with config.data.prefetch={config.data.prefetch} keeps up to {_mib(needed)} '
            f'in {FOLDER}, which has {_mib(free)} free: set config.data.num_workers=0 (threads '
            'need none of it), lower config.data.prefetch, or make it larger (docker run '
            f'--shm-size={needed // 2**30 + 1}g)'
        )


def _mib(size):
    return f'{size / 2**20:,.1f} MiB'
