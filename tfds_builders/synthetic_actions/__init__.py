"""Procedurally rendered actions, encoded as real .mp4 files and ingested like anyone's: the dataset
that needs no download."""

from tfds_builders.synthetic_actions.synthetic_actions_dataset_builder import Builder

__all__ = ['Builder']
