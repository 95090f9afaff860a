"""docs/tables.md: every command can be read, and the model of every command can be built."""

import functools
import importlib.util
import json
import re
import shlex

import jax
import jax.numpy as jnp
import pytest
from tiny_run import REPOSITORY, TinyScan

from fsar_jax import create_learner, pretrain, samplers, sweep, train
from fsar_jax.config import SETTINGS, settings_by_key, validate
from fsar_jax.evaluation.paper_tables import TABLES, read_tables, rows_of
from fsar_jax.stages import build_stages, frames_read


@functools.cache
def commands():
    """{row: config} of all rows that train or evaluate."""
    rows = {row.name: row for table in read_tables() for row in table.rows if row.mode}
    return {row: sweep.config_of(row.flags) for row in rows.values()}


@functools.cache
def classifiers():
    """{row: config} of all rows that train a classifier."""
    rows = [
        row for table in read_tables() for row in table.rows if 'fsar_jax.pretrain ' in row.command
    ]
    flags = lambda row: train.parse(shlex.split(row.command)[2:], pretrain.define_flags)
    return {row: flags(row).config for row in rows}


# Every experimental table and figure with its number in the paper.
NAMES = [
    *(f'strm-{name}' for name in 't1 t2 t3 t4 a1 a2 fig6 fig7 fig8 fig9 figa1 figa2'.split()),
    *(f'ta2n-{name}' for name in 't1 t2 t3 t4 fig2 fig9 supplement'.split()),
    *(f'mastaf-{name}' for name in 't1 t2 t3 fig1'.split()),
    *(f'vim-t{number}' for number in range(1, 20)),
    *(f'vim-fig{number}' for number in range(15, 23)),
]


def test_every_table_of_the_papers_is_there():
    assert sorted(name for table in read_tables() for name in table.names) == sorted(NAMES)


def test_the_page_is_what_the_package_reads():
    assert TABLES.samefile(REPOSITORY / 'docs' / 'tables.md')
    assert len(commands()) > 100


def test_every_command_has_settings_that_fit_each_other():
    for row, config in (commands() | classifiers()).items():
        try:
            validate(config)
        except ValueError as error:
            raise AssertionError(f'{row.name}: {error}') from None


def test_one_experiment_has_one_name():
    """So that it is trained once, whichever tables it is in."""
    names = {}
    for row, config in commands().items():
        settings = json.dumps([row.mode, row.evaluates, settings_by_key(config)])
        assert names.setdefault(settings, row.name) == row.name
    for row in commands():
        assert ' ' not in row.name and row.paper and row.here


def test_every_table_can_be_swept():
    """Each has rows, and each evaluation comes after the training that it needs."""
    for table in read_tables():
        rows = rows_of(table.names[:1])
        trained = {row.name for row in rows if row.mode == 'train'}
        assert {row.evaluates for row in rows if row.mode == 'evaluate'} <= trained
        assert {row.name for row in table.rows} <= {row.name for row in rows}


def test_commands_that_are_for_people_name_what_exists():
    """Those that draw or count: their program, and the runs that they take."""
    rows = {row.name: row for table in read_tables() for row in table.rows}
    others = [row for row in rows.values() if row.command and not row.mode]
    assert others
    for row in others:
        python, *words = shlex.split(row.command)
        assert python == 'python', row.name
        if words[0] == '-m':
            assert importlib.util.find_spec(words[1]), row.name
        else:
            assert (REPOSITORY / words[0]).is_file(), row.name
        for run in re.findall(r'=runs/tables/(\S+)/seed0', row.command):
            assert rows[run].mode == 'train', row.name


@pytest.mark.parametrize(
    'command, message',
    [
        ('--config=nope:ssv2', 'no such file or method'),
        ('--config=strm:nope', "unknown preset 'nope'"),
        ('--config=strm --config.model.matcher.nope=1', "no such config key: 'nope'"),
        ('--config=strm --config.episode.way=many', 'should be a whole number'),
    ],
)
def test_a_command_that_cannot_be_read_would_be_noticed(command, message, tmp_path):
    (tmp_path / 'rows.txt').write_text(command)
    [row] = rows_of([str(tmp_path / 'rows.txt')])
    with pytest.raises(ValueError, match=message):
        sweep.config_of(row.flags)


# ── Shapes ────────────────────────────────────────────────────────────────────────────────────────


def parts(config):
    """(backbone, scan network, the rest): what decides their shapes, as text. Of a number that is
    no count it is whether it is 0."""
    model = {
        key: bool(value) if isinstance(value, float) else value
        for key, value in settings_by_key(config).items()
        if key.startswith('model.') and SETTINGS[key].affects == 'model'
    }
    pick = lambda start: {key: model[key] for key in model if key.startswith(start)}
    backbone, of_scan = pick('model.backbone.'), pick('model.sampler.scan_')
    rest = {key: value for key, value in model.items() if key not in backbone | of_scan}
    clips = build_stages(config.model)['backbone'].takes_clips
    size = config.episode.image_size, config.episode.frames if clips else None
    return tuple(map(json.dumps, ([backbone, size], of_scan, [rest, config.episode.frames])))


def trace(config):
    """Builds the model of a command and predicts an episode, by shapes alone."""
    episode, learner = config.episode, create_learner(config.model)
    clip = frames_read(config), episode.image_size, episode.image_size, 3
    support = jax.ShapeDtypeStruct((episode.way, episode.shot, *clip), jnp.uint8)
    query = jax.ShapeDtypeStruct((episode.way, *clip), jnp.uint8)
    rngs = {name: jax.random.key(0) for name in ('params', 'dropout', 'sampler')}
    init = functools.partial(learner.init_with_output, train=True)
    prediction, _ = jax.eval_shape(init, rngs, support, query)
    assert prediction.logits.shape == (episode.way, episode.way)


SMALL = 'shufflenet_v2_small'  # which no paper has


def behind_small_networks(config, scan):
    """The same model with a backbone that is traced fast and, with `scan`, such a scan network."""
    config = config.copy_and_resolve_references()
    config.model.backbone.update(name='resnet_small', batch_norm_groups=1, remat=False)
    config.episode.image_size = 64
    if scan:
        config.model.sampler.update(scan_network=SMALL, scan_size=32)
    return config


@pytest.mark.slow
def test_the_model_of_every_command_can_be_built(monkeypatch):
    """Each distinct backbone and scan network once, in the first command that has it; all that is
    around them once for each of its shapes, with small networks."""
    create = samplers.create_scan_network
    monkeypatch.setattr(
        samplers,
        'create_scan_network',
        lambda name, **how: TinyScan() if name == SMALL else create(name, **how),
    )
    seen = set()
    assert classifiers()
    for row, config in (commands() | classifiers()).items():
        backbone, of_scan, rest = parts(config)
        if {backbone, of_scan, rest} <= seen:
            continue
        if backbone in seen:
            config = behind_small_networks(config, of_scan in seen)
        try:
            trace(config)
        except Exception as error:
            raise AssertionError(f'{row.name}: {error}') from error
        seen |= {backbone, of_scan, rest}
