"""activitynet100: ActivityNet, 64/12/24 classes of 70 untrimmed videos."""

from fsar_jax.ingest.benchmark_builder import BenchmarkBuilder


class Builder(BenchmarkBuilder):
    """ActivityNet, 64/12/24 classes of 70 untrimmed videos."""

    LISTS_FROM = ('R00Kie-Liu/Sampler/main/ActivityNet',)

    def other_names(self, name):
        # v_<youtube id>: some downloaders leave out the v_.
        return (name.removeprefix('v_'),)
