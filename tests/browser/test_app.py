"""The web application as a stranger would call it: by HTTP, without a browser."""

import socket
import threading
import time
from urllib.parse import quote

import av
import numpy as np
import pytest
from http_client import Client

application = pytest.importorskip('fsar_jax.browser.app')

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore:.* is left out')]


def assert_refused(response, status, *words):
    code, said = response
    assert code == status, said
    assert set(said) == {'error'} and '\n' not in said['error']
    for word in words:
        assert word in said['error']


def test_a_clip_gets_its_class_and_nothing_stays_on_disk(started, clips):
    port, folder = started()
    client = Client(port)
    code, said = client.answer(clips('green', 3))
    assert code == 200
    assert said['label'] == 'green' and said['runner_up'] == 'red' and said['clip'] == 'green_3.mp4'
    assert said['example'] == {'class': 'green', 'name': 'green_0.mp4'}
    assert sum(said['probabilities'].values()) == pytest.approx(1)
    assert (
        '<svg' in said['html']
        and 'green' in said['html']
        and str(folder.parent) not in said['html']
    )
    assert list(folder.iterdir()) == []


def test_two_browsers_do_not_see_each_others_examples(started, clips):
    port, _ = started()
    one, other = Client(port), Client(port)
    assert one.classes() == other.classes() == ['red', 'green']
    code, said = one.add('blue', clips('blue'))
    assert code == 200 and [c['name'] for c in said['classes']] == ['red', 'green', 'blue']
    assert said['classes'][2]['examples'][0]['picture'].startswith('data:image/jpeg;base64,')
    assert other.send('POST', '/remove?class=red')[0] == 200
    assert one.classes() == ['red', 'green', 'blue'] and other.classes() == ['green']
    assert one.answer(clips('blue', 2))[1]['label'] == 'blue'
    assert_refused(other.answer(clips('blue', 2)), 409, 'two classes')
    assert other.send('POST', '/reset')[0] == 200
    assert other.classes() == ['red', 'green']
    assert Client(port).classes() == ['red', 'green']


def test_a_class_of_the_folder_keeps_its_name(started, clips):
    """However long it is, and with whatever spaces: its clips are added to it, and removed."""
    names = ['push  left', 'Putting something that cannot actually stand upright upright on ' * 2]
    port, _ = started(classes=names)
    client = Client(port)
    for i, name in enumerate(names):
        assert client.add(name, clips('blue', i))[0] == 200 and client.classes() == names
    assert client.send('POST', f'/remove?class={quote(names[1])}')[0] == 200
    assert client.classes() == names[:1]


def test_examples_that_come_at_once_are_all_kept(started, clips):
    port, _ = started()
    client = Client(port)
    client.classes()
    paths = [clips('blue', seed) for seed in range(4)]
    adding = [threading.Thread(target=client.add, args=('blue', path)) for path in paths]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join(30)
    assert client.send('GET', '/examples')[1]['classes'][2]['count'] == 4


def test_a_browser_that_was_idle_longest_makes_room(started, clips):
    port, _ = started(browsers=1)
    one, other = Client(port), Client(port)
    for client in (one, other):
        assert client.add('blue', clips('blue'))[0] == 200
    assert other.classes()[-1] == 'blue' and one.classes() == ['red', 'green']


def test_requests_that_are_refused_make_no_room(started, clips):
    port, _ = started(browsers=1)
    one = Client(port)
    assert one.add('blue', clips('blue'))[0] == 200
    assert Client(port).send('POST', '/remove?class=nowhere')[0] == 422
    assert one.classes()[-1] == 'blue'


def test_a_reset_holds_after_a_request_that_was_refused(started, clips):
    port, _ = started()
    client = Client(port)
    assert client.add('blue', clips('blue'))[0] == 200
    assert client.send('POST', '/remove?class=nowhere')[0] == 422
    assert client.send('POST', '/reset')[0] == 200
    assert client.add('grey', clips('green', 3))[0] == 200
    assert client.classes() == ['red', 'green', 'grey']


def test_two_gigabytes_are_refused_before_they_are_read(started):
    port, folder = started()
    with socket.create_connection(('127.0.0.1', port), timeout=10) as connection:
        connection.sendall(
            b'POST /answer?name=huge.mp4 HTTP/1.1\r\nHost: 127.0.0.1\r\n'
            b'Content-Length: 2147483648\r\n\r\n'
        )
        said = b''
        while not said.endswith(b'}'):  # not one byte of the body is sent
            said += connection.recv(65536)
    said = said.decode()
    assert said.startswith('HTTP/1.1 413 ') and 'huge.mp4 is larger than 0.1 MB' in said
    assert list(folder.iterdir()) == []


def test_a_body_without_a_length_is_cut_off_at_the_limit(started):
    port, folder = started()
    chunks = (bytes(50_000) for _ in range(100))
    assert_refused(Client(port).send('POST', '/answer?name=a.mp4', chunks), 413, '--max-mb')
    assert list(folder.iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(started):
    port, folder = started()
    with socket.create_connection(('127.0.0.1', port), timeout=10) as connection:
        connection.sendall(
            b'POST /answer?name=a.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n'
        )
        connection.sendall(bytes(40_000))
        wait_until(lambda: list(folder.glob('*/*')))
    wait_until(lambda: not list(folder.iterdir()))


def wait_until(true):
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError('it did not happen')


def sound(path):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('pcm_s16le', rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), 's16', 'mono')
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    'content, words',
    [
        (b'just a text\n', 'not a video'),
        (b'PK\3\4' + bytes(500), 'not a video'),
        (b'#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n', 'playlist'),
        (b"ffconcat version 1.0\nfile '{other}'\n", 'playlist'),
        (b'', 'empty'),
        (None, 'only audio'),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(started, clips, tmp_path, content, words):
    port, folder = started()
    path = tmp_path / 'fake.wav'
    if content is None:
        sound(path)
    else:
        path.write_bytes(content.replace(b'{other}', bytes(clips('red'))))
    client, status = Client(port), 422 if content != b'' else 400
    assert_refused(client.answer(path), status, 'fake.wav', words)
    assert_refused(client.add('red', path), status, 'fake.wav', words)
    assert client.classes() == ['red', 'green'] and list(folder.iterdir()) == []


def test_a_long_clip_is_refused_whatever_its_rate_says(started, clips):
    port, _ = started(seconds=2)
    client = Client(port)
    assert client.answer(clips('green', 1, frames=16))[0] == 200
    assert_refused(client.answer(clips('green', 2, frames=24)), 422, 'green_2.mp4 lasts 3 s', '2 s')
    hurried = clips('green', 3, frames=600, fps=1000)
    assert_refused(client.answer(hurried), 422, '--max-seconds')


@pytest.mark.parametrize(
    'path',
    [
        '/../../../../etc/passwd',
        '/file=/etc/passwd',
        '/gradio_api/file=/etc/passwd',
        '/static/..%2f..%2f..%2fetc%2fpasswd',
        '/%2e%2e/%2e%2e/etc/passwd',
        '//etc/passwd',
        '/link',
        '/uploads/',
    ],
)
def test_no_address_reads_a_file(started, path):
    port, folder = started()
    (folder / 'link').symlink_to('/etc/passwd')
    assert_refused(Client(port).send('GET', path), 404, 'no such page')


@pytest.mark.parametrize(
    'name, kept',
    [
        ('../../evil.mp4', 'evil.mp4'),
        ('/etc/evil.mp4', 'evil.mp4'),
        ('C:\\clips\\evil.mp4', 'evil.mp4'),
        ('.hidden.mp4', 'hidden.mp4'),
        ('a\0b\n.mp4', 'a_b_.mp4'),
        ('..', 'clip'),
        ('', 'clip'),
        ('é' * 500 + '.mp4', 'é' * 60 + '.mp4'),
        ('\N{GRINNING FACE}' * 70 + '.' + '\N{GRINNING FACE}' * 70, '\N{GRINNING FACE}' * 60),
        ('<b>.mp4', '<b>.mp4'),
    ],
)
def test_the_name_of_an_upload_names_no_place(started, clips, tmp_path, name, kept):
    port, folder = started()
    before = sorted(tmp_path.rglob('*'))
    content = clips('red', 5).read_bytes()
    code, said = Client(port).send('POST', f'/answer?name={quote(name)}', content)
    assert code == 200 and kept in said['clip'] and '/' not in said['clip']
    assert '<b>.mp4' not in said['html']
    assert [path for path in sorted(tmp_path.rglob('*')) if path not in before] == [clips('red', 5)]


def test_a_clip_of_another_class_and_a_nameless_class_are_refused(started, clips):
    port, _ = started()
    client = Client(port)
    code, said = client.add('green', clips('red'))
    assert code == 422 and 'red_0.mp4 of class' in said['error'] and '/' not in said['error']
    assert_refused(client.add('red', clips('red')), 422, 'same clip')
    for name in ('', ' ', 'x' * 81, 'a\0b'):
        assert_refused(client.add(name, clips('blue')), 400, '?class=')
    assert_refused(client.send('POST', '/remove?class=nobody'), 422, 'no class')


def test_there_is_a_most_of_classes_and_examples(started, clips, monkeypatch):
    monkeypatch.setattr(application, 'MOST_CLASSES', 3)
    port, _ = started(clips=4)
    client = Client(port)
    assert client.add('blue', clips('blue'))[0] == 200
    assert_refused(client.add('fourth', clips('blue', 1)), 422, '3 classes')
    assert client.add('blue', clips('blue', 1))[0] == 200
    assert_refused(client.add('blue', clips('blue', 2)), 422, '4 examples')


def test_one_example_goes_and_with_the_last_its_class(started, clips):
    port, _ = started()
    client = Client(port)
    for seed in (0, 1):
        client.add('blue', clips('blue', seed))
    code, said = client.send('POST', '/remove?class=blue&example=0')
    assert code == 200 and [c['count'] for c in said['classes']] == [1, 1, 1]
    assert said['classes'][2]['examples'][0]['name'] == 'blue_1.mp4'
    assert_refused(client.send('POST', '/remove?class=blue&example=1'), 422, 'no such example')
    assert_refused(client.send('POST', '/remove?class=blue&example=x'), 400, 'number')
    assert_refused(client.send('POST', '/remove?class=blue&example=0.5'), 400, 'whole number')
    assert client.send('POST', '/remove?class=blue&example=0')[0] == 200
    assert client.classes() == ['red', 'green']


def test_none_of_these_and_what_a_recording_shows_when(started, clips, tmp_path):
    port, folder = started()
    client = Client(port)
    content = clips('green', 3, frames=40).read_bytes()  # five seconds
    code, said = client.send('POST', '/answer?name=a.mp4&unknown_below=1', content)
    assert code == 200 and said['label'] is None and 'none of these' in said['html']
    code, said = client.send('POST', '/answer?name=a.mp4&window=2', content)
    assert code == 200 and said['clip'] == 'a.mp4' and said['duration'] == pytest.approx(5, abs=0.2)
    assert [segment['label'] for segment in said['segments']] == ['green']
    assert '0:00 – 0:05' in said['html'] and list(folder.iterdir()) == []
    for wrong in ('window=0', 'window=x', 'unknown_below=nan'):
        assert_refused(client.send('POST', f'/answer?name=a.mp4&{wrong}', content), 400, wrong)
    refused = client.send('POST', '/answer?name=a.mp4&unknown_below=2', content)
    assert_refused(refused, 422, 'unknown_below')


def test_another_sites_page_and_another_name_are_refused(started, clips):
    port, _ = started()
    client = Client(port)
    assert_refused(client.send('GET', '/examples', Host='evil.example'), 403, 'evil.example')
    refused = client.send('POST', '/reset', Sec_Fetch_Site='cross-site')
    assert_refused(refused, 403, 'another site')
    # At an address other than this computer's own, browsers send Origin alone.
    for origin in ('http://evil.example', 'null', f'http://127.0.0.1:{port + 1}'):
        assert_refused(client.send('POST', '/reset', Origin=origin), 403, 'another site')
    assert client.send('POST', '/reset', Origin=f'http://127.0.0.1:{port}')[0] == 200
    assert client.send('GET', '/', Host=f'localhost:{port}', Sec_Fetch_Site='cross-site')[0] == 200
    assert_refused(client.send('DELETE', '/examples'), 405)


def test_the_page_may_load_nothing_from_elsewhere(started):
    port, _ = started()
    client = Client(port)
    code, source = client.send('GET', '/')
    assert code == 200 and 'http' not in source.replace('http-equiv', '')
    policy = client.headers['content-security-policy']
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert client.headers['cache-control'] == 'no-store'
    cookie = client.headers['set-cookie'].lower()
    assert 'httponly' in cookie and 'samesite=strict' in cookie


def test_a_fault_of_the_server_is_one_line(started, clips, monkeypatch, capfd):
    port, _ = started()
    monkeypatch.setattr(application, 'answer_parts', lambda answer: 1 / 0)
    code, said = Client(port).answer(clips('red', 2))
    assert code == 500 and said == {'error': 'the server failed: ZeroDivisionError'}
    assert 'Traceback' in capfd.readouterr().err


@pytest.mark.parametrize('kind', [RuntimeError, ValueError])
def test_a_device_without_memory_is_no_fault_of_the_clip(started, clips, monkeypatch, kind):
    def answer_parts(answer):
        raise kind('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nand the rest')

    port, _ = started()
    monkeypatch.setattr(application, 'answer_parts', answer_parts)
    refused = Client(port).answer(clips('red', 2))
    assert_refused(refused, 503, 'too little memory', 'allocating 9 bytes.')
