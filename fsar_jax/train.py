"""Trains and evaluates a few-shot action recognition method.

    python main.py --config=configs/strm.py
        trains, selects a checkpoint on val and evaluates it on test once
    python main.py --config=configs/strm.py:ssv2 --config.data.dir=DIR
        the same, with the settings of the paper for a dataset
    python main.py --config=configs/strm.py --mode=evaluate
        evaluates the best checkpoint of the workdir, with the settings of its training;
        only the flags that you give here override them
    python main.py --config=configs/strm.py:ssv2 --mode=evaluate --weights=checkpoint.pth
        evaluates published PyTorch weights

`python -m fsar_jax.train` and `fsar-jax train` do the same. --config=strm:ssv2 finds a method by
its name in any folder. Every setting is a flag: --config.episode.shot=5. To continue a run that was
stopped, repeat its command.
"""

import faulthandler
import pathlib
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

from fsar_jax.stopping import (
    RUN_STOPPED,
    TEST_STOPPED,
    errors_in_one_line,
    on_signals,
    say_on_signals,
)

# What takes seconds to import, JAX above all, is imported in `main`: Ctrl-C is one line from the
# start, and the processes that read videos, which import this file again, do without.
if __name__ == '__main__':
    on_signals(RUN_STOPPED)
    # After a signal, Python's own process that removes the shared memory of those does so without a
    # word.
    sys.warnoptions.append('ignore:resource_tracker')
elif __name__ == '__mp_main__':  # such a process: it ends with the one that started it
    signal.signal(signal.SIGINT, signal.SIG_IGN)

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from fsar_jax.files import local_path
from fsar_jax.messages import first_line, one_line, printable

CONFIGS = pathlib.Path(__file__).parent / 'configs'


def main(argv: list[str]) -> None:
    """Does what the command line asks for.

    Args:
      argv: the program and its flags, as sys.argv.

    Raises:
      ValueError, OSError, FloatingPointError, MemoryError: one line about what is wrong with the
        input.
      SystemExit: the same, for flags that cannot be parsed.
    """
    given = parse(argv)
    if given.help:
        print(help_text(given))
        return
    if given.config is None:
        raise ValueError(f'no --config given: try --config=strm; the methods are {_methods()}')
    if given.weights is not None and given.mode == 'train':
        from fsar_jax.config import keys_that_affect

        starts = ' or '.join(f'--config.{key}' for key in keys_that_affect('start'))
        raise ValueError(
            '--weights evaluates a published checkpoint: add --mode=evaluate (to start training '
            f'from ImageNet, set {starts})'
        )
    config_flag: Any = given['config']
    path, _, preset = config_flag.config_filename.partition('.py:')
    method = pathlib.Path(path).stem
    named = f'runs/{method}-{preset}'.rstrip('-') if given.workdir is None else given.workdir
    workdir = local_path(named, '--workdir')
    published = None if given.weights is None else local_path(given.weights, '--weights')

    if given.distributed is not None:
        start_distributed(given.distributed)
    from fsar_jax.programs import prepare

    prepare(given.config.keep_programs)
    from fsar_jax.training.export import exported_config, read_about
    from fsar_jax.training.run_settings import evaluation_config
    from fsar_jax.training.train import evaluate_only, train_and_evaluate

    if given.mode == 'train':
        train_and_evaluate(given.config, workdir, method, preset)
        return
    say_on_signals(TEST_STOPPED)
    overrides = config_flags.get_override_values(given['config'])
    if published:
        exported = read_about(published)
        config = (
            exported_config(published, exported, overrides, method, preset)
            if exported
            else given.config
        )
        evaluate_only(config, workdir, method, published, overrides)
    else:
        config = evaluation_config(given.config, overrides, workdir, method, preset)
        evaluate_only(config, workdir, method)


def start_distributed(spec: str) -> None:
    """Joins the other processes of the run. Call it before any other use of JAX."""
    import jax

    place: tuple = ()
    if spec != 'auto':
        try:
            address, *numbers = spec.split(',')
            count, index = map(int, numbers)
            if not re.fullmatch(r'.+:\d{1,5}', address) or not 0 <= index < count:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"--distributed={printable(spec)} should be 'auto' or 'host:port,count,index', "
                'the index from 0 on, e.g. 10.0.0.1:1234,2,0'
            ) from None
        place = address, count, index
    try:
        jax.distributed.initialize(*place)
    except (ValueError, RuntimeError) as error:
        advice = '' if place else "; where JAX finds no cluster, give 'host:port,count,index'"
        raise ValueError(
            f'--distributed={printable(spec)} does not work ({first_line(error)}){advice}'
        ) from None
    on_signals(RUN_STOPPED)  # it takes SIGTERM for itself


# ── Flags ─────────────────────────────────────────────────────────────────────────────────────────


def define_flags(argv: list[str]) -> flags.FlagValues:
    """The flags of this command, not parsed yet.

    argv: where the config flag looks for the settings that are overridden.
    """
    values = config_flag(argv)
    flags.DEFINE_string(
        'workdir',
        None,
        'Folder of checkpoints, metrics and results; default runs/<method>[-<preset>].',
        flag_values=values,
    )
    flags.DEFINE_enum(
        'mode',
        'train',
        ['train', 'evaluate'],
        "'train' (the default) trains, then evaluates on test once; 'evaluate' only evaluates.",
        flag_values=values,
    )
    flags.DEFINE_string(
        'weights',
        None,
        'With --mode=evaluate: a published PyTorch checkpoint, .pth or .safetensors, or a file '
        'that fsar_jax.export wrote.',
        flag_values=values,
    )
    flags.DEFINE_string(
        'distributed',
        None,
        'For several hosts: auto if JAX knows the cluster, otherwise host:port,count,index.',
        flag_values=values,
    )
    flags.DEFINE_boolean(
        'help', False, 'Print this text; with --config, every setting too.', flag_values=values
    )
    return values


def config_flag(argv: list[str]) -> flags.FlagValues:
    """Flags with --config and its settings and those of absl's logging, not parsed yet; argv as of
    `define_flags`."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        'config',
        None,
        'A method or its file, with or without a preset: strm, strm:ssv2, configs/strm.py:ssv2.',
        flag_values=values,
        lock_config=True,
        sys_argv=argv,
    )
    for flag in flags.FLAGS.flags_by_module_dict()['absl.logging']:
        values[flag.name] = flag
    return values


def parse(
    argv: list[str], define: Callable[[list[str]], flags.FlagValues] = define_flags
) -> flags.FlagValues:
    """Parses the flags of a command line. A wrong flag or config file ends the process with one
    line that names the flag.

    define: gives the flags of the command, for its words."""
    try:
        argv = with_config_path(flags.FLAGS.read_flags_from_files(argv, force_gnu=False))
        values = define(argv)
        rest = values(argv)
    except (AttributeError, KeyError) as error:
        if 'get_config' in str(error):
            sys.exit('error: --config names a file without get_config(), as those in configs/ have')
        sys.exit(
            f'error: no such config key: {in_one_line(error)} (python -m fsar_jax.settings lists '
            'them)'
        )
    except (flags.Error, TypeError, ValueError) as error:
        sys.exit(f'error: {in_one_line(error)}')
    except OSError as error:
        sys.exit(f'error: --config: {in_one_line(error)}')
    except Exception as error:  # of the config file, which is code
        sys.exit(f'error: --config cannot be loaded: {type(error).__name__}: {in_one_line(error)}')
    if len(rest) > 1:
        sys.exit(
            f"error: unexpected argument '{printable(rest[1])}': flags look like "
            '--config.episode.shot=5'
        )
    # A file that could not be loaded raises when it is used.
    if values.config is not None and not isinstance(values.config, ml_collections.ConfigDict):
        sys.exit('error: get_config() of --config returns no ConfigDict, as those in configs/ do')
    return values


def with_config_path(argv: list[str]) -> list[str]:
    """The arguments with the file that --config names in place of 'strm:ssv2' or '~/mine.py'."""
    argv = list(argv)
    for index, argument in enumerate(argv):
        name, equals, value = argument.partition('=')
        if argument == '--':
            break
        if name in ('--config', '-config') and value:
            argv[index] = f'{name}={config_file(value)}'
        elif name in ('--config', '-config') and not equals and index + 1 < len(argv):
            argv[index + 1] = config_file(argv[index + 1])
    return argv


def config_file(given: str) -> str:
    """The path, with its ':preset', that a value of --config stands for.

    Raises:
      ValueError: there is no such method and no such file.
    """
    name, colon, preset = given.partition(':')
    if re.fullmatch(r'\w+', name) and (CONFIGS / f'{name}.py').is_file():
        return f'{CONFIGS / name}.py{colon}{preset}'
    path = str(local_path(given, '--config'))
    end, colon, _ = path.partition('.py:')
    if not pathlib.Path(end + '.py' if colon else path).is_file():
        raise ValueError(
            f'--config={printable(given)}: no such file or method; the methods are {_methods()}'
        )
    return path


def _methods() -> str:
    return ', '.join(sorted(path.stem for path in CONFIGS.glob('[!_]*.py')))


def in_one_line(error: Exception) -> str:
    """The message of a flag or config error. What a config file raises arrives inside a printed
    traceback, whose last line has the message."""
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
        # Of other exceptions, which are faults of the file, the kind is part of the message.
        return lines[-1].removeprefix('ValueError: ')
    message = ' '.join(line.strip() for line in lines)
    # of a config file, with all other keys of the section
    message = re.sub(r'Key (".*?") does not exist.*?Other fields present: .*\}"?', r'\1', message)
    a_section = 'a section of the settings: give one of its keys'
    message = re.sub(r'Failed to parse .* as a ConfigDict: .*', a_section, message)
    # the same of ml_collections before 1.1
    message = re.sub(
        r".*ConfigDict'> of field (\S+) is not .*", rf'flag --\1: {a_section}', message
    )
    message = re.sub(
        r"\('Non-boolean argument to boolean flag', .*\)$", 'should be True or False', message
    )
    number = re.fullmatch(
        r'(flag --config\.(\S+?)=.*): (invalid literal for int|could not convert).*', message
    )
    if number:
        from fsar_jax.config import SETTINGS
        from fsar_jax.fields import described

        if number[2] in SETTINGS:
            return f'{number[1]}: should be {described(SETTINGS[number[2]])}'
    return message


def help_text(given: flags.FlagValues) -> str:
    """What the command does and its flags; with --config, every setting and its value too."""
    names = ('config', 'workdir', 'mode', 'weights', 'distributed', 'help')
    lines = [__doc__, 'Flags:', *(f'  --{name:<12} {given[name].help}' for name in names)]
    lines += ['  --verbosity=1  Show the traceback of an error, and what libraries log.']
    lines += [f'\nMethods: {_methods()}.']
    if given.config is not None:
        from fsar_jax.config import SETTINGS, setting_of

        lines += ['\nSettings, with their values here (python -m fsar_jax.settings has more):']
        for key, known in SETTINGS.items():
            choices = f' ({", ".join(map(str, known.choices))})' if known.choices else ''
            line = f'  --config.{key}={setting_of(given.config, key)!r}'
            lines += [f'{line:<50}  {known.help}{choices}']
    return '\n'.join(lines)


def run(argv: list[str]) -> None:
    """The command: `main` with what is wrong with the input on one line of stderr (with
    --verbosity=1 the traceback too). A traceback is a fault of the code."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)  # Orbax and TFDS log every file that they touch
    flags.FLAGS.mark_as_parsed()  # its logging flags are parsed here with ours
    with errors_in_one_line(unless=logging.level_debug, flag='--verbosity=1'):
        main(argv)


if __name__ == '__main__':
    faulthandler.enable()  # a crash inside a library prints where it was
    run(sys.argv)
