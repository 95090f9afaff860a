"""ucf101_arn: UCF101 with the class split of ARN (70/10/21 classes)."""

from fsar_jax.ingest.benchmark_builder import BenchmarkBuilder


class Builder(BenchmarkBuilder):
    """UCF101 with the class split of ARN (70/10/21 classes)."""

    USUAL_FRAMES = 180
    LISTS_FROM = ('tobyperrett/trx/main/splits/ucf_ARN',)
    FOLDERS_ARE_THE_LIST = True
    ARCHIVES = ('UCF101.rar',)
