"""Which names the pickle of a checkpoint may contain: names of data, not of anything that acts.

Nothing in a pickle is imported or run here, so a name that slips through does no harm. But a file
that would run something elsewhere is an attack, and people want to know.
"""

import re
import sys

# From the standard library, torch and numpy only these names are allowed; from other packages any
# name, unless the package is in ACTING.
HARMLESS = re.compile(
    r'''
    # Python
      (builtins|__builtin__)\.(object|type|dict|list|tuple|set|frozenset|int|long|float|bool
        |complex|str|unicode|bytes|bytearray|
        slice|range|xrange|NoneType|Ellipsis|NotImplemented|[A-Z]\w*(Error|Exception|Warning
        |Interrupt|Iteration))
    | (copyreg|copy_reg)\.(_reconstructor|__newobj__|__newobj_ex__)
    | _codecs\.encode | collections(\.abc)?\.\w+ | argparse\.[A-Z]\w* | datetime\.\w+
        | time\.struct_time | typing\.\w+
    | _?decimal\.[A-Z]\w* | fractions\.Fraction | uuid\.(UUID|SafeUUID) | enum\.[A-Z]\w*
        | ipaddress\.[A-Z]\w*
    | pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path | types\.SimpleNamespace
        | functools\.partial | re\._compile
    | zoneinfo\.ZoneInfo(\._unpickle)? | array\.(array|_array_reconstructor) | _?io\.(BytesIO
        |StringIO) | random\.Random
    | dataclasses\.[A-Z_]+\w* | logging\.(Logger|getLogger) | string\.Template
    # torch
    | torch\.(device|dtype|Size|Generator|layout|memory_format|strided|preserve_format
        |contiguous_format|channels_last(_3d)?|
        per_(tensor|channel)_\w+|finfo|iinfo|[a-z]+\d+(x\d+)?(_\w+)?|float|double|half|int|long
        |short|bool|cfloat|cdouble|[A-Z]\w*)
    | torch\.(nn|optim|amp|cuda\.amp|utils\.data|distributions|ao|quantization|sparse|fx|jit
        |distributed|_tensor|_C)
        (\.\w+)*\.[A-Z]\w*
    | torch\.(nn|ao|_C)(\.\w+)*\._[A-Z]\w* | torch\.nn\.(functional|init|parameter)\.\w+
        | torch\._C\._nn\.\w+
    | torch\.(_C\._VariableFunctions|_VF)\.\w+ | torch\.(storage|cuda)\.\w*Storage
        | torch\.serialization\._get_layout
    | torch\.torch_version\.TorchVersion | torch\._tensor\._rebuild_from_type(_v2)?
        | torch\._utils\._rebuild_\w+
    # numpy
    | numpy\.([a-z]+\d+_?|bool_?|int_|float_|str_|bytes_|object_|void|dtype|ndarray|generic
        |number|longlong|ulonglong|longdouble|
        intc|uintc)
    | numpy\.(core|_core)\.(multiarray|numeric)\.(scalar|_reconstruct|_frombuffer)
        | numpy\.dtypes\.\w+
    | numpy\.random\.(_pickle\.\w+|\w+\.__pyx_unpickle_\w+|(\w+\.)?[A-Z]\w*)
        | numpy\.ma\.core\.(_mareconstruct|MaskedArray)
    ''',
    re.X,
)
STANDARD_LIBRARY = frozenset(sys.stdlib_module_names) | {  # and what other versions of Python have
    '__builtin__',
    'asynchat',
    'asyncore',
    'cgi',
    'commands',
    'cPickle',
    'crypt',
    'distutils',
    'httplib',
    'imp',
    'lib2to3',
    'nntplib',
    'os2',
    'pipes',
    'popen2',
    'smtpd',
    'spwd',
    'telnetlib',
    'test',
    'urllib2',
}
# Packages whose purpose is to run, install or fetch things.
ACTING = frozenset(
    {
        'IPython',
        'aiohttp',
        'fabric',
        'httpx',
        'invoke',
        'joblib',
        'nose',
        'paramiko',
        'pexpect',
        'pip',
        'pkg_resources',
        'plumbum',
        'psutil',
        'pytest',
        '_pytest',
        'requests',
        'setuptools',
        'sh',
        'urllib3',
    }
)


def harmless(name: str) -> bool:
    """Whether a file may hold an object called 'package.module.name'. It is not read either way;
    where it may not, the file is refused as an attack."""
    package = name.partition('.')[0]
    known = package in STANDARD_LIBRARY or package in ACTING or package in ('torch', 'numpy')
    return not known or HARMLESS.fullmatch(name) is not None
