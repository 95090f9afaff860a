"""Writes a trained model to a file: python -m fsar_jax.export --workdir=runs/strm

This writes runs/strm/strm.safetensors, with the parameters and batch statistics of the best
checkpoint, and runs/strm/strm.json, with all that another framework needs to use them. To evaluate
the file with the settings of the run, even after you have moved it: `python main.py
--config=configs/strm.py --mode=evaluate --weights=runs/strm/strm.safetensors`.
"""

from fsar_jax.stopping import errors_in_one_line, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('no file was left half written')

from fsar_jax.arguments import Parser
from fsar_jax.files import local_path
from fsar_jax.mesh import episode_mesh
from fsar_jax.messages import printable
from fsar_jax.training.export import SUFFIX, export_run
from fsar_jax.training.workdir import METHOD, read_method


def main(arguments: list[str] | None = None) -> None:
    """Exports the run that `arguments` name (None: those of the command line).

    Raises:
      ValueError, OSError: one line about the run or the file.
    """
    parser = Parser(
        prog='python -m fsar_jax.export',
        description='Writes the best parameters of a run as .safetensors, and beside them a .json '
        'with the config, the preprocessing and where they come from.',
    )
    parser.add_argument('--workdir', required=True, help='workdir of the run to export')
    parser.add_argument(
        '--out', help='the file to write, .safetensors; default WORKDIR/<method>.safetensors'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace files that exist')
    args = parser.parse(arguments)
    workdir = local_path(args.workdir, '--workdir')
    if args.out:
        out = local_path(args.out, '--out')
    else:
        method = read_method(workdir) if (workdir / METHOD).exists() else 'model'
        out = workdir / f'{method.replace(".py", "").replace(":", "-")}{SUFFIX}'
    about = export_run(workdir, out, args.overwrite, episode_mesh())
    print(
        f'exported {len(about["arrays"])} arrays of step {about["step"]}, selected on '
        f'{printable(about["selected_on"])}'
    )
    print(f'{printable(out, 1000)}\n{printable(out.with_suffix(".json"), 1000)}')


if __name__ == '__main__':
    with errors_in_one_line():
        main()
