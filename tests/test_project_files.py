"""What stands beside the code: licence, citation, changes, and the habits that are written down."""

import configparser
import re

import yaml
from tiny_run import REPOSITORY

import fsar_jax


def settings():
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / 'setup.cfg')
    return parser


def test_one_version_and_one_licence():
    metadata = settings()['metadata']
    citation = yaml.safe_load((REPOSITORY / 'CITATION.cff').read_text())
    assert metadata['version'] == fsar_jax.__version__ == str(citation['version'])
    assert metadata['license'] == citation['license'] == 'Apache-2.0'
    licence = (REPOSITORY / 'LICENSE').read_text()
    assert 'Version 2.0, January 2004' in licence and len(licence) > 11_000


def test_the_papers_are_in_the_citation():
    citation = yaml.safe_load((REPOSITORY / 'CITATION.cff').read_text())
    assert citation['cff-version'] == '1.2.0' and citation['authors'] and citation['message']
    methods = {re.match(r'\w+', paper['notes'])[0] for paper in citation['references']}
    assert methods >= set('STRM TA2N VIM MASTAF TRX OTAM HyRSM ProtoNet MatchingNet'.split())
    for paper in citation['references']:
        assert paper['title'] and all(author['family-names'] for author in paper['authors'])
        assert 'doi' not in paper or paper['doi'].startswith('10.')


def test_the_changes_name_what_moved():
    changes = (REPOSITORY / 'CHANGELOG.md').read_text()
    assert '## Unreleased' in changes and f'## {fsar_jax.__version__}' in changes
    for path in REPOSITORY.glob('fsar_jax/**/*.py'):
        old = re.search(r"^moved\(__spec__.name, .*'(fsar_jax\.\w+)', ", path.read_text(), re.M)
        if old:
            name = '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts)
            assert f'| `python -m {name}` | `python -m {old[1]}` |' in changes


def test_one_version_of_ruff_everywhere():
    [pinned] = re.findall(r'^ruff==(.+)$', settings()['options.extras_require']['test'], re.M)
    hooks = yaml.safe_load((REPOSITORY / '.pre-commit-config.yaml').read_text())['repos']
    [published] = [hook for hook in hooks if hook['repo'].endswith('/ruff-pre-commit')]
    assert published['rev'] == f'v{pinned}'
    for lock in ('lock.txt', 'lock-oldest.txt'):
        assert f'\nruff=={pinned}\n' in (REPOSITORY / lock).read_text()


def test_the_hosted_tests_run_the_script_of_ci():
    workflow = yaml.safe_load((REPOSITORY / '.github/workflows/tests.yml').read_text())
    steps = workflow['jobs']['tests']['steps']
    assert [step['run'] for step in steps if 'run' in step] == ['.ci/run']
    offered = next(step['with']['python-version'] for step in steps if 'with' in step).split()
    assert {'3.11', '3.12', '3.13'} <= set(offered)
    assert (REPOSITORY / '.ci/run').stat().st_mode & 0o111


def test_revisions_to_ignore_in_blame_are_whole_hashes():
    lines = (REPOSITORY / '.git-blame-ignore-revs').read_text().splitlines()
    hashes = [line for line in lines if line and not line.startswith('#')]
    assert hashes and all(re.fullmatch(r'[0-9a-f]{40}', line) for line in hashes)
