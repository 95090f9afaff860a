"""JSONL, TensorBoard events, log lines, and the bar where there is no terminal."""

import io
import json
import re
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from fsar_jax.messages import one_line
from fsar_jax.progress import MetricWriter, Progress, read_metrics


def read_events(path):
    """(step, tag, value) of every scalar in an event file: records of length, crc, data, crc."""
    content, scalars, at = path.read_bytes(), [], 0
    while at < len(content):
        (length,) = struct.unpack_from('<Q', content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += length + 16
    return scalars


def test_scalars_reach_jsonl_tensorboard_and_the_log(tmp_path):
    log = io.StringIO()
    with MetricWriter(tmp_path, log_steps=2, stream=log) as writer:
        writer.write(1, {'loss': jnp.float32(1.5), 'accuracy': np.float64(0.25)})
        writer.write(2, {'loss': 0.123456})
    first, second = read_metrics(tmp_path)
    assert first == {'step': 1, 'loss': 1.5, 'accuracy': 0.25} and second == {
        'step': 2,
        'loss': 0.123456,
    }
    assert log.getvalue() == 'step 2  loss 0.1235\n'
    (events,) = tmp_path.glob('events.out.tfevents.*')
    assert read_events(events)[:2] == [(1, 'loss', 1.5), (1, 'accuracy', 0.25)]


def test_a_value_that_is_not_finite_is_null_and_the_line_stays_strict_json(tmp_path):
    with MetricWriter(tmp_path, stream=io.StringIO()) as writer:
        writer.write(1, {'loss': float('nan'), 'norm': float('inf')})

    def refuse(constant):
        raise AssertionError(constant)

    line = json.loads((tmp_path / 'metrics.jsonl').read_text(), parse_constant=refuse)
    assert line == {'step': 1, 'loss': None, 'norm': None}


def test_resuming_drops_later_lines_and_a_line_cut_short(tmp_path):
    with MetricWriter(tmp_path, stream=io.StringIO()) as writer:
        for step in (1, 2, 3):
            writer.write(step, {'loss': float(step)})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 4, "lo')
    with MetricWriter(tmp_path, resume_step=2, stream=io.StringIO()) as writer:
        writer.write(3, {'loss': 30.0})
    losses = {line['step']: line['loss'] for line in read_metrics(tmp_path)}
    assert losses == {1: 1.0, 2: 2.0, 3: 30.0}
    with MetricWriter(tmp_path, stream=io.StringIO()):
        pass
    assert read_metrics(tmp_path) == []


def test_a_damaged_line_is_named_and_stops_no_run(tmp_path):
    path, said = tmp_path / 'metrics.jsonl', io.StringIO()
    whole = '{"step": 1, "loss": 0.5}\n'
    path.write_bytes(
        whole.encode() + b'{"loss": 3.0}\n\xff\x1b[2J\n[]\n\n{"step": 2, "loss": 0.25}\n{"st'
    )
    with pytest.raises(
        ValueError,
        match=r'^[^\n]*metrics.jsonl line 2 is no metrics of a step: .*loss.*: remove the line$',
    ):
        read_metrics(tmp_path)
    with MetricWriter(tmp_path, resume_step=1, stream=said) as writer:
        writer.write(2, {'loss': 0.125})
    notes = said.getvalue().splitlines()[:-1]
    assert [re.search(r'line (\d+) is', note)[1] for note in notes] == [
        '2',
        '3',
        '4',
    ] and '\x1b' not in said.getvalue()
    assert path.read_text() == whole + '{"step": 2, "loss": 0.125}\n'


def test_a_full_disk_names_the_file(tmp_path):
    writer = MetricWriter(tmp_path, stream=io.StringIO())
    writer._file.close()
    writer._file = open('/dev/full', 'a')
    with pytest.raises(OSError) as error:
        writer.write(1, {'loss': 1.0})
    assert one_line(error.value) == f'{tmp_path}/metrics.jsonl: No space left on device'
    with pytest.raises(OSError, match='No space left') as error:
        writer.close()  # it writes again what the file did not take
    assert error.value.filename == str(tmp_path / 'metrics.jsonl')


def test_a_full_disk_under_the_events_stops_the_run(tmp_path):
    writer = MetricWriter(tmp_path, stream=io.StringIO())
    writer._events._py_recordio_writer._writer.close()
    writer._events._py_recordio_writer._writer = open('/dev/full', 'wb')
    with pytest.raises(OSError) as error:
        writer.write(1, {'loss': 1.0})
    assert one_line(error.value) == f'{tmp_path}: No space left on device'
    with pytest.raises(OSError, match='No space left'):
        writer.close()
    assert writer._file is None


def test_without_a_terminal_a_line_now_and_then(tmp_path):
    now, said = [0.0], io.StringIO()
    with Progress(
        100, 'training', 'episode', initial=20, stream=said, line_seconds=30, clock=lambda: now[0]
    ) as progress:
        for _ in range(40):
            now[0] += 1
            progress.advance(2)
    # After 30 s: 60 episodes done here, 2 a second, 20 left.
    assert said.getvalue() == 'training: 80/100 episodes, 2.0 episodes/s, 00:10 left\n'


def test_on_a_terminal_a_bar_with_speed(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    said = Terminal()
    with Progress(10, 'matching', 'episode', stream=said) as progress:
        progress.advance(10)
    assert 'matching: 100%' in said.getvalue() and 'episode/s' in said.getvalue()
