"""kinetics100_cmn: Kinetics-100, the split of CMN (64/12/24 classes of 100 videos)."""

from fsar_jax.ingest.benchmark_builder import BenchmarkBuilder


class Builder(BenchmarkBuilder):
    """Kinetics-100, the split of CMN (64/12/24 classes of 100 videos)."""

    LISTS_FROM = ('tobyperrett/trx/main/splits/kinetics_CMN', 'ffmpbgrnn/CMN/master/kinetics-100')

    def other_names(self, name):
        # <youtube id>_<start>_<end>: some downloaders keep the id alone.
        return (name[: -len('_000000_000010')],)
