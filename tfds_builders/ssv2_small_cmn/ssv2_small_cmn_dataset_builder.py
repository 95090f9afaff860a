"""ssv2_small_cmn: Something-Something V2, the small split of CMN (64/12/24 classes of 100
videos)."""

from fsar_jax.ingest.benchmark_builder import BenchmarkBuilder
from fsar_jax.ingest.ssv2_annotations import disagreements


class Builder(BenchmarkBuilder):
    """Something-Something V2, the small split of CMN (64/12/24 classes of 100 videos)."""

    USUAL_FRAMES = 45
    LISTS_FROM = ('tobyperrett/trx/main/splits/ssv2_CMN', 'ffmpbgrnn/CMN/master/smsm-100')

    def check_annotations(self, splits, label):
        names = list(label)
        listed = [
            (s.video_id.rpartition('/')[2], names[s.label])
            for part in splits.values()
            for s in part
        ]
        return disagreements(self.annotation_folders(), listed)
