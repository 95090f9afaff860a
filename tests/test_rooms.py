"""Imports point downward: no room of the package imports one above it, and no circle is closed."""

import ast
import graphlib
import pathlib

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]

# Top to bottom. A file may import from its own row and from those below.
ROWS = (
    # commands
    '__main__ build compare contact_sheet export extract pretrain recognize report selection serve '
    'settings sweep table train verify',
    # rooms
    'browser',
    'recognition',
    'training',
    'analysis evaluation',
    'tfds_builders',
    'ingest',
    'weights',
    'learner',
    'config memory plan',
    'stages',
    'backbones data enrichment matchers samplers',
    # single files that rooms share
    'fields layers mesh mutual_information named_arrays processes programs progress recipe stage',
    'convolution torch_names',
    'arguments checksums files machine messages moved on_ray stopping',
)
# Read and write videos in processes and threads that would wait seconds for JAX.
WITHOUT_JAX = ('build', 'data', 'ingest', 'tfds_builders', 'verify')


def room_of(module: str) -> str:
    """'fsar_jax.data.loader' is in data, 'fsar_jax.config' in config, 'tfds_builders.x' there."""
    package, _, rest = module.partition('.')
    return package if package == 'tfds_builders' else rest.partition('.')[0]


def imports_of(source: str, modules: set[str]) -> set[str]:
    """The modules that a file imports, those in functions included: of `modules`, else the name of
    the package, such as 'jax'."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f'line {node.lineno}: write imports from the package, not from .'
            )
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        else:
            continue
        for name in names:  # what is imported may be a module or a name in one
            parent = name.rpartition('.')[0]
            own = name if name in modules else parent if parent in modules else None
            found.add(own or name.partition('.')[0])
    return found


def source_files() -> dict[str, pathlib.Path]:
    """{'fsar_jax.data.loader': its path} of both packages; not of configs, whose files are data."""
    files = {}
    for package in ('fsar_jax', 'tfds_builders'):
        for path in (REPOSITORY / package).rglob('*.py'):
            parts = path.relative_to(REPOSITORY).with_suffix('').parts
            if parts[:2] != ('fsar_jax', 'configs'):
                files['.'.join(parts).removesuffix('.__init__')] = path
    return files


def upward(imports: dict[str, set[str]]) -> list[str]:
    """One line per import that points upward, or is of a room that no row names."""
    row = {room: number for number, rooms in enumerate(ROWS) for room in rooms.split()}
    # Old names of commands, which the next release removes, stand where their commands stood.
    shims = {module for module, names in imports.items() if 'fsar_jax.moved' in names}
    lines = []
    for module, names in sorted(imports.items()):
        if module == 'fsar_jax' or module in shims:
            continue
        if room_of(module) not in row:
            if names:
                lines.append(f'{module} is in no row of the table in {__file__}: give it one')
            continue
        for name in sorted(names & imports.keys() - {'fsar_jax'}):
            if row.get(room_of(name), 99) < row[room_of(module)]:
                lines.append(f'{module} imports {name}: {room_of(name)} is above {room_of(module)}')
    return lines


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a ring, [] where there is none."""
    inside = {module: names & imports.keys() - {module} for module, names in imports.items()}
    try:
        graphlib.TopologicalSorter(inside).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return []


def way_to(target: str, start: str, imports: dict[str, set[str]]) -> list[str]:
    """The modules by which `start` comes to import `target`, [] where it does not."""
    ways = {start: [start]}
    for module, way in (queue := list(ways.items())):
        parents = {module.rsplit('.', n)[0] for n in range(1, module.count('.') + 1)}
        for name in sorted(imports.get(module, set()) | (parents & imports.keys())):
            if name == target:
                return [*way, name]
            if name not in ways:
                ways[name] = [*way, name]
                queue.append((name, ways[name]))
    return []


@pytest.fixture(scope='module')
def imports():
    files = source_files()
    return {module: imports_of(path.read_text(), set(files)) for module, path in files.items()}


def test_no_file_imports_from_a_room_above_its_own(imports):
    assert len(imports) > 90
    assert upward(imports) == []


def test_no_files_import_one_another_in_a_circle(imports):
    assert circle(imports) == []


def test_what_reads_and_writes_videos_never_imports_jax(imports):
    found = (way_to('jax', module, imports) for module in imports if room_of(module) in WITHOUT_JAX)
    assert [' imports '.join(way) for way in found if way] == []


def test_every_room_of_the_table_exists(imports):
    rooms = {room_of(module) for module in imports}
    assert [room for row in ROWS for room in row.split() if room not in rooms] == []


def test_planted_faults_are_named(imports):
    """The checks above can fail: each finds what is put into a copy of the imports."""
    modules = set(imports)
    planted = imports['fsar_jax.data.loader'] | imports_of(
        'def f():\n    from fsar_jax import learner', modules
    )
    assert upward(imports | {'fsar_jax.data.loader': planted}) == [
        'fsar_jax.data.loader imports fsar_jax.learner: learner is above data'
    ]
    assert 'no row' in upward(imports | {'fsar_jax.utils': {'fsar_jax.files'}})[0]
    ring = circle(imports | {'fsar_jax.messages': {'fsar_jax.files'}})
    assert {'fsar_jax.messages', 'fsar_jax.files'} == set(ring)
    jax = imports | {'fsar_jax.data.frames': {'fsar_jax.layers'}}
    assert way_to('jax', 'fsar_jax.data.clips', jax) == [
        'fsar_jax.data.clips',
        'fsar_jax.data.frames',
        'fsar_jax.layers',
        'jax',
    ]
