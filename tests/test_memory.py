"""What a training step needs is printed, and a device with too little memory is one line."""

import re

import flax.struct
import jax
import jax.numpy as jnp
import pytest
from tiny_run import get_config

from fsar_jax import memory
from fsar_jax.mesh import episode_mesh
from fsar_jax.stopping import errors_in_one_line


def test_out_of_memory_names_the_least_harmful_settings_first():
    config = get_config('strm', 'ssv2')
    config.train.update(episodes_per_step=12, accumulation_steps=4)
    config.model.backbone.remat = False
    config.model.dtype = 'float32'
    line = memory.out_of_memory(config, 'training')
    order = (
        '--config.model.backbone.remat=True',
        '--config.train.accumulation_steps=6',
        '--config.model.dtype=bfloat16 (results move by rounding)',
        f'--config.episode.query={config.episode.query // 2} (with other results)',
        '--config.episode.image_size=112 (with other results)',
    )
    places = [line.index(text) for text in order[:3]]
    assert places == sorted(places)
    assert all(line.index(text) > places[-1] for text in order[3:])
    assert 'eval.' not in line and '\n' not in line

    config.train.accumulation_steps = 12
    config.model.backbone.remat = True
    config.model.dtype = 'bfloat16'
    line = memory.out_of_memory(config, 'training')
    assert not [name for name in ('remat', 'accumulation', 'dtype') if name in line]


def test_out_of_memory_in_an_evaluation_names_what_an_evaluation_reads():
    config = get_config('strm')
    line = memory.out_of_memory(config, 'evaluation')
    assert f'--config.eval.videos_per_batch={config.eval.videos_per_batch // 2}' in line
    assert 'train.' not in line and 'remat' not in line and 'image_size' not in line


def test_out_of_memory_in_an_extraction_names_what_an_extraction_reads(monkeypatch):
    config = get_config('trm', 'ssv2')
    for devices in (1, 8):  # a batch is of frames, so of few clips too
        monkeypatch.setattr(jax, 'device_count', lambda: devices)
        line = memory.out_of_memory(config, 'extraction')
        assert f'--config.eval.videos_per_batch={config.eval.videos_per_batch // 2}' in line
        assert '--config.model.dtype=bfloat16' in line
        assert not re.search('chunk|embeddings|frame_cache|train|remat', line)


@pytest.mark.parametrize('phase', ['training', 'evaluation'])
def test_what_is_named_is_allowed_and_has_an_effect(phase):
    config = get_config('trx')
    config.episode.frames = 4  # tuples of 3 of them
    assert 'episode.frames' not in memory.out_of_memory(config, phase)
    assert 'frame_cache' not in memory.out_of_memory(config, phase)
    adaptive = get_config('vim')
    adaptive.model.sampler.spatial = 'none'
    line = memory.out_of_memory(adaptive, phase)
    assert ('--config.eval.frame_cache_gb=4' in line) == (phase == 'evaluation')
    features = get_config('trm')
    features.data.features, features.model.backbone.name = '/x', 'features'
    assert 'image_size' not in memory.out_of_memory(features, phase)


def test_parts_of_the_embeddings_are_named_where_there_are_several_devices(monkeypatch):
    config = get_config('strm')
    assert 'embeddings' not in memory.out_of_memory(config, 'evaluation')
    monkeypatch.setattr(jax, 'device_count', lambda: 8)
    assert '--config.eval.embeddings=sharded, ' in memory.out_of_memory(config, 'evaluation')
    config.eval.embeddings = 'sharded'
    assert 'embeddings' not in memory.out_of_memory(config, 'evaluation')


def test_what_cannot_be_split_further_over_several_devices_is_not_named(monkeypatch):
    config = get_config('strm', 'ssv2')  # 16 episodes a step
    monkeypatch.setattr(jax, 'device_count', lambda: 8)
    config.train.accumulation_steps = 2  # an episode for each device
    assert 'accumulation_steps' not in memory.out_of_memory(config, 'training')
    config.train.accumulation_steps = 1
    assert '--config.train.accumulation_steps=2' in memory.out_of_memory(config, 'training')
    for videos, named in ((8, False), (16, True)):
        config.eval.videos_per_batch = videos
        assert ('eval.videos_per_batch=8' in memory.out_of_memory(config, 'evaluation')) == named


# What backends say: a CPU and a GPU when they run, and libtpu 0.0.50 when it compiles.
ON_CPU = 'RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.'
ON_GPU = 'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.'
ON_TPU = (
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory '
    'required for HLO temporaries (26.84G) exceeds available HBM (15.75G). HLO module: jit_step.'
)


FAULT = jax.errors.JaxRuntimeError


@pytest.mark.parametrize(
    'kind, words, renamed',
    [
        (FAULT, ON_CPU, True),
        (FAULT, ON_GPU, True),
        (FAULT, ON_TPU, True),
        (ValueError, ON_GPU, True),  # from the second call of a program on
        (FAULT, 'INTERNAL: x', False),
        (ValueError, 'out of memory.mp4 is no video', False),
    ],
)
def test_only_what_is_about_memory_is_renamed(kind, words, renamed):
    with pytest.raises(MemoryError if renamed else kind) as caught:
        with memory.named_out_of_memory(get_config('protonet'), 'training'):
            raise kind(words + '\nand the rest')
    assert words in str(caught.value) and ('the rest' in str(caught.value)) != renamed
    assert ('--config.' in str(caught.value)) == renamed


@pytest.mark.parametrize('kind', [FAULT, ValueError])
def test_a_device_without_memory_is_one_line_in_every_command(kind):
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        raise kind(ON_GPU + '\nand the rest')
    assert ended.value.code == (
        f'error: a device has too little memory, or other processes use it ({ON_GPU})'
    )
    with pytest.raises(FAULT), errors_in_one_line():
        raise FAULT('INTERNAL: x')


@flax.struct.dataclass
class State:
    params: jax.Array


def test_a_step_prints_what_it_needs_and_is_compiled_once(capsys):
    traced = []

    @jax.jit
    def step(state, batch):
        traced.append(1)
        return state.params + batch.sum()

    run = memory.announced(step, episode_mesh(1))
    for _ in range(2):
        assert run(State(jnp.zeros((1000, 1000))), jnp.ones((4, 256)))[0, 0] == 1024
    before, counted = capsys.readouterr().out.splitlines()
    assert '1.00 M parameters' in before and 'state with optimiser 3.8 MiB' in before
    assert 'needs 7.6 MiB of each device' in counted and len(traced) == 1


@pytest.mark.parametrize('mebibytes, gives_back', [(30, True), (31, False)])
def test_a_large_step_on_a_cpu_gives_its_memory_back(mebibytes, gives_back, monkeypatch):
    """Of 7.6 MiB, which may be twice as much where freed memory is kept."""
    done = []
    monkeypatch.setattr(memory, 'give_back_freed_memory', lambda: done.append(1))
    monkeypatch.setattr(memory, 'free_memory_of', lambda device: mebibytes * 2**20)
    step = jax.jit(lambda state, batch: state.params + batch.sum())
    memory.announced(step, episode_mesh(1))(State(jnp.zeros((1000, 1000))), jnp.ones((4, 256)))
    assert bool(done) == gives_back
