"""synthetic_actions: 156 actions as real encoded video, with the truth about when and where they
happen."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import tensorflow_datasets as tfds

from fsar_jax.ingest.records import number
from fsar_jax.ingest.video_builder import VideoBuilder, VideoConfig, VideoList, VideoSource
from tfds_builders.synthetic_actions import renderer
from tfds_builders.synthetic_actions.rendered_record import render_record


@dataclasses.dataclass(eq=False, kw_only=True)
class SyntheticActionsConfig(VideoConfig):
    """What is rendered.

    size: height and width in pixels.  num_frames, fps: of a clip.  seed: of everything that is
    drawn.
    """

    short_side: int = 0  # 0: stored as rendered
    size: int = 64
    num_frames: int = 32
    fps: int = 12
    clips_per_class: int = 40
    seed: int = 0

    def record_settings(self):
        return dataclasses.replace(
            super().record_settings(), short_side=self.short_side or self.size
        )

    def settings(self):
        return super().settings() | {
            'size': self.size,
            'num_frames': self.num_frames,
            'fps': self.fps,
            'clips_per_class': self.clips_per_class,
            'seed': self.seed,
        }


class Builder(VideoBuilder):
    """Procedurally rendered clips of 156 actions, most of which differ from another only in
    temporal order."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [
        SyntheticActionsConfig(
            name='aligned', description='The action fills the clip at constant speed.'
        ),
        SyntheticActionsConfig(
            name='misaligned',
            description='Onset, duration and speed of the action vary from clip to clip.',
        ),
        SyntheticActionsConfig(
            name='shifted',
            description='As aligned, the action displaced by up to a quarter of the frame.',
        ),
        SyntheticActionsConfig(
            name='untrimmed',
            description='The action takes about 30% of the clip, other things move elsewhere.',
        ),
        SyntheticActionsConfig(
            name='spliced',
            description='The action is one shot of about 30% of the clip, between other shots.',
        ),
        SyntheticActionsConfig(
            name='two_actions',
            description='Two shots of two actions, of which one is of the class.',
        ),
        SyntheticActionsConfig(
            name='two_objects',
            description='As two_actions, and every class has objects of its own.',
        ),
        SyntheticActionsConfig(
            name='two_scenes',
            description='As two_actions, and every class takes place in one of 16 scenes.',
        ),
        SyntheticActionsConfig(
            name='small',
            description='A small object does two things in its place, anywhere in the frame.',
            size=96,
        ),
        SyntheticActionsConfig(
            name='small_plain', description='As small, on ground of one colour.', size=96
        ),
    ]

    def truth_features(self):
        return {
            'action_start': number(np.int32, 'first stored frame of the action'),
            'action_end': number(np.int32, 'last stored frame of the action'),
            'boxes': tfds.features.Tensor(
                shape=(None, 4),
                dtype=np.float32,
                doc='where it happens in each stored frame: x0, y0, x1, y1 in pixels',
            ),
        }

    def list_videos(self):
        config = self.builder_config
        if config.clips_per_class < 1:
            raise ValueError(f'clips_per_class={config.clips_per_class} must be at least 1')
        if config.seed < 0:
            raise ValueError(f'seed={config.seed} must be at least 0')
        classes = renderer.classes_of(config.name)
        label = {name: i for i, name in enumerate(classes.CLASSES)}

        def source(name, clip):
            seed = (config.seed, label[name], clip)
            return VideoSource(f'{name}/{clip:03d}', label[name], (name, seed), f'{clip:03d}')

        splits = {
            split: [source(name, clip) for name in names for clip in range(config.clips_per_class)]
            for split, names in classes.SPLITS.items()
        }
        return VideoList(list(classes.CLASSES), splits)

    def record_maker(self):
        config = self.builder_config
        clip = renderer.ClipSettings(config.size, config.num_frames, config.fps, config.name)
        return functools.partial(render_record, clip=clip, settings=config.record_settings())
