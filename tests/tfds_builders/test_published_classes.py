"""The classes of every benchmark's splits are the published ones, under the published labels.

The numbers come from the published splits, not from our files: of each split, the SHA-256 of the
lines `<label in the list>\\t<class>\\t<videos>\\n`, in the order of the labels.
"""

import hashlib

import pytest

from fsar_jax import build
from fsar_jax.ingest.benchmark_builder import SPLITS

PUBLISHED = {
    'ucf101_arn': (
        'd0bfe56f2b6b118eaa7db832244004ee033aa29fb5cb945b03ee7e622f2d82fa',
        '65809fad2ab31b1daaa31cbe4fc29845e9fa0ab9fac946d1113c3893b6bf446d',
        '44776530b82f50b0ac3d8ae23b3fd3946d9c6f03b78632078a989b34a5c4341b',
    ),
    'hmdb51_arn': (
        '9fd4c2652ec21e686464b3af2848b2355f61d4f1aef0497a95799adc17a3a91c',
        '4614e632c319f6a54e5084d184185e293a4e3fecb21dab322e2f62e2f92381aa',
        '021ae619b0cb37f5b9bd3264ab506e6e6c1b9491858f4a421c1af3cad7e3796b',
    ),
    'kinetics100_cmn': (
        'dfbb32e5831b336c8e7379e2fa1a3d05fe326c63cfe65a5152ab629ce988074c',
        '7ccae4debf4b93ad4a25bfb22ca83e3b96eed9e8702e415e35baa3e04439dd50',
        'c4a4b1001a3beb79a0a91ce23cf7b1feb5998c12293d95bd4804a7705538ef74',
    ),
    'ssv2_small_cmn': (
        '8ecd7cd85d2188bdb90a397c479f9c86aed239aa3ad13a18494da98a52949601',
        '6f65979749f717f3938285b58e508172e9395f7756dd607486e0396813d3e6e0',
        'e5e8d4b81df2cae0bfc22e7b23aa56cfc002251eda37c9a19340e7b8ee0592f1',
    ),
    'ssv2_full_otam': (
        'b7cbd56cede0e45ba46a3fe42d733257b7c7ab95de0475da0470cbe001ac70ce',
        'bb1685e97b79eb74326f36e8b03b7de5c3f71f632bd04969d089c8a2ea57ada1',
        'a5fc0a19e4f75e56b7e7c859145ec66040e008c9da1a4cf3255728d55967da98',
    ),
    'activitynet100': (
        'cd8e06790b8453590d70b06c466a14a3ddee6aaa2df6de1dd6c87f3a946a02a5',
        '5f5a289fcd844c29193221db31abe6c54dea50258eec1660407b9bebb6b1b247',
        '2aa4d3b1237a2efa598fec5d594589ac3d36408d38f602d511bdf75972c6e35b',
    ),
}


@pytest.mark.parametrize('dataset', build.BENCHMARKS)
def test_each_split_has_the_published_classes(dataset):
    published = build.BENCHMARKS[dataset].published()
    for split, expected in zip(SPLITS, PUBLISHED[dataset], strict=True):
        classes = published[split]['classes']
        labels = published[split].get('list_labels', list(classes))
        lines = [
            f'{label}\t{name}\t{videos}\n'
            for label, (name, videos) in zip(labels, classes.items(), strict=True)
        ]
        assert hashlib.sha256(''.join(lines).encode()).hexdigest() == expected, split
