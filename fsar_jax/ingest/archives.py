"""Extracts the .rar archives of benchmarks, with whichever program is installed."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess

from fsar_jax.ingest.benchmark_files import normal
from fsar_jax.machine import file_lock
from fsar_jax.messages import printable
from fsar_jax.stopping import finish_first

# program -> arguments that extract a .rar into the working directory, without questions
EXTRACTORS = {
    'unrar': ('x', '-idq', '-o+'),
    '7zz': ('x', '-y', '-bd'),
    '7z': ('x', '-y', '-bd'),
    'unar': ('-quiet', '-force-overwrite', '-no-directory'),
    'bsdtar': ('-xf',),
}


def extracted(
    root: pathlib.Path, archives: tuple[str, ...], class_names: list[str], target_dir: pathlib.Path
) -> pathlib.Path:
    """The folder with the videos: `root`, or the folder that its .rar was extracted to.

    An archive is extracted once, by whichever process comes first, to
    `target_dir`/<name>-<digest of names and sizes>.

    Args:
      root: a .rar; or a folder with one of `archives`, or with a .rar for each class, and without
        folders of classes.

    Raises:
      ValueError: no program that extracts .rar is installed, or all that are failed.
    """
    sources = [root]
    if root.is_dir():
        classes = set(map(normal, class_names))
        of_classes = sorted(path for path in root.glob('*.rar') if normal(path.stem) in classes)
        sources = [root / name for name in archives if (root / name).is_file()][:1] or of_classes
        if not sources or any(
            normal(name) in classes for _, folders, _ in os.walk(root) for name in folders
        ):
            return root
    elif root.suffix.lower() != '.rar':
        return root
    # Archives that were added later, or replaced after a broken download, give another digest.
    digest = hashlib.sha256(
        repr([(path.name, path.stat().st_size) for path in sources]).encode()
    ).hexdigest()[:8]
    target = target_dir / f'{sources[0].stem if len(sources) == 1 else root.name}-{digest}'
    target_dir.mkdir(parents=True, exist_ok=True)
    with file_lock(target_dir / f'{target.name}.lock'):  # the other slices of a build wait here
        if not target.is_dir():
            _extract_all(sources, target)
    return target


def _extract_all(sources, target):
    failed = []
    for program in filter(shutil.which, EXTRACTORS):
        try:
            return _extract_all_with(program, sources, target)
        except ValueError as error:  # such as 7z without support for .rar: another may do it
            failed.append(str(error))
    raise ValueError(
        '; '.join(failed)
        or f'no program here extracts {printable(sources[0].name)}: install one of '
        f'{", ".join(EXTRACTORS)} (apt install unrar), or extract it elsewhere and give '
        '--videos=FOLDER'
    )


def _extract_all_with(program, sources, target):
    root = sources[0]
    draft = target.with_name(target.name + '.incomplete')
    shutil.rmtree(draft, ignore_errors=True)
    if len(sources) == 1:
        _extract(program, root, draft)
        sources = sorted(draft.rglob('*.rar'))  # HMDB51 is a .rar of one .rar per class
    for inner in sources:
        folder = draft / inner.stem
        _extract(program, inner, draft / 'inner')
        if draft in inner.parents:
            inner.unlink()
        # With or without a folder of the class's name inside: it ends as <class>/<video>.
        only = list((draft / 'inner').iterdir())
        (only[0] if len(only) == 1 and only[0].is_dir() else draft / 'inner').rename(folder)
        shutil.rmtree(draft / 'inner', ignore_errors=True)
    draft.rename(target)


def _extract(program, archive, folder):
    folder.mkdir(parents=True)
    command = [program, *EXTRACTORS[program], os.fspath(archive.resolve())]
    pipe, options = subprocess.PIPE, {'text': True, 'errors': 'replace'}
    done = subprocess.Popen(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, **options
    )
    with done, finish_first(done.kill):
        output, errors = done.communicate()
    if done.returncode:
        words = ' '.join((errors or output).split())[-200:]
        raise ValueError(
            f'{program} could not extract {printable(archive, 1000)}: '
            f'{printable(words) or f"status {done.returncode}"}'
        )
