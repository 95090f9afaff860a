"""Draws a contact sheet of a dataset: python -m fsar_jax.contact_sheet --dataset=synthetic_actions/misaligned --out=sheet.png

Each row shows a class: its name and the frames of one clip that a model would see, with the box of
the object if the record has one. Look at your clips before you train on them.
"""  # noqa: E501

from fsar_jax.stopping import errors_in_one_line, on_signals

if __name__ == '__main__':  # what follows takes seconds to import
    on_signals('no picture was written')

from fsar_jax.analysis.contact_sheet import contact_sheet, write_sheet
from fsar_jax.arguments import Parser
from fsar_jax.data.dataset import open_dataset
from fsar_jax.files import check_output, local_path


def main(arguments: list[str] | None = None) -> None:
    """Draws and writes the picture that `arguments` ask for (None: those of the command line).

    Raises:
      ValueError, OSError: one line about a flag, the dataset or the picture.
    """
    parser = Parser(
        prog='python -m fsar_jax.contact_sheet', description='Draws one clip of each class.'
    )
    parser.add_argument(
        '--dataset', required=True, help='name of the dataset, e.g. synthetic_actions/misaligned'
    )
    parser.add_argument(
        '--dir', default='data', help='folder of the built datasets; default %(default)s'
    )
    parser.add_argument('--split', default='test', help='train, val or test; default %(default)s')
    parser.add_argument('--clip', type=int, default=0, help='which clip of each class')
    parser.add_argument('--frames', type=int, default=8, help='of each clip; default %(default)s')
    parser.add_argument('--out', required=True, help='the picture to write, .png or .jpg')
    args = parser.parse(arguments)
    data_dir, out = local_path(args.dir, '--dir'), local_path(args.out, '--out')
    check_output(out, '--out')
    write_sheet(
        contact_sheet(open_dataset(args.dataset, data_dir, args.split), args.frames, args.clip), out
    )


if __name__ == '__main__':
    with errors_in_one_line():
        main()
