"""HMDB51 with the class split of ARN (31/10/10 classes). See README.md."""

from tfds_builders.hmdb51_arn.hmdb51_arn_dataset_builder import Builder

__all__ = ['Builder']
