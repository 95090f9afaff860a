"""ssv2_full_otam: Something-Something V2, the full split of OTAM (64/12/24 classes)."""

from fsar_jax.ingest.benchmark_builder import BenchmarkBuilder
from fsar_jax.ingest.ssv2_annotations import disagreements


class Builder(BenchmarkBuilder):
    """Something-Something V2, the full split of OTAM (64/12/24 classes)."""

    USUAL_FRAMES = 45
    LISTS_FROM = ('tobyperrett/trx/main/splits/ssv2_OTAM',)

    def check_annotations(self, splits, label):
        # val0 to val11 have no published names, and so nothing to compare with.
        names = list(label)
        listed = [
            (s.video_id.rpartition('/')[2], names[s.label])
            for split in ('train', 'test')
            for s in splits[split]
        ]
        return disagreements(self.annotation_folders(), listed)
