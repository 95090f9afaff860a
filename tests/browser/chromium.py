"""Debian's Chromium without a window, driven by Selenium; and the picture of the page in README.md:

    python tests/browser/chromium.py docs/images/serve.png

The picture shows clips that this project renders. It needs Chromium (apt-get install chromium
chromium-driver) and pip install '.[test]'.
"""

import contextlib
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

PROGRAMS = ('chromium', 'chromedriver')
CLASSES = (
    'moving something from left to right',
    'moving two things towards each other',
    'covering something with something',
)


def missing() -> str:
    """What a browser would need that is not here; '' for nothing."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f'there is no {" and no ".join(lacking)}' if lacking else ''


@contextlib.contextmanager
def chromium(profile, width=1000, height=900):
    """A browser with an empty profile in the folder `profile`."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for flag in (
        'headless=new',
        'no-sandbox',  # which root may not have
        'disable-dev-shm-usage',
        'disable-gpu',
        'hide-scrollbars',
        f'user-data-dir={profile}',
        f'window-size={width},{height}',
    ):
        options.add_argument(f'--{flag}')
    # With a path, Selenium asks nobody on the network for a driver.
    service = webdriver.ChromeService(shutil.which('chromedriver'))
    browser = webdriver.Chrome(options, service)
    try:
        yield browser
    finally:
        browser.quit()


def wait_for(browser, selector, seconds=60):
    """The first element that a CSS selector finds, once there is one."""
    from selenium.webdriver.support.ui import WebDriverWait

    found = lambda browser: browser.find_elements('css selector', selector)
    return WebDriverWait(browser, seconds).until(found)[0]


def write_picture(out):
    """Serves rendered clips, asks for one of them, and writes what the page shows."""
    from PIL import Image

    from fsar_jax.ingest.video_files import write_video
    from tfds_builders.synthetic_actions.renderer import ClipSettings, render_clip

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        settings = ClipSettings(size=160)
        for number, class_name in enumerate(CLASSES):
            (folder / 'clips' / class_name).mkdir(parents=True)
            for i in range(4):
                frames = render_clip(class_name, (number, i), settings).frames
                write_video(folder / 'clips' / class_name / f'{i + 1}.mp4', frames)
        query = folder / 'new clip.mp4'
        write_video(query, render_clip(CLASSES[2], (9, 0), settings).frames)
        command = ['-m', 'fsar_jax.serve', f'--examples={folder / "clips"}', '--port=0']
        server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        try:
            address = re.match(r'open (\S+) ', server.stdout.readline())[1]
            with chromium(folder / 'profile', 900, 1180) as browser:
                browser.get(address)
                wait_for(browser, '.class img')
                browser.find_element('css selector', '#query-file').send_keys(str(query))
                wait_for(browser, '.answered')
                browser.save_screenshot(str(folder / 'page.png'))
        finally:
            server.terminate()
            server.wait()
        Image.open(folder / 'page.png').quantize(128).save(out, optimize=True)


if __name__ == '__main__':
    write_picture(sys.argv[1])
