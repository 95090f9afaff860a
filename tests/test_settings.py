"""Settings: one line each, in the module that reads it; what is made of these lines."""

import ast
import dataclasses
import functools
import json
import pathlib
import pickle
import re
import subprocess
import sys

import flax.linen as nn
import jax.numpy as jnp
import pytest
from tiny_run import REPOSITORY, get_config

from fsar_jax import config as configuration
from fsar_jax import settings
from fsar_jax.config import SECTIONS, SETTINGS, default_config, validate, with_newer_settings
from fsar_jax.fields import Path, build, check_section, setting, settings_of, union
from fsar_jax.learner import create_learner
from fsar_jax.matchers import MATCHERS
from fsar_jax.matchers.matcher import Matcher
from fsar_jax.plan import same
from fsar_jax.stages import chosen
from fsar_jax.training import run_settings

OLDER = REPOSITORY / 'tests/fixtures/config_of_an_older_run.json'
# Fields of a network that the library may set.
OF_NETWORKS = {
    *('block', 'blocks', 'stem', 'pool', 'width', 'width_multiplier', 'depth_multiplier'),
    *('patch', 'depth', 'heads', 'grid', 'registers', 'layer_scale', 'clip', 'quick_gelu'),
    *('published_start', 'version', 'frames', 'size'),
}
STAGES = {
    f'{section}.{choice}': module
    for section, part in SECTIONS.items()
    for choice, module in part.stages.items()
    if module
}


class One(nn.Module):
    width: int = setting(4, at_least=1, affects='model', help='width')
    rate: float | None = setting(None, affects='training', help='rate')
    sizes: tuple[int, ...] = setting((2,), affects='model', help='sizes')
    pair: tuple[float, float] = setting((1.0, 2.0), affects='model', help='pair')
    file: Path | None = setting(None, affects='start', help='file')
    shared: str = 'code'


class Another(nn.Module):
    width: int = setting(8, at_least=1, affects='model', help='width')


def test_the_annotation_gives_the_type():
    found = {
        name: (known.kind, known.optional, known.length) for name, known in settings_of(One).items()
    }
    assert found == {
        'width': (int, False, None),
        'rate': (float, True, None),
        'sizes': (int, False, None),
        'pair': (float, False, 2),
        'file': ('path', True, None),
    }
    with pytest.raises(TypeError, match='Wrong.x is a setting of type .*dict.*: give it one of'):
        settings_of(
            dataclasses.make_dataclass('Wrong', [('x', dict, setting(None, affects='model'))])
        )


def test_a_number_may_be_whole_by_default_and_takes_fractions_all_the_same():
    Part = dataclasses.make_dataclass(
        'Part', [('x', float, setting(0)), ('pair', tuple[float, float], setting((1, 2)))]
    )
    defaults = {name: known.default for name, known in settings_of(Part).items()}
    assert defaults == {'x': 0, 'pair': (1, 2)} and isinstance(defaults['x'], float)
    assert all(isinstance(x, float) for x in defaults['pair'])


def test_what_a_setting_affects_is_one_of_a_few():
    with pytest.raises(TypeError, match="affects='modle' is not one of model, result, training"):
        setting(1, affects='modle')


def test_a_matcher_of_a_session_counts_at_once(monkeypatch):
    """Written in a cell of a notebook, and then written anew with another default."""

    def own(default):
        class Own(Matcher):
            strength: float = setting(default, help='how strong')

            def compare_pairs(self, support, query):
                return support, query

        return Own

    matchers = dict(MATCHERS)
    try:
        for default in (1.0, 2.0):
            MATCHERS['own'] = own(default)
            config = default_config()
            config.model.matcher.name = 'own'
            assert config.model.matcher.strength == default
            assert create_learner(config.model).matcher.strength == default
            config.model.matcher.update(name='action_coordination', metric='own')
            validate(config)
        assert SETTINGS['model.matcher.strength'].help == 'how strong'
    finally:
        MATCHERS.pop('own')
        default_config()
    assert MATCHERS == matchers and 'model.matcher.strength' not in SETTINGS


def test_one_name_with_two_lines_is_an_error():
    with pytest.raises(ValueError) as error:
        union((One, Another))
    assert str(error.value) == (
        "One and Another both have a setting 'width', with different lines (default 4 and 8): make "
        'them equal, or rename one'
    )
    assert union((One, One)) == settings_of(One)


def test_a_default_of_its_own_follows_the_choice_until_it_is_set():
    config = default_config()
    backbone = config.model.backbone
    seen = []
    for name in ('resnet_small', 'efficientnet_lite0', 'resnet50', 'efficientnet_lite2'):
        backbone.name = name
        copies = pickle.loads(pickle.dumps(config)), config.copy_and_resolve_references()
        seen.append({backbone.normalize, *(copy.model.backbone.normalize for copy in copies)})
    assert seen == 2 * [{'unit'}, {'efficientnet_lite'}]
    backbone.normalize = 'imagenet'
    backbone.name = 'resnet_small'
    assert backbone.normalize == 'imagenet'
    recipe = get_config('strm', 'ssv2').model.backbone
    assert recipe.normalize == 'unit'
    recipe.name = 'efficientnet_lite1'
    assert recipe.normalize == 'efficientnet_lite'


def test_a_stage_is_built_of_its_section_and_of_what_all_share():
    section = {'width': 6, 'sizes': [1, 3], 'shared': 'of the section', 'unknown': 1}
    assert build(One, section, {'shared': 'paper', 'width': 7}) == One(
        6, sizes=(1, 3), shared='paper'
    )
    assert build(One, section, {}).shared == 'of the section'
    assert build(None, section, {}) is None


@pytest.mark.parametrize('name', STAGES)
def test_every_registered_choice_is_reached_through_the_default_config(name):
    section, choice = name.rsplit('.', 1)
    section = section.removeprefix('model.')
    reached = []
    for key in SECTIONS[f'model.{section}'].settings():
        known = SETTINGS[f'model.{section}.{key}']
        value = {str: choice, bool: True, float: 0.5}.get(known.kind)
        config = default_config()
        if (
            known.choices
            and choice not in known.choices
            or key not in ('name', 'patch', 'frame', 'temporal_transform', 'weight')
        ):
            continue
        config.model[section][key] = value
        if any(module is STAGES[name] for _, module in chosen(config.model).values()):
            create_learner(config.model)
            reached.append(key)
    assert reached, f'no setting of model.{section} chooses {choice}'


@pytest.mark.parametrize('name', STAGES)
def test_the_default_of_a_module_is_that_of_the_config(name):
    section, choice = name.rsplit('.', 1)
    values = default_config().model[section.removeprefix('model.')]
    module = STAGES[name]
    for key, known in settings_of(module).items():
        usual = SETTINGS[f'{section}.{key}']
        if known.own_default:
            values.name, usual = choice, dataclasses.replace(usual, default=known.default)
        assert known == usual
        default = next(
            field.default
            for field in dataclasses.fields(getattr(module, 'func', module))
            if field.name == key
        )
        assert values[key] == default == known.default, key


def test_a_field_that_is_filled_from_elsewhere_has_the_default_of_its_setting():
    """What all stages share, and what the query-class similarity shares with the matcher."""
    elsewhere = {
        'variant': 'model.variant',
        'align_at_test': 'model.align_at_test',
        'classes': 'model.classifier.classes',
        'classifier_weight': 'model.classifier.weight',
        'cardinalities': 'model.matcher.cardinalities',
        'cardinality_reduction': 'model.matcher.cardinality_reduction',
        'dropout': 'model.matcher.dropout',
        'metric': 'model.matcher.metric',
        'tuples_share': 'model.matcher.tuples_share',
        'tuples_seed': 'model.matcher.tuples_seed',
        'tuples_share_in_training': 'model.matcher.tuples_share_in_training',
    }
    built = {
        'frozen': False,
        'dtype': jnp.float32,
        'scan_network': dataclasses.MISSING,
        'prepared': False,  # only for frames that a test embeds alone
        'parts': (1,),  # the learner knows those of an episode
    }
    met = set()
    for name, module in STAGES.items():
        fields = dataclasses.fields(getattr(module, 'func', module))
        fixed = {'parent', 'name', *getattr(module, 'keywords', ())}
        for field in fields:
            if 'setting' not in field.metadata and field.name not in fixed and field.init:
                if field.name in elsewhere:
                    assert field.default == SETTINGS[elsewhere[field.name]].default, (name, field)
                elif field.name not in OF_NETWORKS:
                    assert field.default == built[field.name], (name, field)
                met.add(field.name)
    assert met >= elsewhere.keys()


def test_every_setting_is_read():
    """Each is a field that its module reads as self.<name>, an attribute that code reads, or what a
    part of the model starts from."""
    code = {
        path: path.read_text()
        for path in (REPOSITORY / 'fsar_jax').rglob('*.py')
        if path.name not in ('recipe.py', 'plan.py') and 'configs' not in path.parts
    }
    for key, known in SETTINGS.items():
        name = key.rpartition('.')[2]
        reads = re.compile(rf'\.{name}\b(?! *=[^=])|settings\.{name}\b')
        assert known.starts or any(reads.search(text) for text in code.values()), (
            f'nothing reads {key}'
        )


def test_a_start_is_a_part_of_the_learner_that_says_what_its_authors_start_it_from():
    config = get_config('vim')
    starts = {known.starts: key for key, known in SETTINGS.items() if known.affects == 'start'}
    assert starts == {
        'sampler.scan_network': 'model.sampler.scan_weights',
        'backbone': 'model.backbone.weights',
    }
    for part in starts:
        network = functools.reduce(getattr, part.split('.'), create_learner(config.model))
        assert network.published_start in ('', 'ImageNet')


def statements(path: pathlib.Path) -> str:
    """The code of a file without comments and docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            body[0] = ast.Pass()
    return ast.unparse(tree)


# {section of config.model: the folder of its stages}
FOLDERS = {
    'sampler': 'samplers',
    'backbone': 'backbones',
    'enrichment': 'enrichment',
    'matcher': 'matchers',
    'classifier': 'matchers',
    'query_similarity': 'matchers',
}
# The files in configs/ choose values, and so does what they share: the recipe of the papers.
CONFIGS = ('configs', 'recipe.py')


def test_a_setting_of_a_stage_is_named_in_its_room_alone():
    """Elsewhere in fsar_jax/ no code has 'model.matcher.dim' or matcher.dim: the rooms are asked,
    or the metadata of the settings."""
    package = REPOSITORY / 'fsar_jax'
    code = {
        path.relative_to(package): statements(path)
        for path in package.rglob('*.py')
        if not set(CONFIGS) & {*path.relative_to(package).parts}
    }
    assert len(code) > 90 and {path.parts[0] for path in code} >= {'weights', *FOLDERS.values()}
    found = {
        f'{path}: {key}'
        for key in SETTINGS
        if key.startswith('model.') and key.count('.') == 2
        for section, name in [key.split('.')[1:]]
        for path, text in code.items()
        if FOLDERS[section] not in path.parts and re.search(rf'\b{section}\.{name}\b', text)
    }
    assert found == {
        # the key of a setting in runs from before, which its successor takes over (`formerly`)
        'matchers/action_coordination.py: model.sampler.variant',
        # writes a config, as the files in configs/ do: that of the pretrained features
        'recognition/models.py: model.matcher.name',
    }


def test_no_function_of_a_stage_repeats_the_default_of_a_setting():
    found = [
        f'{path.name}: {function.name}({name.arg}={ast.unparse(default)})'
        for section, folder in FOLDERS.items()
        for path in (REPOSITORY / 'fsar_jax' / folder).glob('*.py')
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for arguments in [function.args]
        for name, default in [
            *zip(arguments.args[::-1], arguments.defaults[::-1]),
            *zip(arguments.kwonlyargs, arguments.kw_defaults),
        ]
        for known in [SETTINGS.get(f'model.{section}.{name.arg}')]
        if known and default and ast.unparse(default) == repr(known.default) != 'None'
    ]
    assert found == []


def test_what_is_outside_the_stages_is_named_where_it_is_read():
    """No list of keys: a key in quotes is metadata of a setting (`unless`, `same_as`, `formerly`,
    `up_to`) or an error's text, which says config.KEY."""
    found = {
        f'{path.name}: {node.value}'
        for path in (REPOSITORY / 'fsar_jax').rglob('*.py')
        if 'configs' not in path.parts
        for tree in [ast.parse(path.read_text())]
        for metadata in [
            {
                id(word.value)
                for call in ast.walk(tree)
                if isinstance(call, ast.Call)
                for word in call.keywords
                if word.arg in ('unless', 'same_as', 'formerly', 'up_to')
            }
        ]
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in SETTINGS and '.' in node.value
        if id(node) not in metadata
    }
    assert found == set()


def test_the_documents_and_the_command_list_every_setting():
    page = REPOSITORY / 'docs/settings.md'
    assert page.read_text() == settings.markdown(), (
        'run python -m fsar_jax.settings --markdown > docs/settings.md'
    )
    for key in SETTINGS:
        assert f'| `{key.rpartition(".")[2]}` |' in settings.markdown()
    assert settings.text('model.query_similarity.dim').splitlines()[0] == (
        'model.query_similarity.dim = None    (a whole number, at least 1, or None)'
    )
    assert len(re.findall(r'^\S', settings.text(), re.M)) == len(SETTINGS)
    assert settings.used_by('model.matcher.cardinalities') == (
        'cross_transformer, tuple_cosine, query_similarity'
    )
    # whose second classifier has a dim of its own
    assert settings.used_by('model.matcher.dim') == 'cross_transformer'
    assert settings.used_by('model.matcher.loss_weight') == settings.used_by('seed') == ''


@pytest.mark.slow
def test_the_command_refuses_an_unknown_prefix_in_one_line():
    done = subprocess.run(
        [sys.executable, '-m', 'fsar_jax.settings', 'model.mather'],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode and done.stdout == ''
    assert done.stderr.startswith(
        "error: no setting begins with 'model.mather': try one of episode"
    )
    assert done.stderr.count('\n') == 1


OPTIONAL = [key for key, known in SETTINGS.items() if known.optional]


def test_none_is_a_flag(monkeypatch):
    """--config.model.matcher.dim=None, and likewise for every setting that may be None."""
    from absl import flags
    from ml_collections import config_flags

    argv = ['main.py', *(f'--config.{key}=None' for key in OPTIONAL)]
    monkeypatch.setattr(sys, 'argv', argv)
    config = get_config('strm', 'ssv2')
    assert config.model.matcher.dim == 1152 and type(config.model.matcher.dim) is int
    holder = flags.FlagValues()
    flag = config_flags.DEFINE_config_dict('config', config, flag_values=holder)
    holder(argv)
    assert all(configuration.setting_of(flag.value, key) is None for key in OPTIONAL)
    assert json.loads(flag.value.to_json())['model']['matcher']['dim'] is None
    validate(flag.value)


# What may differ from the run on resuming, and in an evaluation of it.
RESUME = {
    'model': False,
    'result': False,
    'training': False,
    'length': False,
    'evaluation': True,
    'list': True,
    'start': True,
    'cost': True,
}


@pytest.mark.parametrize('key', SETTINGS)
def test_what_may_change_follows_from_what_a_setting_affects(key):
    known = SETTINGS[key]
    assert (key in run_settings.MAY_CHANGE_ON_RESUME) == RESUME[known.affects]
    assert run_settings.must_agree(key) == (known.affects == 'model')
    assert (key in run_settings.SAME_RESULTS) == (
        known.affects in ('training', 'length', 'start', 'cost')
    )
    assert known.unless == '' or known.unless in SETTINGS
    assert known.formerly == '' or known.formerly in SETTINGS


def older_run(directory: pathlib.Path, saved: dict) -> pathlib.Path:
    """A workdir with a checkpoint's folder and these settings."""
    (directory / 'checkpoints/1').mkdir(parents=True)
    (directory / 'checkpoints/config.json').write_text(json.dumps(saved))
    return directory


def test_a_run_from_before_is_read_with_the_same_values(tmp_path, monkeypatch):
    monkeypatch.setattr(
        run_settings,
        'saved_settings',
        lambda directory: configuration.flatten(
            json.loads((directory / 'config.json').read_text())
        ),
    )
    saved = json.loads(OLDER.read_text())
    read = run_settings.run_config(older_run(tmp_path / 'a', saved))
    now, before = configuration.settings_by_key(read), configuration.flatten(saved)
    assert {key: now[key] for key in before} == before
    newer = now.keys() - before.keys()
    assert 'model.matcher.inter_variant' in newer
    assert all(same(now[key], SETTINGS[key].default) for key in newer)
    validate(read)
    # One variant was that of the sampler and of L_inter.
    saved['model']['sampler']['variant'] = 'code'
    directory = older_run(tmp_path / 'b', saved)
    assert run_settings.run_config(directory).model.matcher.inter_variant == 'code'
    changed = run_settings.changed_settings(directory / 'checkpoints', read, lambda key: True)
    assert changed == {
        'model.sampler.variant': ('code', 'paper'),
        'model.matcher.inter_variant': ('code', 'paper'),
    }


def test_settings_that_are_newer_than_a_run_have_their_default():
    completed = with_newer_settings({'episode.way': 3, 'of.another.release': 1})
    assert completed['episode.way'] == 3 and completed['of.another.release'] == 1
    assert completed['episode.shot'] == 1 and completed['model.matcher.inter_variant'] == 'paper'
    assert (
        with_newer_settings({'model.sampler.variant': 'code'})['model.matcher.inter_variant']
        == 'code'
    )


def test_a_section_is_checked_by_name():
    with pytest.raises(ValueError, match=r'^config.a.width=0 is too small, it must be at least 1$'):
        check_section({'width': 0}, settings_of(One), 'a')
    check_section({'other': 0}, settings_of(One), 'a')
