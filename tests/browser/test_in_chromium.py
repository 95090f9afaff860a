"""The page in a real browser without a window, as a user sees it."""

import chromium
import pytest

pytest.importorskip('selenium', reason='drives the browser')
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(chromium.missing()),
        reason=f'{chromium.missing()} here: apt-get install chromium chromium-driver',
    ),
]


@pytest.fixture
def page(started, tmp_path):
    """The browser on the page of a server that knows red and green."""
    with chromium.chromium(tmp_path / 'profile') as browser:
        browser.get(f'http://127.0.0.1:{started()[0]}/')
        chromium.wait_for(browser, '.class img')
        yield browser


def seen(page, selector):
    """The text of every element, at one moment."""
    script = 'return [...document.querySelectorAll(arguments[0])].map(found => found.innerText)'
    return page.execute_script(script, selector)


def eventually(page, true):
    WebDriverWait(page, 30).until(lambda page: true())


def test_a_new_class_and_a_clip_of_it_are_recognised(page, clips, tmp_path):
    assert seen(page, '.class b') == ['red', 'green']
    page.find_element(By.ID, 'class-name').send_keys('blue <b>sky</b>')
    page.find_element(By.CSS_SELECTOR, '#new-class button').click()
    assert seen(page, '.class b') == ['red', 'green', 'blue <b>sky</b>']  # as text
    chooser = page.find_elements(By.CSS_SELECTOR, '.class input')[2]
    chooser.send_keys(f'{clips("blue")}\n{clips("blue", 1)}')
    eventually(page, lambda: '2 clips' in seen(page, '.class footer')[2])

    page.find_element(By.ID, 'query-file').send_keys(str(clips('blue', 5)))
    chromium.wait_for(page, '.answered')
    assert seen(page, '.answered h2') == ['blue_5.mp4']
    assert seen(page, '.answer b') == ['blue <b>sky</b>']
    assert len(page.find_elements(By.CSS_SELECTOR, '.frames image')) == 8
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded and all(address.startswith(page.current_url) for address in loaded)

    page.find_element(By.ID, 'long').click()
    page.find_element(By.ID, 'query-file').send_keys(str(clips('green', 5, frames=40)))
    eventually(page, lambda: seen(page, '.answered h2') == ['green_5.mp4', 'blue_5.mp4'])
    assert '0:00 – 0:05' in seen(page, '.answered')[0]

    not_a_clip = tmp_path / 'notes.txt'
    not_a_clip.write_text('no clip')
    page.find_element(By.ID, 'query-file').send_keys(str(not_a_clip))
    eventually(page, lambda: seen(page, '#messages p'))
    [complaint] = seen(page, '#messages p')
    assert complaint.startswith('notes.txt: not a video: ')
    assert len(seen(page, '.answered')) == 2
    faults = [line for line in page.get_log('browser') if '422' not in line['message']]
    assert faults == []


def test_a_class_goes_and_everything_starts_again(page):
    page.find_element(By.CSS_SELECTOR, '.class button').click()
    eventually(page, lambda: seen(page, '.class b') == ['green'])
    assert seen(page, '#expected') == ['Give clips of at least two classes.']
    page.refresh()
    eventually(page, lambda: seen(page, '.class b') == ['green'])  # the browser keeps its own
    page.find_element(By.ID, 'reset').click()
    eventually(page, lambda: seen(page, '.class b') == ['red', 'green'])


def test_a_file_that_is_too_large_is_not_sent(page, tmp_path):
    huge = tmp_path / 'huge.mp4'
    with huge.open('wb') as file:
        file.truncate(2**31)
    page.find_element(By.ID, 'query-file').send_keys(str(huge))
    eventually(page, lambda: seen(page, '#messages p'))
    assert seen(page, '#messages p') == ['huge.mp4 is larger than 0.1 MB, which this server takes']
