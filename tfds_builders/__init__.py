"""One folder per dataset, laid out as by `tfds new`. Their common base is in fsar_jax/ingest.

Importing this package, or one of its folders, registers the builders with TFDS:

    import tensorflow_datasets as tfds
    import tfds_builders

    builder = tfds.builder('video_folder/mine', data_dir='data', videos='/my/clips')
    builder.download_and_prepare()
    builder.as_data_source('train')[0]['frames']        # uint8 [L, H, W, 3]
"""

from tfds_builders import (
    activitynet100,
    hmdb51_arn,
    kinetics100_cmn,
    ssv2_full_otam,
    ssv2_small_cmn,
    synthetic_actions,
    ucf101_arn,
    video_folder,
)

__all__ = [
    'activitynet100',
    'hmdb51_arn',
    'kinetics100_cmn',
    'ssv2_full_otam',
    'ssv2_small_cmn',
    'synthetic_actions',
    'ucf101_arn',
    'video_folder',
]
