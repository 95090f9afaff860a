"""ActivityNet, 64/12/24 classes of 70 untrimmed videos. See README.md."""

from tfds_builders.activitynet100.activitynet100_dataset_builder import Builder

__all__ = ['Builder']
