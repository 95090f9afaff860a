"""Shared by the tests of the builders: a benchmark whose small copy is what was published."""

import functools
import hashlib

import benchmark_copies as copies
import pytest

from fsar_jax import build
from fsar_jax.ingest.benchmark_builder import SPLITS


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Function: dataset -> its small copy, made once."""
    return functools.lru_cache(
        lambda dataset: copies.make_copy(tmp_path_factory.mktemp(dataset), dataset)
    )


@pytest.fixture
def small(monkeypatch, made):
    """Function: dataset -> its small copy, which from then on is what was published."""

    def make(dataset):
        videos, lists, lines, class_of = made(dataset)
        builder = build.BENCHMARKS[dataset]
        published = builder.published()
        info = {}
        for split in SPLITS:
            names = list(
                dict.fromkeys(
                    class_of[line] for line in sorted(lines[split], key=lines[split].index)
                )
            )
            names = [name for name in published[split]['classes'] if name in names]
            counts = {name: sum(class_of[line] == name for line in lines[split]) for name in names}
            info[split] = {'num_videos': len(lines[split]), 'classes': counts}
            if 'list_labels' in published[split]:
                info[split]['list_labels'] = published[split]['list_labels'][: len(names)]
        texts = {split: ''.join(f'{line}\n' for line in lines[split]).encode() for split in SPLITS}
        files = [
            {
                s: file._replace(sha256=hashlib.sha256(texts[s]).hexdigest())
                for s, file in mirror.items()
            }
            for mirror in builder.list_files()
        ]
        monkeypatch.setattr(builder, 'published', classmethod(lambda cls: info))
        monkeypatch.setattr(builder, 'list_files', classmethod(lambda cls: files))
        return videos, lists, lines, class_of

    return make
