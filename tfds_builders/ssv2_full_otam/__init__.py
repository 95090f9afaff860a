"""Something-Something V2, the full split of OTAM (64/12/24 classes). See README.md."""

from tfds_builders.ssv2_full_otam.ssv2_full_otam_dataset_builder import Builder

__all__ = ['Builder']
