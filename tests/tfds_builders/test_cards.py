"""The README of each builder is its dataset card; the parts that repeat themselves are current."""

import pytest

from tfds_builders.cards import BUILDERS, parts_of, path_of, with_parts


@pytest.mark.parametrize('name', BUILDERS)
def test_the_card_is_what_the_code_says(name):
    readme, parts = path_of(name).read_text(), parts_of(name)
    assert with_parts(readme, parts) == readme, 'write it anew: python -m tfds_builders.cards'
    assert readme.startswith(f'# {name}: ')
    if BUILDERS[name].VIDEOS_FIELD == 'videos':  # a benchmark, with authors
        assert parts.keys() == {'splits', 'frames_folder', 'build', 'python', 'record', 'citation'}
        info = BUILDERS[name](data_dir='unused').info
        assert info.citation.strip() in readme and info.citation.count('@') == 2


def test_a_card_that_is_not_current_is_noticed():
    readme, parts = path_of('ucf101_arn').read_text(), parts_of('ucf101_arn')
    assert with_parts(readme.replace('9,154', '9,155'), parts) == readme
    with pytest.raises(ValueError, match='the README has the parts'):
        with_parts(readme.replace('<!-- card: record -->', ''), parts)
