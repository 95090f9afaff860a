"""The web application of `python -m fsar_jax.serve`.

    GET  /                                the page
    GET  /examples                        the classes and their examples, as JSON
    POST /examples?class=wave&name=a.mp4  adds an example; the body is the file
    POST /remove?class=wave               removes a class; &example=0 its first example alone
    POST /reset                           back to the examples of the start
    POST /answer?name=b.mp4               says what a clip shows; the body is the file
         &unknown_below=0.5               'none of these' where the best class is less probable
         &window=4                        what a recording shows when, by windows of 4 seconds

Everything else is refused: no request names a file of this machine. Each browser has a cookie, and
by it its own examples. An upload is written to the server's temporary folder, embedded and deleted.
Every refusal is JSON, {"error": one line}.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import functools
import math
import pathlib
import re
import secrets
import shutil
import sys
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fsar_jax.analysis.html_page import data_uri
from fsar_jax.analysis.recognition_page import answer_parts, timeline_parts
from fsar_jax.browser.page import browser_page
from fsar_jax.ingest.video_files import VideoError, seconds_of
from fsar_jax.messages import is_out_of_memory, one_line, printable
from fsar_jax.recognition.recognizer import Recognizer

AT_ONCE = 2  # clips that are decoded and embedded at the same time; others wait
MOST_SHOWN = 8  # examples of a class that have a picture on the page
MOST_CLASSES = 100
SHORTEST_WINDOW = 1  # seconds
LONGEST_NAME = 80  # characters of a class
COOKIE = 'fsar_jax_{port}'  # cookies of a host are shared by all its ports

Handler = Callable[[Request], Awaitable[Response]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one browser may do.

    Attributes:
      megabytes: of an upload (of 1,000,000 bytes).
      seconds: of a clip.
      clips: examples of one browser, those of the start included.
      browsers: with examples of their own; of more, the one that was idle longest loses its own.
    """

    megabytes: float = 200
    seconds: float = 120
    clips: int = 1000
    browsers: int = 20


class Examples:
    """The examples of one browser. A change makes a new recogniser, so that an answer that is being
    found keeps the examples with which it began."""

    def __init__(self, recognizer: Recognizer) -> None:
        self.recognizer = recognizer
        self.let_go = False  # reset while a change was under way
        self._changing = threading.Lock()

    def add(self, class_name: str, path: pathlib.Path, most: int) -> None:
        """Adds a clip.

        Raises:
          ValueError: one line: it cannot be used, is there already, or there are `most`.
        """
        with self._changing:
            changed = self.recognizer.copy()
            if sum(map(len, changed.examples.values())) >= most:
                raise ValueError(f'there are {most} examples already, which is the most')
            if class_name not in changed.classes and len(changed.classes) >= MOST_CLASSES:
                raise ValueError(f'there are {MOST_CLASSES} classes already, which is the most')
            before = len(changed.skipped)
            changed.add({class_name: [path]})
            for _, name, reason in changed.skipped[before:]:
                raise ValueError(f'{name}: {reason}')
            self.recognizer = changed

    def remove(self, class_name: str, number: int | None) -> None:
        """Removes a class, or one of its examples; ValueError where there is none."""
        with self._changing:
            changed = self.recognizer.copy()
            names = changed.examples.get(class_name, [])
            if number is not None and not 0 <= number < len(names):
                raise ValueError(f'there is no such example: the class has {len(names)}')
            changed.remove(class_name, None if number is None else names[number])
            self.recognizer = changed


class Browsers:
    """The examples of every browser that has changed them; all others see those of the start."""

    def __init__(self, start: Recognizer, most: int) -> None:
        self.start, self._most = start, most
        self._own: collections.OrderedDict[str, Examples] = collections.OrderedDict()
        # of requests that may still be refused
        self._tried: weakref.WeakValueDictionary[str, Examples] = weakref.WeakValueDictionary()

    def of(self, key: str) -> Recognizer:
        """The recogniser that a browser sees."""
        if key in self._own:
            self._own.move_to_end(key)
            return self._own[key].recognizer
        return self.start

    def own(self, key: str) -> Examples:
        """The examples that a browser may change. They are its own after `keep`."""
        fresh = Examples(self.start)
        return self._own.get(key) or self._tried.setdefault(key, fresh)

    def keep(self, key: str, examples: Examples) -> None:
        """They have been changed."""
        if examples.let_go:
            return
        self._tried.pop(key, None)
        self._own[key] = examples
        self._own.move_to_end(key)
        while len(self._own) > self._most:
            self._own.popitem(last=False)

    def reset(self, key: str) -> None:
        for entries in (self._own, self._tried):
            if (examples := entries.pop(key, None)) is not None:
                examples.let_go = True


def web_app(
    start: Recognizer, folder: pathlib.Path, limits: Limits, hosts: frozenset[str] | None
) -> Starlette:
    """The application.

    Args:
      start: the recogniser that every browser sees first; it may have no examples.
      folder: for uploads; nothing is written elsewhere.
      hosts: names by which this server may be called; None for any. Otherwise a page elsewhere
        could make its own name point here, and read what it likes (DNS rebinding).
    """
    browsers = Browsers(start, limits.browsers)
    in_turn = anyio.CapacityLimiter(AT_ONCE)

    def in_thread(function, *arguments):
        return anyio.to_thread.run_sync(function, *arguments, limiter=in_turn)

    async def show_page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        response = HTMLResponse(browser_page(limits.megabytes, limits.seconds, nonce))
        response.headers['Content-Security-Policy'] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; "
            "img-src data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
            "frame-ancestors 'none'"
        )
        return response

    async def show_examples(request: Request) -> Response:
        return JSONResponse(await in_thread(listing, browsers.of(_key(request))))

    async def add_example(request: Request) -> Response:
        examples = browsers.own(_key(request))
        class_name = _class_name(request, examples.recognizer.classes)
        async with _received(request, folder, limits) as path:
            await in_thread(_check_length, path, limits)
            await in_thread(examples.add, class_name, path, limits.clips)
        browsers.keep(_key(request), examples)
        return JSONResponse(await in_thread(listing, examples.recognizer))

    async def remove_class(request: Request) -> Response:
        examples = browsers.own(_key(request))
        number = _number(request, 'example')
        if number is not None and not number.is_integer():
            raise HTTPException(400, f'?example={number:g} should be a whole number')
        number = None if number is None else int(number)
        class_name = _class_name(request, examples.recognizer.classes)
        await in_thread(examples.remove, class_name, number)
        browsers.keep(_key(request), examples)
        return JSONResponse(await in_thread(listing, examples.recognizer))

    async def reset(request: Request) -> Response:
        browsers.reset(_key(request))
        return JSONResponse(await in_thread(listing, start))

    async def answer(request: Request) -> Response:
        recognizer = browsers.of(_key(request))
        if len(recognizer.classes) < 2:
            raise HTTPException(409, 'there is nothing to choose from: add clips of two classes')
        window, unknown_below = _number(request, 'window'), _number(request, 'unknown_below')
        if window is not None and window < SHORTEST_WINDOW:
            raise HTTPException(400, f'?window={window:g} should be at least {SHORTEST_WINDOW} s')
        async with _received(request, folder, limits) as path:
            await in_thread(_check_length, path, limits)
            if window is None:
                said = await in_thread(_answered, recognizer, path, unknown_below)
            else:
                said = await in_thread(_timed, recognizer, path, window, unknown_below)
        error = said.pop('error', None)
        if error is not None:
            raise HTTPException(422, f'{path.name}: {error}')
        return JSONResponse(said)

    def guarded(handler: Handler) -> Handler:
        """Refuses what another site's page may have sent; gives the browser its cookie."""

        @functools.wraps(handler)
        async def guarded_handler(request: Request) -> Response:
            if hosts is not None and request.url.hostname not in hosts:
                name = printable(request.url.hostname, 80)
                raise HTTPException(
                    403, f"this server does not answer to the name '{name}': give it by --host"
                )
            if request.method == 'POST' and not _of_this_site(request):
                raise HTTPException(403, 'this request comes from the page of another site')
            cookie = _cookie(request)
            request.state.key = request.cookies.get(cookie) or secrets.token_urlsafe(32)
            try:
                response = await handler(request)
            except (ValueError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise HTTPException(503, one_line(error)) from None
                if isinstance(error, RuntimeError):
                    raise
                raise HTTPException(422, _without_paths(one_line(error), folder)) from None
            except ClientDisconnect:
                raise HTTPException(400, 'the upload broke off') from None
            if cookie not in request.cookies:
                response.set_cookie(cookie, request.state.key, httponly=True, samesite='strict')
            for name, value in SAFE.items():
                response.headers[name] = value
            return response

        return guarded_handler

    return Starlette(
        routes=[
            Route('/', guarded(show_page), methods=['GET']),
            Route('/examples', guarded(show_examples), methods=['GET']),
            Route('/examples', guarded(add_example), methods=['POST']),
            Route('/remove', guarded(remove_class), methods=['POST']),
            Route('/reset', guarded(reset), methods=['POST']),
            Route('/answer', guarded(answer), methods=['POST']),
        ],
        exception_handlers={HTTPException: _refusal, Exception: _failure},
    )


def listing(recognizer: Recognizer) -> dict[str, Any]:
    """What the page shows of a recogniser: its classes with the first examples of each, and how
    often it will be right."""
    classes = []
    for name, examples in recognizer.thumbnails.items():
        shown = [
            {'name': _last_part(path), 'picture': data_uri(frames[len(frames) // 2])}
            for path, frames in examples[:MOST_SHOWN]
        ]
        classes.append({'name': name, 'count': len(examples), 'examples': shown})
    return {'classes': classes, 'expected': str(recognizer.expected) if len(classes) > 1 else ''}


def _answered(
    recognizer: Recognizer, path: pathlib.Path, unknown_below: float | None
) -> dict[str, Any]:
    """What a clip shows, as JSON with the HTML that says so; 'error' says why not."""
    [found] = recognizer.answer([path], unknown_below)
    class_name, example = found.example
    found = dataclasses.replace(found, clip=path.name, example=(class_name, _last_part(example)))
    html = answer_parts(found) if found.error is None else ''
    return found.to_json() | {'html': html}


def _timed(
    recognizer: Recognizer, path: pathlib.Path, window: float, unknown_below: float | None
) -> dict[str, Any]:
    """What a recording shows when; otherwise as `_answered`."""
    found = recognizer.timeline(path, window, window / 4, unknown_below)
    html = timeline_parts(found.duration, found.segments)
    return dataclasses.replace(found, clip=path.name).to_json() | {'html': html}


@contextlib.asynccontextmanager
async def _received(
    request: Request, folder: pathlib.Path, limits: Limits
) -> AsyncIterator[pathlib.Path]:
    """Writes the body of a request to a file of its own, which is deleted at the end of the block.

    The file has the name that the browser gives, without folders. A body that says that it is too
    large is refused before it is read, another one as soon as it is.
    """
    name, most = _file_name(request.query_params.get('name', '')), int(limits.megabytes * 1e6)
    too_large = HTTPException(
        413, f'{name} is larger than {limits.megabytes:g} MB, which this server takes (--max-mb)'
    )
    if int(request.headers.get('content-length', 0)) > most:
        raise too_large
    own = folder / secrets.token_hex(8)
    own.mkdir()
    try:
        size = 0
        with open(own / name, 'xb') as file:
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise too_large
                file.write(part)
        if not size:
            raise HTTPException(400, f'{name} is empty: the body of the request is the file')
        yield own / name
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise HTTPException(507, f'{name}: the disk of the server is full') from None
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _check_length(path: pathlib.Path, limits: Limits) -> None:
    try:
        seconds = seconds_of(path)
    except VideoError as error:
        raise HTTPException(422, f'{path.name}: {error}') from None
    if seconds > limits.seconds:
        raise HTTPException(
            422,
            f'{path.name} lasts {seconds:.0f} s; this server takes {limits.seconds:g} s at most '
            '(--max-seconds)',
        )


def _file_name(given: str) -> str:
    """A name for a file, from what a browser says: no folder, no hidden file, not too long."""
    name = ''.join(c if c.isprintable() else '_' for c in re.split(r'[/\\]', given)[-1])
    name = name.strip().lstrip('.')
    stem, dot, suffix = name.rpartition('.')
    suffix = suffix.encode()[:10].decode(errors='ignore')  # systems take 255 bytes, not letters
    return (f'{stem[:60]}{dot}{suffix}' if stem else name[:60]) or 'clip'


def _class_name(request: Request, known: Sequence[str]) -> str:
    """The name in the request. A new class has one line of at most LONGEST_NAME characters."""
    given = request.query_params.get('class', '')
    if given in known:
        return given
    name = ' '.join(given.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise HTTPException(
            400, f'?class= should name a class, with 1 to {LONGEST_NAME} printable characters'
        )
    return name


def _number(request: Request, name: str) -> float | None:
    given = request.query_params.get(name)
    try:
        number = None if given is None else float(given)
    except ValueError:
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise HTTPException(400, f'?{name}={printable(given, 40)} should be a number')
    return number


def _of_this_site(request: Request) -> bool:
    """Whether a request comes from our own page, or from no page at all. Browsers say so by
    Sec-Fetch-Site, but only to an address that they trust (https, this computer); otherwise by
    Origin."""
    site, origin = request.headers.get('sec-fetch-site'), request.headers.get('origin')
    if site is not None:
        return site in ('same-origin', 'none')
    return origin is None or origin.partition('://')[2] == request.headers.get('host')


def _last_part(path: str) -> str:
    return re.split(r'[/\\]', path)[-1]


def _without_paths(message: str, folder: pathlib.Path) -> str:
    """A message without the places of files on this machine, such as /tmp/x/1f/a.mp4: a.mp4."""
    message = re.sub(re.escape(f'{folder}/') + r'[0-9a-f]+/', '', message)
    return re.sub(r'(?<![\w.])/(?:[^/\s]+/)+', '', message)


def _cookie(request: Request) -> str:
    return COOKIE.format(port=request.scope['server'][1])


def _key(request: Request) -> str:
    return request.state.key


# Headers of every answer: pictures and scripts come from here alone, and nothing is kept.
SAFE = {
    'Cache-Control': 'no-store',
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
}


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reasons = {404: 'there is no such page here', 405: 'this page does not take such a request'}
    return JSONResponse(
        {'error': reasons.get(error.status_code, error.detail)}, error.status_code, SAFE
    )


async def _failure(request: Request, error: Exception) -> Response:
    """What nobody thought of: a line for the browser, the rest for who runs the server."""
    traceback.print_exception(error, file=sys.stderr)
    return JSONResponse({'error': f'the server failed: {type(error).__name__}'}, 500, SAFE)
