"""UCF101 with the class split of ARN (70/10/21 classes). See README.md."""

from tfds_builders.ucf101_arn.ucf101_arn_dataset_builder import Builder

__all__ = ['Builder']
