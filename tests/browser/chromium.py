"""Debian's Chromium without a window, driven by Selenium; and the picture of the page in README.md:

    PYTHONPATH=. python tests/browser/chromium.py runs/strm docs/images/serve.png

The picture shows clips that this project renders, of classes that the run of ./run.sh has not seen
in training. It needs Chromium (apt-get install chromium chromium-driver).
"""

import base64
import contextlib
import io
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

PROGRAMS = ('chromium', 'chromedriver')
CLASSES = ('dropping something', 'lifting something', 'moving something left then up')


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


def write_picture(workdir, out):
    """Serves rendered clips, asks for another one, and writes what the page shows."""
    from PIL import Image

    from fsar_jax.ingest.video_files import write_video
    from tfds_builders.synthetic_actions.renderer import ClipSettings, render_clip

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        settings = ClipSettings(size=128)
        for number, class_name in enumerate(CLASSES):
            (folder / 'clips' / class_name).mkdir(parents=True)
            for i in range(4):
                frames = render_clip(class_name, (number, i), settings).frames
                write_video(folder / 'clips' / class_name / f'{i + 1}.mp4', frames)
        query = folder / 'new clip.mp4'
        write_video(query, render_clip(CLASSES[2], (9, 1), settings).frames)
        flags = [f'--workdir={workdir}', f'--examples={folder / "clips"}', '--port=0']
        command = ['-m', 'fsar_jax.serve', *flags]
        server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        try:
            address = re.match(r'open (\S+) ', server.stdout.readline())[1]
            with chromium(folder / 'profile', 900) as browser:
                browser.get(address)
                wait_for(browser, '.class img')
                browser.find_element('css selector', '#query-file').send_keys(str(query))
                wait_for(browser, '.answered')
                height = browser.execute_script('return document.documentElement.scrollHeight')
                clip = {'x': 0, 'y': 0, 'width': 900, 'height': height, 'scale': 1}
                taken = browser.execute_cdp_cmd(
                    'Page.captureScreenshot', {'captureBeyondViewport': True, 'clip': clip}
                )
        finally:
            server.terminate()
            server.wait()
        page = Image.open(io.BytesIO(base64.b64decode(taken['data'])))
        page.quantize(256).save(out, optimize=True)


if __name__ == '__main__':
    write_picture(*sys.argv[1:])
