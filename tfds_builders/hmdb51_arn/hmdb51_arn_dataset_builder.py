"""hmdb51_arn: HMDB51 with the class split of ARN (31/10/10 classes)."""

from fsar_jax.ingest.benchmark_builder import BenchmarkBuilder


class Builder(BenchmarkBuilder):
    """HMDB51 with the class split of ARN (31/10/10 classes)."""

    USUAL_FRAMES = 90
    LISTS_FROM = ('tobyperrett/trx/main/splits/hmdb_ARN',)
    FOLDERS_ARE_THE_LIST = True
    ARCHIVES = ('hmdb51_org.rar',)
