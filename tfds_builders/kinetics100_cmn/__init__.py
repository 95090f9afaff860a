"""Kinetics-100, the split of CMN (64/12/24 classes of 100 videos). See README.md."""

from tfds_builders.kinetics100_cmn.kinetics100_cmn_dataset_builder import Builder

__all__ = ['Builder']
