"""Shared by all tests: the reader of the parity fixtures."""

import json
import pathlib

import numpy as np
import pytest

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'


class Fixture:
    """One .npz of the published code: `inputs`, `weights`, `outputs`, `cotangents`, `gradients`, `weight_gradients`, `meta`."""

    def __init__(self, name):
        with np.load(FIXTURES / f'{name}.npz') as z:
            self.meta = json.loads(str(z['meta']))
            pick = lambda prefix: {k.removeprefix(prefix): z[k] for k in z.files if k.startswith(prefix)}
            self.inputs, self.weights, self.outputs = pick('in/'), pick('w/'), pick('out/')
            self.cotangents, self.gradients, self.weight_gradients = pick('cot/'), pick('grad/'), pick('gradw/')

    def support_by_class(self, support):
        """Support videos [videos, …] → [way, shot, …]: class c is the label value c, whatever the order in the file."""
        labels = self.inputs['support_labels']
        return np.stack([support[labels == c] for c in range(int(labels.max()) + 1)])


@pytest.fixture(scope='session')
def published():
    """published(name) → Fixture."""
    return Fixture


def assert_published(ours, reference, name='', scale=1e-4):
    """|a − b| ≤ scale · max(1, max|reference|), the tolerance of the fixtures."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f'{name}: shape {ours.shape}, published {reference.shape}'
    worst, allowed = np.abs(ours - reference).max(), scale * max(1.0, np.abs(reference).max())
    assert worst <= allowed, f'{name}: off by {worst:.2e}, allowed {allowed:.2e}'


@pytest.fixture(scope='session')
def assert_close_to_published():
    return assert_published
