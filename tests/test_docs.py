"""What the documents name exists: files, links, headings, modules, functions, configs and flags."""

import importlib.util
import re

import pytest
from tiny_run import REPOSITORY

from fsar_jax.config import SETTINGS

# A changelog names what is gone, too.
PAGES = sorted(
    path
    for folder in ('', 'docs', 'tfds_builders/*')
    for path in REPOSITORY.glob(f'{folder}/*.md'.lstrip('/'))
    if path.name != 'CHANGELOG.md'
)
named = [str(path.relative_to(REPOSITORY)) for path in PAGES]


def module_or_attribute(name):
    """Whether 'fsar_jax.data.episodes.write_episodes' can be imported, as far as it is given."""
    parts = name.split('.')
    for length in range(len(parts), 0, -1):
        try:
            spec = importlib.util.find_spec('.'.join(parts[:length]))
        except ModuleNotFoundError:
            continue
        if spec is not None:
            found = importlib.import_module('.'.join(parts[:length]))
            for attribute in parts[length:]:
                if not hasattr(found, attribute):
                    return False
                found = getattr(found, attribute)
            return True
    return False


def anchor(heading):
    """The anchor that the usual hosts give a heading."""
    return re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')


@pytest.fixture(params=PAGES, ids=named)
def page(request):
    return request.param


def test_paths_that_are_named_exist(page):
    text = page.read_text()
    folders = 'fsar_jax|configs|benchmarks|docs|tests|tfds_builders|notebooks'
    paths = set(re.findall(rf'(?<![\w/.<-])(?:{folders})/[\w./*-]*', text))
    assert not [path for path in paths if not list(REPOSITORY.glob(path.rstrip('./')))]


def test_modules_that_are_named_as_files_exist(page):
    """`training/state.py` is in fsar_jax/, or beside the page; `layers.py` too."""
    names = set(re.findall(r'`([\w/]+\.py)(?:[`:])', page.read_text()))
    folders = (REPOSITORY, REPOSITORY / 'fsar_jax', page.parent)
    assert not [name for name in names if not any((f / name).exists() for f in folders)]


def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if '://' in target or target.startswith('mailto:'):
            continue
        file, _, heading = target.partition('#')
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r'^#+ (.*)$', linked.read_text(), re.MULTILINE)
            assert heading in {anchor(each) for each in headings}, target


def test_modules_and_functions_that_are_named_can_be_imported(page):
    names = set(re.findall(r'(?<![\w/.-])fsar_jax(?:\.[A-Za-z_]\w*)+', page.read_text()))
    assert not [name for name in names if not module_or_attribute(name)]


def test_settings_that_are_named_exist(page):
    text = page.read_text()
    keys = set(re.findall(r'--config\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)', text))
    keys |= set(
        re.findall(r'`((?:model|episode|data|train|eval)\.[a-z_0-9]+(?:\.[a-z_0-9]+)*)[`=]', text)
    )
    sections = {key.rpartition('.')[0] for key in SETTINGS}
    sections |= {section.rpartition('.')[0] for section in sections}
    assert not [key for key in keys if key not in SETTINGS and key not in sections]


def test_the_method_that_is_quoted_is_the_one_in_its_file():
    """Its code lines stand in the file in this order; docstrings are left out."""
    section = (REPOSITORY / 'docs/how_it_works.md').read_text().split('## Add a method\n')[1]
    quoted = section.split('```python\n')[1].split('```')[0].splitlines()
    lines = iter((REPOSITORY / 'fsar_jax/matchers/matching_net.py').read_text().splitlines())
    assert not [line for line in quoted if line and line not in lines]


@pytest.mark.parametrize('text, found', [('fsar_jax.build', True), ('fsar_jax.built', False)])
def test_a_name_that_does_not_exist_is_noticed(text, found):
    assert module_or_attribute(text) is found
    assert module_or_attribute('fsar_jax.evaluation.results.write_result') is False
    assert module_or_attribute('fsar_jax.evaluation.results.write_results') is True
