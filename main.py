"""Trains and evaluates a few-shot action recognition method.

    python main.py --config=configs/strm.py                                  train, select on val, evaluate test once
    python main.py --config=configs/strm.py:ssv2 --config.data.dir=DIR       the paper's setting
    python main.py --config=configs/strm.py --mode=evaluate                  the best checkpoint of the workdir, with the settings
                                                                             of its training but for
                                                                             the flags given here
    python main.py --config=configs/strm.py:ssv2 --mode=evaluate --weights=checkpoint.pth      published PyTorch weights

Any value of fsar_jax/config.py is a flag: --config.episode.shot=5. The same command goes on where
it was stopped.
"""

import pathlib
import re
import signal
import sys

from fsar_jax.stopping import on_signals

STOPPED = 'what was finished is kept, the same command goes on from there'

# What takes seconds to import, JAX above all, is imported in `main`: Ctrl-C is one line from the
# start, and the processes that read videos, which import this file again, do without.
if __name__ == '__main__':
    on_signals(STOPPED)
    # After a signal, Python's own process that removes the shared memory of those does so without a
    # word.
    sys.warnoptions.append('ignore:resource_tracker')
elif __name__ == '__mp_main__':  # such a process: it ends with the one that started it
    signal.signal(signal.SIGINT, signal.SIG_IGN)

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from fsar_jax.files import local_path
from fsar_jax.messages import one_line, printable

try:
    CONFIG = config_flags.DEFINE_config_file(
        'config', None, 'configs/<method>.py, or configs/<method>.py:<preset>.', lock_config=True
    )
except flags.Error as error:  # it looks into --flagfile already
    sys.exit(f'error: {one_line(error)}')
WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Checkpoints, metrics and results; default runs/<method>[-<preset>].'
)
MODE = flags.DEFINE_enum(
    'mode', 'train', ['train', 'evaluate'], 'train (then test once), or evaluate only.'
)
WEIGHTS = flags.DEFINE_string(
    'weights', None, 'With --mode=evaluate: a published PyTorch checkpoint, .pth or .safetensors.'
)
DISTRIBUTED = flags.DEFINE_string(
    'distributed',
    None,
    'Several hosts: "auto" where JAX knows the cluster, else "host:port,count,index".',
)


def main(argv):
    if len(argv) > 1:
        raise ValueError(
            f"unexpected argument '{printable(argv[1])}': flags look like --config.episode.shot=5"
        )
    if not flags.FLAGS['verbosity'].present:
        logging.set_verbosity(logging.WARNING)  # Orbax and TFDS tell every file that they touch
    if CONFIG.value is None:
        raise ValueError('no --config given: try --config=configs/strm.py')
    if WEIGHTS.value and MODE.value == 'train':
        raise ValueError(
            '--weights evaluates a published checkpoint: add --mode=evaluate (to start training '
            'from ImageNet, '
            'set --config.model.backbone.weights)'
        )
    path, _, preset = flags.FLAGS['config'].config_filename.partition('.py:')
    method = pathlib.Path(path).stem
    workdir = local_path(WORKDIR.value or f'runs/{method}-{preset}'.rstrip('-'), '--workdir')
    published = local_path(WEIGHTS.value, '--weights') if WEIGHTS.value else None

    if DISTRIBUTED.value:
        start_distributed(DISTRIBUTED.value)
    from fsar_jax.training.train import evaluate_only, train_and_evaluate
    from fsar_jax.training.workdir import evaluation_config

    if MODE.value == 'train':
        train_and_evaluate(CONFIG.value, workdir, method, preset)
        return
    given = config_flags.get_override_values(flags.FLAGS['config'])
    if published:
        evaluate_only(CONFIG.value, workdir, method, published, given)
    else:
        evaluate_only(
            evaluation_config(CONFIG.value, given, workdir, method, preset), workdir, method
        )


def start_distributed(spec: str):
    """Joins the other processes of the run; before any other use of JAX."""
    import jax

    if spec == 'auto':
        jax.distributed.initialize()
    else:
        try:
            address, count, index = spec.split(',')
            count, index = int(count), int(index)
        except ValueError:
            raise ValueError(
                f"--distributed={printable(spec)} should be 'auto' or 'host:port,count,index', "
                "e.g. 10.0.0.1:1234,2,0"
            ) from None
        jax.distributed.initialize(address, count, index)
    on_signals(STOPPED)  # it takes SIGTERM for itself


def parse(argv):
    """Parses the flags; what is wrong with them, or with the config file, is one line that names
    the flag."""
    try:
        rest = flags.FLAGS(with_config_path(argv))
        # A file that could not be loaded says so when it is used.
        if CONFIG.value is not None and not isinstance(CONFIG.value, ml_collections.ConfigDict):
            sys.exit(
                'error: get_config() of --config returns no ConfigDict, as those in configs/ do'
            )
        return rest
    except (AttributeError, KeyError) as error:
        if 'get_config' in str(error):
            sys.exit('error: --config names a file without get_config(), as those in configs/ have')
        sys.exit(
            f'error: no such config key: {in_one_line(error)} (fsar_jax/config.py has them all)'
        )
    except (flags.Error, TypeError, ValueError) as error:
        sys.exit(f'error: {in_one_line(error)}')
    except OSError as error:
        sys.exit(f'error: --config: {in_one_line(error)}')
    except Exception as error:  # of the config file, which is code
        sys.exit(f'error: --config cannot be loaded: {type(error).__name__}: {in_one_line(error)}')


def with_config_path(argv: list[str]) -> list[str]:
    """The arguments with '~' in --config=~/mine.py expanded: the file is read while they are
    parsed."""
    argv = list(argv)
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition('=')
        if argument == '--':
            break
        if name in ('--config', '-config') and value:
            argv[place] = f'{name}={config_file(value)}'
        elif name in ('--config', '-config') and not equals and place + 1 < len(argv):
            argv[place + 1] = config_file(argv[place + 1])
    return argv


def config_file(given: str) -> str:
    """The value of --config, checked to name a file before its ':preset'."""
    path = str(local_path(given, '--config'))
    end, colon, _ = path.partition('.py:')
    if not pathlib.Path(end + '.py' if colon else path).is_file():
        raise ValueError(f'--config={printable(given)}: no such file; the methods are configs/*.py')
    return path


def in_one_line(error: Exception) -> str:
    """The message of a flag or config error. What a config file raises arrives inside a printed
    traceback: its last line says it."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if isinstance(error, OSError) and error.errno is not None or isinstance(error, SyntaxError):
        return one_line(error)
    lines = (
        str(error.args[0] if error.args else error)
        .replace('\\n', '\n')
        .replace("\\'", "'")
        .strip('"\n')
        .splitlines()
    )
    if any('Traceback' in line for line in lines):
        return lines[-1].removeprefix(
            'ValueError: '
        )  # of other exceptions, which are faults of the file, the kind tells
    said = ' '.join(line.strip() for line in lines)
    said = re.sub(
        r'Failed to parse .* as a ConfigDict: .*',
        'a section of the settings: give one of its keys',
        said,
    )
    return re.sub(
        r"\('Non-boolean argument to boolean flag', .*\)$", 'should be True or False', said
    )


def run():
    """What is wrong with the input is one line (with --verbosity=1 the traceback too); what is
    wrong with the code is a traceback."""
    try:
        app.run(main, flags_parser=parse)
    except (ValueError, OSError, FloatingPointError) as error:
        if logging.level_debug():
            raise
        sys.exit(f'error: {one_line(error)}')


if __name__ == '__main__':
    run()
