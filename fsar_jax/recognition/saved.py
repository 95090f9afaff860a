"""Writes the examples of a recogniser to one .safetensors file, and reads them back.

The arrays are the embeddings, 'embedding/…' with one row per example, and the small pictures as
JPEG bytes. The header has the rest as JSON: classes, names, preprocessing, which model made the
embeddings, and a checksum of it all. There is no pickle, so a file from a stranger runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save

from fsar_jax.files import write_whole
from fsar_jax.messages import one_line, printable
from fsar_jax.named_arrays import by_name, state_hash
from fsar_jax.recognition.models import Embedding
from fsar_jax.weights.checkpoint_file import read_torch
from fsar_jax.weights.safetensors_file import read_metadata

FORMAT, VERSION = 'fsar_jax_examples', 2  # key of the metadata, and version of what it holds
LISTS = ('class', 'name', 'sha256')  # of the examples, each with one entry per example


class Saved(NamedTuple):
    """What a file holds.

    Attributes:
      model: {'source': workdir or file, '' for the pretrained features; 'identity': SHA-256 of the
        weights; 'preprocessing': as of the model}.
      classes: names, in order.
      examples: {'class': […], 'name': […], 'sha256': […]}, an entry per example.
      embeddings: {'frames': array [M, …], …} by name.
      thumbnails: of every example, the JPEG bytes of its frames.
    """

    model: dict[str, Any]
    classes: list[str]
    examples: dict[str, list[str]]
    embeddings: dict[str, np.ndarray]
    thumbnails: list[list[bytes]]


def write_examples(
    path: str | os.PathLike[str],
    model: dict[str, Any],
    classes: list[str],
    examples: dict[str, list[str]],
    embeddings: Embedding,
    thumbnails: list[list[bytes]],
) -> None:
    """Writes the file, whole or not at all. Arguments as of `Saved`; `embeddings` is the stacked
    tree.

    Raises:
      ValueError: the name does not end in .safetensors; OSError, with the path.
    """
    if os.path.splitext(os.fspath(path))[1] != '.safetensors':
        raise ValueError(f'{printable(path, 1000)} does not end in .safetensors')
    jpegs = [data for of_clip in thumbnails for data in of_clip]
    arrays = {f'embedding/{name}': np.asarray(x) for name, x in by_name(embeddings).items()}
    arrays['thumbnails'] = np.frombuffer(b''.join(jpegs), np.uint8)
    arrays['thumbnail_sizes'] = np.array([len(data) for data in jpegs], np.int64)
    arrays['frames'] = np.array([len(of_clip) for of_clip in thumbnails], np.int64)
    about = {'version': VERSION, 'model': model, 'classes': classes, 'examples': examples}
    ordered = {name: np.asarray(array, order='C') for name, array in arrays.items()}
    about['sha256'] = _checksum(about, ordered)
    # One key, because safetensors writes several in no fixed order.
    write_whole(path, save(ordered, {FORMAT: json.dumps(about)}))


def _checksum(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of all that a file holds, but for this entry."""
    text = json.dumps({key: value for key, value in about.items() if key != 'sha256'})
    return hashlib.sha256(f'{text}\n{state_hash(arrays)}'.encode()).hexdigest()


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Whether `write_examples` wrote a file, as far as its first lines tell."""
    return FORMAT in read_metadata(path)


def read_examples(path: str | os.PathLike[str]) -> Saved:
    """Reads a file that `write_examples` wrote.

    Raises:
      OSError, ValueError: one line: there is no such file, it is another, or it is damaged.
    """
    shown = printable(path, 1000)
    other = f'{shown} is not a file of python -m fsar_jax.recognize --save (Recognizer.save)'
    if os.path.isdir(path) or os.path.splitext(os.fspath(path))[1] != '.safetensors':
        os.stat(path)  # it may not exist
        raise ValueError(other)
    text = read_metadata(path).get(FORMAT)
    arrays = read_torch(path)  # also says what is wrong with a file that has no such text
    if text is None:
        raise ValueError(other)
    try:
        about = json.loads(text)
        if about['version'] != VERSION:
            raise ValueError(f'version {about["version"]} of another release')
        if about['sha256'] != _checksum(about, arrays):
            raise ValueError('its content is not that of its checksum')
        sizes, frames = arrays['thumbnail_sizes'], arrays['frames']
        count = len(frames)
        if any(len(about['examples'][key]) != count for key in LISTS):
            raise ValueError('lists of different lengths')
        if not set(about['examples']['class']) <= set(about['classes']):
            raise ValueError('an example of no class')
        if sizes.sum() != len(arrays['thumbnails']) or frames.sum() != len(sizes):
            raise ValueError('pictures of other sizes')
        ends = np.cumsum(sizes)
        jpegs = [arrays['thumbnails'][end - size : end].tobytes() for size, end in zip(sizes, ends)]
        firsts = np.cumsum(frames) - frames
        embeddings = {
            name.removeprefix('embedding/'): np.asarray(array)
            for name, array in arrays.items()
            if name.startswith('embedding/')
        }
        if any(len(array) != count for array in embeddings.values()):
            raise ValueError('embeddings of other examples')
        return Saved(
            model={key: about['model'][key] for key in ('source', 'identity', 'preprocessing')},
            classes=[str(name) for name in about['classes']],
            examples={key: [str(x) for x in about['examples'][key]] for key in LISTS},
            embeddings=embeddings,
            thumbnails=[jpegs[i : i + n] for i, n in zip(firsts, frames)],
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f'{shown} is damaged, or of another release ({printable(one_line(error))}): fit the '
            'examples again and save them'
        ) from None


def as_trees(embeddings: dict[str, np.ndarray], like: Embedding, path: str) -> list[Embedding]:
    """The embedding of each example, in the structure of `like`, a tree of arrays or shapes of one
    example.

    Raises:
      ValueError: one line: the arrays are not those of such embeddings.
    """
    wanted = by_name(like)
    same = embeddings.keys() == wanted.keys() and all(
        embeddings[name].shape[1:] == tuple(leaf.shape) and embeddings[name].dtype == leaf.dtype
        for name, leaf in wanted.items()
    )
    if not same:
        raise ValueError(
            f'{printable(path, 1000)} holds other embeddings than the model makes: fit the '
            'examples again and save them'
        )
    structure = jax.tree.structure(like)
    count = len(next(iter(embeddings.values())))
    return [
        jax.tree.unflatten(structure, [embeddings[name][i] for name in wanted])
        for i in range(count)
    ]
