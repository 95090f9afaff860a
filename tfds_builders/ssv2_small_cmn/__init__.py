"""Something-Something V2, the small split of CMN (64/12/24 classes of 100 videos). See
README.md."""

from tfds_builders.ssv2_small_cmn.ssv2_small_cmn_dataset_builder import Builder

__all__ = ['Builder']
