"""Old names of commands. For one release, each does what the new name does and says the new name.

The next release removes this file and those that call it.
"""

import importlib
import runpy
import sys


def moved(old: str, is_command: bool, command: str, functions: str) -> None:
    """Lets an old module, which calls this as it starts, stand for the new ones.

    Args:
      old: name of the old module, 'fsar_jax.training.compare'.
      is_command: it was started with `python -m`; otherwise it is being imported.
      command: the module that `python -m` runs now, 'fsar_jax.compare'.
      functions: the module that an import gives now, 'fsar_jax.evaluation.compare'.
    """
    if is_command:
        print(
            f'note: python -m {old} is now python -m {command}; '
            'the old name goes with the next release',
            file=sys.stderr,
        )
        # As the main module, so that the processes it starts import the new name.
        runpy.run_module(command, run_name='__main__', alter_sys=True)
    else:
        sys.modules[old] = importlib.import_module(functions)
