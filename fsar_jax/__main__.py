"""The command `fsar-jax COMMAND ...` of an installed fsar_jax.

`fsar-jax build ...` does the same as `python -m fsar_jax.build ...`, and so on.
"""

import difflib
import runpy
import sys

from fsar_jax import __version__
from fsar_jax.messages import printable
from fsar_jax.stopping import errors_in_one_line

# command: (module, flags that it adds, what it does)
COMMANDS = {
    'build': ('build', [], 'build a dataset from video files'),
    'verify': ('verify', [], 'check that a built dataset is whole and complete'),
    'contact_sheet': ('contact_sheet', [], 'draw one clip of each class of a dataset'),
    'extract': ('extract', [], 'run a backbone once over a dataset, to train on its features'),
    'pretrain': ('pretrain', [], 'train backbone and scan network on single frames'),
    'train': ('train', [], 'train a method, then evaluate it on test once'),
    'evaluate': ('train', ['--mode=evaluate'], 'evaluate a trained run, or published weights'),
    'recognize': ('recognize', [], 'say which of your classes clips show'),
    'serve': ('serve', [], 'recognise clips in a browser'),
    'export': ('export', [], 'write a trained model as .safetensors and .json'),
    'settings': ('settings', [], 'print every setting of a run, and what it does'),
    'compare': ('compare', [], 'compare results on the same episodes in pairs'),
    'report': ('report', [], 'draw what a run did on one HTML page'),
    'selection': ('selection', [], 'say whether a run looks at its clips: the null tests'),
    'table': ('table', [], 'print a table of many runs, averaged over seeds'),
    'sweep': ('sweep', [], "run the rows of a paper's table, with seeds"),
}


def main() -> None:
    """Runs the command that sys.argv names, as `python -m` would. Lists the commands if there is
    none."""
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help', 'help'):
        with errors_in_one_line():
            print('usage: fsar-jax COMMAND ...        fsar-jax COMMAND --help\n')
            print('\n'.join(f'  {name:<14} {about}' for name, (*_, about) in COMMANDS.items()))
    elif name == '--version':
        print(f'fsar_jax {__version__}')
    elif name.replace('-', '_') in COMMANDS:
        module, added, _ = COMMANDS[name.replace('-', '_')]
        sys.argv[1:] = [*added, *arguments]
        # As the main module, so that the processes it starts import that one again, not this.
        runpy.run_module(f'fsar_jax.{module}', run_name='__main__', alter_sys=True)
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        asked = f'did you mean {near[0]}? Or one' if near else 'choose one'
        sys.exit(f"error: unknown command '{printable(name)}': {asked} of {', '.join(COMMANDS)}")


if __name__ == '__main__':
    main()
