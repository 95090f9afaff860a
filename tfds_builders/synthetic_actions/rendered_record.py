"""The record of a rendered clip. Worker processes import this by its name."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np

from fsar_jax.ingest.records import RecordSettings, record_from_file
from fsar_jax.ingest.video_builder import VideoSource
from fsar_jax.ingest.video_files import write_video
from tfds_builders.synthetic_actions import renderer


def render_record(
    source: VideoSource, clip: renderer.ClipSettings, settings: RecordSettings
) -> dict:
    """Renders a clip, encodes it as an .mp4 file and ingests that file like any other; then adds
    the truth."""
    class_name, seed = source.origin
    rendered = renderer.render_clip(class_name, seed, clip)
    with tempfile.TemporaryDirectory(prefix='synthetic_actions_') as folder:
        path = pathlib.Path(folder) / 'clip.mp4'
        write_video(path, rendered.frames, clip.fps)
        record = record_from_file(path, source.video_id, source.label, settings)
    kept = record['frame_index']
    scale = record['width'] / clip.size
    return record | {
        'action_start': min(int(np.searchsorted(kept, rendered.action_start)), len(kept) - 1),
        'action_end': int(np.searchsorted(kept, rendered.action_end, side='right')) - 1,
        'boxes': rendered.boxes[kept] * np.float32(scale),
    }
