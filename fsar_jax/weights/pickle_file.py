"""Reads the pickles in PyTorch checkpoints without running anything in them.

Python's own unpickler imports and calls whatever a pickle names. This one is a small interpreter:
it builds dicts, lists, tuples, numbers and strings, leaves storages and tensors to its caller, and
replaces every other object by an `Opaque`, which keeps the name of the object and nothing else.
Names are compared with pickle_names.py and never imported. The length of the file bounds all work.
"""

from __future__ import annotations

import inspect
import pickle
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from fsar_jax.messages import printable
from fsar_jax.weights.pickle_names import harmless

RESAVE = (
    'where it loads, save the state dict alone, torch.save(model.state_dict(), "weights.pth"), '
    'and give that file'
)

MAX_OPCODES = 2_000_000  # a ResNet-50 has 10,000, its training checkpoint 30,000
MAX_DEPTH = 200  # containers within containers
MAX_KEY = 16  # entries of a tuple that is a key, arguments of a call
MAX_INTEGER = 1024  # bytes
MAX_NAME = 500  # characters of the name of an object

Call = Callable[..., Any]


class Refused(ValueError):
    """A reason in one line, without the file's name."""


class Opaque:
    """Stands for an object, class or function in a pickle that no tensor needs. Only its `name` is
    kept."""

    __slots__ = ('name',)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self):
        return f'<{printable(self.name, 80)}, not read>'


class UnreadTensor(Opaque):
    """Stands for a tensor that cannot be read: `name` says what it is and how to save it
    instead."""

    __slots__ = ()


def read_pickle(
    file: BinaryIO, size: int, calls: dict[str, Call] | None = None, persistent: Call | None = None
) -> Any:
    """Reads one pickle and returns its object, leaving the file at the byte after it.

    Args:
      file: at the start of the pickle.
      size: bytes of the file, which no length in it may exceed.
      calls: {name of a function: ours}, called with the arguments that the pickle gives. Nothing
        else is ever called.
      persistent: called with each persistent id (a storage); without it there must be none.

    Returns:
      dicts (OrderedDict, defaultdict and Counter too), lists, tuples, None, bool, int, float, str,
      bytes; whatever `calls` and `persistent` return; an `Opaque` for anything else.

    Raises:
      Refused: the pickle is damaged, names what is not `harmless`, or exceeds a limit.
    """
    return _Machine(file, size, calls or {}, persistent).run()


class _Machine:
    """The stack, marks and memo of a pickle, as Python's pickletools describe them; one method per
    group of opcodes."""

    def __init__(self, file, size, calls, persistent):
        self.file, self.size, self.persistent = file, size, persistent
        self.calls = {
            'collections.OrderedDict': self.ordered_dict,
            'collections.Counter': lambda items=None: {} if items is None else items,
            'collections.defaultdict': lambda *_: {},
            **calls,
        }
        self.stack, self.marks, self.memo, self.count, self.signatures = [], [], {}, 0, {}
        # id of a container → its depth. Set whenever one is made, so a reused id does no harm.
        self.depths = {}

    def run(self):
        read, step = self.file.read, self.STEPS
        while (opcode := read(1)) != pickle.STOP:
            if not opcode:
                raise Refused('truncated: it ends inside a pickle')
            if opcode not in step:
                raise Refused(
                    f'damaged, or no checkpoint: {opcode!r} is no opcode of a pickle that torch '
                    'writes'
                )
            self.spend(1)
            step[opcode](self)
        if len(self.stack) != 1 or self.marks:
            raise Refused('damaged: a pickle that ends before its object is whole')
        return self.stack[0]

    # Reading

    def spend(self, steps):
        self.count += steps
        if self.count > MAX_OPCODES:
            raise Refused(
                f'its pickle has more than {MAX_OPCODES:,} steps, which no state dict needs: '
                f'{RESAVE}'
            )

    def take(self, length):
        if not 0 <= length <= self.size:
            raise Refused(f'damaged: a value of {length:,} bytes in a file of {self.size:,}')
        data = self.file.read(length)
        if len(data) != length:
            raise Refused('truncated: it ends inside a pickle')
        return data

    def number(self, code):
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def line(self):
        data = self.file.readline(MAX_INTEGER * 4)
        if not data.endswith(b'\n'):
            raise Refused('damaged or truncated: a line of its pickle has no end')
        return data[:-1]

    # The stack

    def pop(self):
        if not self.stack:
            raise Refused('damaged: a pickle that takes from an empty stack')
        return self.stack.pop()

    def top(self):
        if not self.stack:
            raise Refused('damaged: a pickle that takes from an empty stack')
        return self.stack[-1]

    def to_mark(self):
        if not self.marks:
            raise Refused('damaged: a pickle without a mark')
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self):
        self.marks.append(self.stack)
        self.stack = []

    def pop_or_mark(self):
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    # Containers

    def deepen(self, container, items):
        depth = self.depths.get(id(container), 1)
        for item in items:
            if type(item) in CONTAINERS:
                depth = max(depth, self.depths.get(id(item), 1) + 1)
        if depth > MAX_DEPTH:
            raise Refused(
                f'its values lie more than {MAX_DEPTH} deep within each other, which no state '
                f'dict needs: {RESAVE}'
            )
        self.depths[id(container)] = depth

    def put(self, container, items=()):
        self.depths[id(container)] = 1
        self.deepen(container, items)
        self.stack.append(container)

    def last(self, count):
        items = [self.pop() for _ in range(count)]
        self.put(tuple(reversed(items)), items)

    def extend(self, items):
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
            self.deepen(target, items)
        elif not isinstance(target, Opaque):
            raise Refused('damaged: a pickle that appends to what is no list')

    def set_items(self, items):
        target = self.top()
        if len(items) % 2:
            raise Refused('damaged: a pickle with a key without a value')
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2]):
                target[checked_key(key)] = value
            self.deepen(target, items[1::2])
        elif not isinstance(target, Opaque):
            raise Refused('damaged: a pickle that sets items of what is no dict')

    def pairs(self):
        items = self.to_mark()
        self.put({})
        self.set_items(items)

    def one_item(self):
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def ordered_dict(self, items=()):
        is_pair = lambda item: isinstance(item, (list, tuple)) and len(item) == 2
        if not isinstance(items, (list, tuple)) or not all(map(is_pair, items)):
            raise Refused('damaged: an OrderedDict that is not made of pairs')
        self.spend(len(items))
        return {checked_key(key): value for key, value in items}

    # The memo

    def memorize(self, index):
        if not 0 <= index <= self.size:
            raise Refused(
                f"damaged: its pickle has a memo index of {printable(f'{index:,}', 40)} in a file "
                f"of {self.size:,} bytes"
            )
        self.memo[index] = self.top()

    def recall(self, index):
        if index not in self.memo:
            raise Refused(
                f"damaged: its pickle asks for memo {printable(f'{index:,}', 40)}, which it never "
                "set"
            )
        self.stack.append(self.memo[index])

    # Names and objects

    def name(self, module, name):
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused('damaged: its pickle names something that is no name')
        full = f'{module[:MAX_NAME]}.{name[:MAX_NAME]}'
        if len(full) > MAX_NAME or full not in self.calls and not harmless(full):
            raise Refused(
                f"refused, nothing was run: its pickle names '{printable(full)}', which is "
                "neither a tensor nor a plain container: unless you know why, load it nowhere; "
                f"if you do, {RESAVE}"
            )
        self.stack.append(Opaque(full))

    def global_lines(self):
        module, name = self.line(), self.line()
        self.name(module.decode('utf-8'), name.decode('utf-8'))

    def global_stack(self):
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def make(self, function, items):
        """What `function(*items)` of the pickle stands for."""
        if not isinstance(items, tuple):
            raise Refused('damaged: its pickle makes an object without arguments')
        if not isinstance(function, Opaque):
            raise Refused('damaged: its pickle calls what is no name')
        call = self.calls.get(function.name)
        if call is not None and len(items) > MAX_KEY:
            raise Refused(f"damaged: '{printable(function.name)}' with {len(items):,} arguments")
        if call is None:
            kind = items[0] if items and function.name in REBUILDERS else function
            made = Opaque(kind.name if isinstance(kind, Opaque) else function.name)
        else:
            try:
                if function.name not in self.signatures:
                    self.signatures[function.name] = inspect.signature(call)
                self.signatures[function.name].bind(*items)
            except TypeError:
                raise Refused(
                    f"damaged: '{printable(function.name)}' with {len(items)} arguments"
                ) from None
            made = call(*items)
        if type(made) in CONTAINERS:
            self.spend(len(made))
            self.deepen(made, made.values() if isinstance(made, dict) else made)
        self.stack.append(made)

    def reduce(self):
        items, function = self.pop(), self.pop()
        self.make(function, items)

    def reduce_with_keywords(self):
        _, items, function = self.pop(), self.pop(), self.pop()
        self.make(function, items)

    def instance_lines(self):
        self.global_lines()
        function = self.pop()
        self.make(function, tuple(self.to_mark()))

    def instance_stack(self):
        function, *items = self.to_mark() or [None]
        self.make(function, tuple(items))

    def build(self):
        """Drops the state of an object, its attributes: no object here has any."""
        self.pop()
        self.top()

    def storage(self):
        identity = self.pop()
        if self.persistent is None:
            raise Refused(
                'refused, nothing was run: its pickle refers to what is not a tensor storage'
            )
        self.stack.append(self.persistent(identity))

    # Scalars

    def integer(self, length):
        if length > MAX_INTEGER:
            raise Refused(f'damaged: an integer of {length:,} bytes')
        self.stack.append(int.from_bytes(self.take(length), 'little', signed=True))

    def integer_line(self):
        line = self.line()
        self.stack.append(
            {b'00': False, b'01': True}[line] if line in (b'00', b'01') else int(line.rstrip(b'L'))
        )

    def text(self, length):
        self.stack.append(self.take(length).decode('utf-8', 'surrogatepass'))

    def old_text(self, length):
        """A str of Python 2: text, or bytes where it is not valid text."""
        data = self.take(length)
        try:
            self.stack.append(data.decode('utf-8'))
        except UnicodeDecodeError:
            self.stack.append(data)

    def protocol(self):
        if (version := self.number('B')) > pickle.HIGHEST_PROTOCOL:
            raise Refused(f'damaged, or no checkpoint: a pickle of protocol {version}')

    def frame(self):
        if (length := self.number('<Q')) > self.size:
            raise Refused(f'damaged: a frame of {length:,} bytes in a file of {self.size:,}')

    STEPS = {
        b'\x80': protocol,
        b'\x95': frame,
        b'(': mark,
        b'0': pop_or_mark,
        b'1': to_mark,
        b'2': lambda m: m.stack.append(m.top()),
        b'N': lambda m: m.stack.append(None),
        b'\x88': lambda m: m.stack.append(True),
        b'\x89': lambda m: m.stack.append(False),
        b'J': lambda m: m.stack.append(m.number('<i')),
        b'K': lambda m: m.stack.append(m.number('B')),
        b'M': lambda m: m.stack.append(m.number('<H')),
        b'G': lambda m: m.stack.append(m.number('>d')),
        b'\x8a': lambda m: m.integer(m.number('B')),
        b'\x8b': lambda m: m.integer(m.number('<I')),
        b'I': integer_line,
        b'L': integer_line,
        b'F': lambda m: m.stack.append(float(m.line())),
        b'V': lambda m: m.stack.append(m.line().decode('raw-unicode-escape')),
        b'X': lambda m: m.text(m.number('<I')),
        b'\x8c': lambda m: m.text(m.number('B')),
        b'\x8d': lambda m: m.text(m.number('<Q')),
        b'T': lambda m: m.old_text(m.number('<i')),
        b'U': lambda m: m.old_text(m.number('B')),
        b'B': lambda m: m.stack.append(m.take(m.number('<I'))),
        b'C': lambda m: m.stack.append(m.take(m.number('B'))),
        b'\x8e': lambda m: m.stack.append(m.take(m.number('<Q'))),
        b'\x96': lambda m: m.stack.append(m.take(m.number('<Q'))),
        b')': lambda m: m.put(()),
        b']': lambda m: m.put([]),
        b'}': lambda m: m.put({}),
        b'\x8f': lambda m: m.stack.append(Opaque('builtins.set')),
        b'\x85': lambda m: m.last(1),
        b'\x86': lambda m: m.last(2),
        b'\x87': lambda m: m.last(3),
        b't': lambda m: m.put(tuple(items := m.to_mark()), items),
        b'l': lambda m: m.put(items := m.to_mark(), items),
        b'd': pairs,
        b'\x91': lambda m: (m.to_mark(), m.stack.append(Opaque('builtins.frozenset'))),
        b'a': lambda m: m.extend([m.pop()]),
        b'e': lambda m: m.extend(m.to_mark()),
        b'\x90': lambda m: m.extend(m.to_mark()),
        b's': one_item,
        b'u': lambda m: m.set_items(m.to_mark()),
        b'q': lambda m: m.memorize(m.number('B')),
        b'r': lambda m: m.memorize(m.number('<I')),
        b'p': lambda m: m.memorize(int(m.line())),
        b'\x94': lambda m: m.memorize(len(m.memo)),
        b'h': lambda m: m.recall(m.number('B')),
        b'j': lambda m: m.recall(m.number('<I')),
        b'g': lambda m: m.recall(int(m.line())),
        b'c': global_lines,
        b'\x93': global_stack,
        b'R': reduce,
        b'\x81': reduce,
        b'\x92': reduce_with_keywords,
        b'i': instance_lines,
        b'o': instance_stack,
        b'b': build,
        b'Q': storage,
    }


CONTAINERS = (dict, list, tuple)
# Functions whose first argument is the class of what they make.
REBUILDERS = frozenset(
    {
        'copyreg._reconstructor',
        'copy_reg._reconstructor',
        'copyreg.__newobj__',
        'copyreg.__newobj_ex__',
        'numpy.core.multiarray._reconstruct',
        'numpy._core.multiarray._reconstruct',
    }
)


def checked_key(key: Any) -> Any:
    """The key of a dict if it is cheap to hash and compare; an `Opaque` in the place of an object
    or tensor.

    Raises:
      Refused: a deep or long tuple, or a huge integer.
    """
    if (
        isinstance(key, (str, bytes, float, type(None), Opaque))
        or isinstance(key, int)
        and abs(key) < 2**64
    ):
        return key
    if not isinstance(key, (tuple, int)):
        return Opaque(type(key).__name__)
    if (
        isinstance(key, tuple)
        and len(key) <= MAX_KEY
        and all(not isinstance(item, tuple) for item in key)
    ):
        return tuple(map(checked_key, key))
    what = 'deep or long tuple' if isinstance(key, tuple) else 'huge integer'
    raise Refused(f'a dictionary key that is a {what}, which no state dict has: {RESAVE}')
