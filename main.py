"""python main.py --config=configs/strm.py --workdir=runs/strm [--mode=train|evaluate]

The same as `python -m fsar_jax.train`; --help tells more.
"""

import runpy

if __name__ == '__main__':
    # As the main module, so that the processes which read videos import that one again, not this.
    runpy.run_module('fsar_jax.train', run_name='__main__', alter_sys=True)
