"""A folder of your own clips as a dataset; see README.md."""

from tfds_builders.video_folder.video_folder_dataset_builder import Builder

__all__ = ['Builder']
