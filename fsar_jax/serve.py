"""Recognises clips in a browser: python -m fsar_jax.serve --examples=clips

It prints an address to open. On the page you drop example clips into classes, then a clip to
recognise, and see the class, the frames that decided and the scores of all classes. DIR of
--examples=DIR holds <class>/<clip>; without it, the page begins with no classes. With
--workdir=RUN, a trained run decides, otherwise pretrained features (pip install
'fsar_jax[app,pretrained]').

The page is only for this computer, unless --host says otherwise. Clips are written to a temporary
folder, embedded and deleted; Ctrl-C ends the server and removes the folder.
"""

from __future__ import annotations

from fsar_jax.stopping import errors_in_one_line, finish_first, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('the server has ended, and keeps no clip')

import argparse
import contextlib
import errno
import ipaddress
import pathlib
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator

from fsar_jax.arguments import Parser
from fsar_jax.files import local_path
from fsar_jax.messages import printable

PORT = 7860


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The flags; ValueError about one that cannot be."""
    parser = Parser(prog='python -m fsar_jax.serve', description='Recognises clips in a browser.')
    parser.add_argument('--examples', metavar='DIR', help='folder <class>/<clip> to begin with')
    parser.add_argument(
        '--workdir', metavar='RUN', help='a trained run that decides; default: pretrained features'
    )
    parser.add_argument(
        '--host', default='127.0.0.1', help='address; default %(default)s, this machine alone'
    )
    parser.add_argument(
        '--port', type=int, default=PORT, help='default %(default)s; 0 takes a free one'
    )
    parser.add_argument(
        '--max-mb', type=float, default=200, help='size of a clip at most; default %(default)s'
    )
    parser.add_argument(
        '--max-seconds',
        type=float,
        default=120,
        help='length of a clip at most, in seconds; default %(default)s',
    )
    args = parser.parse(arguments)
    for flag, value in (('--max-mb', args.max_mb), ('--max-seconds', args.max_seconds)):
        if not 0 < value < 1e6:
            raise ValueError(f'{flag}={value:g} should be more than 0 and less than 1,000,000')
    if not 0 <= args.port <= 65535:
        raise ValueError(f'--port={args.port} should be from 0 to 65535')
    return args


def serve(args: argparse.Namespace) -> None:
    """Serves the page until the process is ended.

    Raises:
      ValueError, OSError: one line: a package is missing, an example folder or a run cannot be
        used, or the port is taken.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(
            f"the page needs {error.name}, which is not installed: pip install 'fsar_jax[app]'"
        ) from None
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    from fsar_jax.browser.app import Limits, web_app
    from fsar_jax.programs import prepare
    from fsar_jax.recognition.recognizer import Recognizer

    prepare()

    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(listen(args.host, args.port))
        # A clip that is left out is said by the page, or below.
        warnings.filterwarnings('ignore', message='.* is left out: ')
        workdir = None if args.workdir is None else local_path(args.workdir, '--workdir')
        recognizer = Recognizer(workdir)
        if args.examples:
            recognizer.fit(local_path(args.examples, '--examples'))
            for class_name, name, reason in recognizer.skipped:
                print(f"left out of '{printable(class_name)}': {printable(name)}: {reason}")

        folder = pathlib.Path(tempfile.mkdtemp(prefix='fsar_jax-serve-'))
        remove = lambda: shutil.rmtree(folder, ignore_errors=True)
        stack.callback(remove)
        stack.enter_context(finish_first(remove))
        app = web_app(
            recognizer, folder, Limits(args.max_mb, args.max_seconds), names_of(args.host)
        )
        address = address_of(args.host, listening.getsockname()[1])

        @contextlib.asynccontextmanager
        async def lifespan(app: object) -> AsyncIterator[None]:
            on_signals('the server has ended, and keeps no clip')  # uvicorn took the signals
            print(f'open {address} in a browser; Ctrl-C ends the server', flush=True)
            yield

        app.router.lifespan_context = lifespan
        config = uvicorn.Config(
            app,
            # uvloop would take the signals for itself.
            loop='asyncio',
            http='h11',
            ws='none',
            log_level='warning',
            access_log=False,
            server_header=False,
            limit_concurrency=100,
        )
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; OSError with the address where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:  # socket.gaierror too
        taken = error.errno == errno.EADDRINUSE
        words = 'another program uses it, try --port=0' if taken else error.strerror
        raise OSError(f'--host={printable(host)} --port={port}: {words}') from None


def is_here(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def names_of(host: str) -> frozenset[str] | None:
    """By which names a browser may call the server; None for any."""
    if is_here(host):
        return frozenset(['localhost', '127.0.0.1', '::1', host])
    return None


def address_of(host: str, port: int) -> str:
    shown = {'0.0.0.0': socket.gethostname(), '::': socket.gethostname()}.get(host, host)
    return f'http://[{shown}]:{port}/' if ':' in shown else f'http://{shown}:{port}/'


def main(arguments: list[str] | None = None) -> None:
    """Serves what `arguments` ask for (None: those of the command line)."""
    args = parse(arguments)
    if not is_here(args.host):
        print(
            f'warning: with --host={printable(args.host)}, everyone who reaches this machine can '
            'use the page: it has no password',
            file=sys.stderr,
        )
    serve(args)


if __name__ == '__main__':
    with errors_in_one_line():
        main()
