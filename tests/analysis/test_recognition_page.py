"""The page of recognitions: what a browser would read in it, found with Python's own parser."""

import base64
import html.parser
import io
import re
import types

import numpy as np
import PIL.Image
import pytest

from fsar_jax.analysis import recognition_page as page
from fsar_jax.analysis.html_page import jpeg_uri

HOSTILE = '"><script src=//evil>\u202e\udc80'
PROBABILITIES = {'wave': 0.2, 'clap': 0.7, HOSTILE: 0.1}


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes, and the text of the page."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text = [], ''
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def answer(clip='clip.mp4', error=None, side=40, **changes):
    if error is not None:
        return types.SimpleNamespace(clip=clip, error=error)
    frames = np.full((3, side, 2 * side, 3), 200, np.uint8)
    fields = {
        'clip': clip,
        'label': 'clap',
        'best': 'clap',
        'note': '',
        'probability': 0.7,
        'runner_up': 'wave',
        'margin': 0.5,
        'scores': {'wave': 1.5, 'clap': 2.25, HOSTILE: 0.5},
        'probabilities': PROBABILITIES,
        'example': ('clap', 'example.mp4'),
        'pairs': [(0, 1, 0.5), (2, 2, 0.9)],
        'frames': frames,
        'example_frames': frames[:, :, :side],
        'error': None,
    }
    return types.SimpleNamespace(**fields | changes)


def segment(start, end, label, probability=0.9):
    return types.SimpleNamespace(start=start, end=end, label=label, probability=probability)


def test_the_page_needs_no_network_and_no_name_becomes_markup():
    hostile = answer(clip=HOSTILE, label=HOSTILE, runner_up=HOSTILE, example=(HOSTILE, HOSTILE))
    source = page.recognition_page(
        [hostile, answer(clip=HOSTILE, error=HOSTILE)],
        HOSTILE,
        HOSTILE,
        [(HOSTILE, 9.0, [segment(0, 9, HOSTILE)])],
    )
    source.encode('utf-8')  # a lone surrogate could not be written
    elements = Elements(source)
    assert '\u202e' not in source and not elements.named('script')
    for _, attributes in elements.tags:
        for name in ('src', 'href'):
            assert re.match(r'data:|#', attributes.get(name, '#')), attributes
        assert not [name for name in attributes if name.startswith('on')]
    assert 'url(' not in source and '@import' not in source


def test_every_class_has_a_bar_as_long_as_its_probability():
    elements = Elements(page.answer_parts(answer()))
    assert [bar['style'] for bar in elements.named('i')] == [
        'width:70.0%',
        'width:20.0%',
        'width:10.0%',
    ]
    assert elements.text.index('clap') < elements.text.index('wave')
    assert '70% score 2.250' in elements.text


def test_lines_join_the_frames_that_decided():
    elements = Elements(page.matched_frames(answer()))
    clip, example = elements.named('image')[:3], elements.named('image')[3:]
    centre = lambda image: float(image['x']) + float(image['width']) / 2
    strongest, weakest = elements.named('line')
    assert float(strongest['x1']) == centre(clip[2]) and float(strongest['x2']) == centre(
        example[2]
    )
    assert float(weakest['x1']) == centre(clip[0]) and float(weakest['x2']) == centre(example[1])
    assert float(strongest['stroke-width']) > float(weakest['stroke-width'])
    assert float(clip[0]['y']) + float(clip[0]['height']) < float(strongest['y1'])
    assert float(strongest['y2']) < float(example[0]['y'])
    assert float(clip[0]['width']) / float(clip[0]['height']) == 2  # as the frames are


def test_the_answers_that_are_none_and_the_clips_that_cannot_be_read_are_rows():
    answers = [answer(), answer(clip='sound.mp4', error='no video stream'), answer(label=None)]
    elements = Elements(page.recognition_page(answers, 'Expected accuracy: 81 ± 3%.'))
    assert '3 clips, 1 of which could not be read. Expected accuracy: 81 ± 3%.' in elements.text
    assert 'could not be read: no video stream' in elements.text
    assert 'none of these; the nearest is clap, 70%' in elements.text
    assert elements.text.count('none of these') == 3  # its row, its answer, and the explanation
    targets = {section['id'] for section in elements.named('section') if 'id' in section}
    links = {link['href'].removeprefix('#') for link in elements.named('a')}
    assert targets == links == {'clip0', 'clip2'}


def test_clips_are_named_within_the_folder_that_they_share():
    assert page.common_folder(['/a/b/c.mp4', '/a/bc/d.mp4']) == '/a/'
    assert page.common_folder(['/a/b/c.mp4']) == '/a/b/'
    assert page.common_folder(['c.mp4', '/a/b.mp4']) == page.common_folder([]) == ''
    answers = [answer(clip='/home/x/one/a.mp4'), answer(clip='/home/x/two/a.mp4')]
    answers.append(answer(clip='/home/x/b.mp4', error='empty file'))
    recording = ('/home/x/long.mp4', 9.0, [segment(0, 9, 'wave')])
    source = page.recognition_page(answers, '', timelines=[recording])
    text = Elements(source).text
    assert '4 clips in /home/x/, 1 of which could not be read.' in text
    for name in ('one/a.mp4', 'two/a.mp4', 'b.mp4', 'long.mp4'):
        assert name in text
    assert source.count('/home/x/') == 1


def test_a_page_without_a_clip_and_an_answer_without_frames_are_drawn():
    nothing = np.zeros((0, 4, 4, 3), np.uint8)
    bare = answer(frames=nothing, pairs=[], probabilities={'wave': np.nan}, scores={'wave': np.nan})
    assert '0 clips' in page.recognition_page([], 'None.')
    assert not Elements(page.recognition_page([bare], '')).named('image')


def test_pictures_are_small_and_keep_their_colours():
    frame = np.zeros((300, 600, 3), np.uint8)
    frame[:] = 250, 120, 10
    with PIL.Image.open(io.BytesIO(_bytes(jpeg_uri(frame, 160)))) as picture:
        assert picture.size == (160, 80)
        assert np.abs(np.asarray(picture, int) - frame[:80, :160]).max() < 6


def _bytes(uri):
    return base64.b64decode(uri.removeprefix('data:image/jpeg;base64,'))


def test_many_clips_make_no_endless_page(monkeypatch):
    monkeypatch.setattr(page, 'FULL_SIZE', 2)
    monkeypatch.setattr(page, 'MOST_PICTURES', 8)
    noise = np.random.default_rng(0).integers(0, 256, (3, 160, 160, 3), np.uint8)
    sized = [
        len(page.recognition_page([answer(frames=noise, example_frames=noise)] * n, ''))
        for n in (2, 8, 20)
    ]
    assert sized[1] < 1.5 * sized[0]  # four times as many, each with a quarter of the pixels
    assert sized[2] - sized[1] < 12 * 2000  # no more pictures
    source = page.recognition_page([answer()] * 20, '')
    assert source.count('<image') == 8 * 6 and 'Only the first 8 clips' in source


def test_a_timeline_shows_when_each_class_is_seen():
    segments = [segment(0, 12, 'wave'), segment(12, 30.5, None, 0.4), segment(45, 60, 'wave')]
    elements = Elements(page.timeline_parts(60.0, segments))
    _, first, none, last = elements.named('rect')
    assert (float(first['x']), float(first['width'])) == (0, 200)
    assert (float(last['x']), float(last['width'])) == (750, 250)
    assert first['fill'] == last['fill'] != none['fill']
    for words in ('0:12 – 0:30.5', '0:45 – 1:00', 'wave', 'none of these', '40%'):
        assert words in elements.text


@pytest.mark.parametrize(
    'seconds, shown', [(0, '0:00'), (59.96, '1:00'), (65.25, '1:05.2'), (3605, '1:00:05')]
)
def test_times_read_as_on_a_clock(seconds, shown):
    assert page.clock(seconds) == shown


@pytest.mark.parametrize(
    'share, shown',
    [(1, '100%'), (0.99999, '&gt;99.9%'), (0.996, '99.6%'), (0.934, '93%'), (0.0004, '&lt;0.1%')],
)
def test_a_share_is_not_rounded_to_certainty(share, shown):
    assert page.percent(share) == shown


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'page.html'
    page.write_page(path, [answer()], '')
    before = path.read_bytes()
    assert before.startswith(b'<!doctype html>') and b'</html>' in before
    with pytest.raises(AttributeError):
        page.write_page(path, [answer(), types.SimpleNamespace()], '')
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match='nowhere'):
        page.write_page(tmp_path / 'nowhere' / 'page.html', [], '')
