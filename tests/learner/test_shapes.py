"""A stage of a user has what the docs ask for and returns the documented shapes, or one line says
what is wrong."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fsar_jax
from fsar_jax.config import validate
from fsar_jax.matchers import MATCHERS
from fsar_jax.matchers.matcher import Matcher
from fsar_jax.samplers.sampler import Sampler
from fsar_jax.stage import Loss, Stage

PARTS = ('sampler', 'backbone', 'patch_enrichment', 'frame_enrichment', 'matcher')
WAY, SHOT, QUERIES, LENGTH = 3, 2, 4, 6


class Mean(Matcher):
    def project(self, features, train=False):
        return features.frames.mean(1)

    def __call__(self, support, query, train=False):
        return jnp.einsum('qd,wsd->qws', query, support).mean(-1)


class WithoutProject(Matcher):
    def __call__(self, support, query, train=False):
        return jnp.zeros((len(query), len(support)))


class WithoutCall(Matcher):
    def project(self, features, train=False):
        return features.frames


class NoMatcher(Stage):
    project, __call__ = Mean.project, Mean.__call__


class Transposed(Mean):
    def __call__(self, support, query, train=False):
        return super().__call__(support, query).T


class NoneOfThese(Mean):
    def __call__(self, support, query, train=False):
        return jnp.pad(super().__call__(support, query), ((0, 0), (0, 1))), {'more': query}


class OneForAll(Mean):
    def project(self, features, train=False):
        return features.frames.mean((0, 1))


class Nothing(Mean):
    def project(self, features, train=False):
        pass


class WithoutLosses(Mean):
    def losses(self, outputs, labels, classes=None):
        pass


class OfEachClass(Mean):
    def losses(self, outputs, labels, classes=None):
        return {'each': Loss(1.0, outputs['temporal_matching'])}


class OfMaps(Sampler):
    takes_maps = True


class EverySecond(OfMaps):
    def __call__(self, videos, train=False):
        return {'frames': videos[:, ::2]}


class AverageOfTwo(OfMaps):
    def frames_read(self, frames):
        return 2 * frames

    def __call__(self, videos, train=False):
        return {'frames': (videos[:, ::2] + videos[:, 1::2]) / 2}


class NotAsManyAsItsSetting(OfMaps):
    frames: int = 4

    def frames_read(self, frames):
        return LENGTH

    def __call__(self, videos, train=False):
        return {'frames': videos[:, :5]}


class FirstFour(NotAsManyAsItsSetting):
    def frames_read(self, frames):
        return 20

    def __call__(self, videos, train=False):
        return {'frames': videos[:, : self.frames]}


class FramesAlone(OfMaps):
    def __call__(self, videos, train=False):
        return videos


class HalfOfTheChannels(Stage):
    def __call__(self, tokens, train=False):
        return tokens[..., ::2]


class HalfOfTheTokens(Stage):
    def __call__(self, tokens, train=False):
        return tokens[..., ::2, :]


class Pooled(Stage):
    def __call__(self, frames, train=False):
        return frames.mean((1, 2))


class PooledClips(Pooled):
    takes_clips = True


def learner_with(**stages):
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.enrichment.patches = 2
    return fsar_jax.create_learner(config.model, **stages)


def run(**stages):
    """The shapes of a prediction with these stages, nothing is computed."""
    shape = (LENGTH, 4, 4, 8)
    return jax.eval_shape(
        lambda: learner_with(**stages).init_with_output(
            jax.random.key(0), jnp.zeros((WAY, SHOT, *shape)), jnp.zeros((QUERIES, *shape))
        )[0]
    )


CLIPS = 'B = 6 clips, expected B as the first axis of every array'
MAPS = 'expected [B, L, H, W, C] ='
ADD = 'add it, as fsar_jax/matchers/matcher.py says'
WRONG = {
    WithoutProject: f'matcher {{}} has no `project(features, train)`: {ADD}',
    WithoutCall: f'matcher {{}} has no `__call__(support, query, train)`: {ADD}',
    Transposed: 'matcher {} returned logits [3, 4], expected [Q, way] = [4, 3]',
    NoneOfThese: 'matcher {} returned logits [4, 4], expected [Q, way] = [4, 3]',
    OneForAll: f'matcher {{}}.project returned [8] for {CLIPS}',
    Nothing: f'matcher {{}}.project returned no array for {CLIPS}',
    EverySecond: f'sampler {{}} returned frames [6, 3, 4, 4, 8], {MAPS} [6, 6, H, W, C]',
    NotAsManyAsItsSetting: f'sampler {{}} returned frames [6, 5, 4, 4, 8], {MAPS} [6, 4, H, W, C]',
    FramesAlone: "sampler {} returned no dict with 'frames', "
    "expected {{'frames': [B, L, H, W, C], …}}",
    HalfOfTheChannels: 'frame enrichment {} returned tokens [6, 6, 4], '
    'expected [B, N, D] = [6, 6, 8]',
    HalfOfTheTokens: 'patch enrichment {} returned tokens [6, 6, 2, 8], '
    'expected [B, L, N, D] = [6, 6, 4, 8]',
    Pooled: 'backbone {} returned maps [36, 8], expected [B, h, w, C] = [36, h, w, C]',
    PooledClips: 'backbone {} returned maps [6, 4, 8], expected [B, l, h, w, C] = [6, l, h, w, C]',
}


@pytest.mark.parametrize('stage', WRONG)
def test_what_is_wrong_is_one_line_that_names_the_stage(stage):
    message = WRONG[stage].format(stage.__name__)
    part = next(x for x in PARTS if message.startswith(x.replace('_', ' ')))
    with pytest.raises(ValueError) as error:
        run(**{part: stage()})
    assert str(error.value) == message


def test_a_stage_of_another_kind_is_one_line(monkeypatch):
    monkeypatch.setitem(MATCHERS, 'mine', NoMatcher)
    config = fsar_jax.default_config()
    config.model.matcher.name = 'mine'
    for asked in (lambda: fsar_jax.create_learner(config.model), lambda: validate(config)):
        with pytest.raises(ValueError) as error:
            asked()
        assert str(error.value) == (
            'matcher NoMatcher is no Matcher: derive the class from fsar_jax.matchers.matcher.'
            'Matcher'
        )


def test_a_sampler_may_make_one_frame_of_two():
    assert run(sampler=AverageOfTwo()).logits.shape == (QUERIES, WAY)


def test_a_sampler_that_chooses_takes_any_number_of_frames():
    assert FirstFour().frames_read(4) != LENGTH
    assert run(sampler=FirstFour()).logits.shape == (QUERIES, WAY)


@pytest.mark.parametrize(
    'matcher, message',
    [
        (WithoutLosses(), 'matcher WithoutLosses.losses returned no dict of Loss(weight, value)'),
        (
            OfEachClass(),
            "matcher OfEachClass.losses returned 'each' of shape [4, 3], expected [Q] = [4] or one "
            'number',
        ),
    ],
)
def test_losses_that_are_none_are_one_line(matcher, message):
    outputs = {'temporal_matching': np.zeros((QUERIES, WAY), np.float32)}
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        learner_with(matcher=matcher).losses(outputs, np.zeros(QUERIES, np.int32))


def test_a_matcher_with_batch_norm_says_how_often_it_updates_the_statistics():
    learner = learner_with(matcher=Mean())
    assert learner.batch_norm_passes(['backbone'], QUERIES) == {'backbone': 2}
    with pytest.raises(ValueError, match=r'^matcher Mean has batch norm, but no `batch_norm_pas'):
        learner.batch_norm_passes(['backbone', 'matcher'], QUERIES)
