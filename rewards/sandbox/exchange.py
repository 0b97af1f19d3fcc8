# pyright: basic
# Reason: it runs alone in the sandbox, beside a script, and handles whatever a program or its tests hold.
"""What crosses between a program's sandbox and that of its tests: values by value, everything else as a handle.

Standard library only. A value is written as a tree of lists, numbers and text: `Table.pack` and `Table.unpack`.
Numbers, text and the containers and value types of the standard library arrive as what they are, of exactly that type.
Anything else is lent: the other side holds a `Handle` of it and asks for what it needs. Containers keep their identity
within one message and its answer, so that what a function does to its arguments is seen by whoever passed them.

Messages to the program are marshalled. What the program sends is text, read as JSON: whatever it writes, reading it is
bounded by its length and calls nothing.
"""

import builtins
import sys
from abc import ABC, abstractmethod

# Levels that containers may be nested; bits above which an integer is written in hexadecimal, which has no limit.
DEEPEST, LONG = 200, 12_000
# Characters of one message.
LONGEST = 1 << 22
LONGEST_RANGE = 1_000_000
# Types that may not have been imported: their modules are looked up, and imported only where a value is one of them.
COUNTER, ORDERED, DEFAULT, DEQUE = (("collections", n) for n in ("Counter", "OrderedDict", "defaultdict", "deque"))
DECIMAL, FRACTION = ("decimal", "Decimal"), ("fractions", "Fraction")
DATES = tuple(("datetime", name) for name in ("date", "time", "datetime", "timedelta"))
MAPPINGS = {"d": None, "C": COUNTER, "O": ORDERED, "E": DEFAULT}
# Unary and binary operations that are passed on to the owner of an object.
UNARY = ("neg", "pos", "abs", "invert")
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
COMPARISONS = ("lt", "le", "gt", "ge")
READINGS = {
    "len": len,
    "iter": iter,
    "str": str,
    "repr": repr,
    "bool": bool,
    "hash": hash,
    "int": int,
    "float": float,
    "complex": complex,
    "round": round,
    "format": format,
    "reversed": reversed,
    "dir": dir,
    "isinstance": isinstance,
    "issubclass": issubclass,
}


def kind(place):
    """A type of a module that has been imported, else None."""
    module = sys.modules.get(place[0])
    return getattr(module, place[1], None)


def made(place):
    """The same, imported if need be."""
    __import__(place[0])
    return getattr(sys.modules[place[0]], place[1])


# How a value of a class made from a built-in type is read as that type: methods of its own have no say in it.
BARE = {
    int: lambda value: int.__add__(value, 0),
    float: lambda value: float.__add__(value, 0.0),
    complex: lambda value: complex.__add__(value, 0j),
    str: lambda value: "".join(str.__iter__(value)),
    bytes: lambda value: b"".join((value,)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    bytearray: lambda value: bytearray.copy(value),
}


def base_of(value):
    """The built-in type that a value's class is made from, or None."""
    return next((base for base in BARE if isinstance(value, base)), None)


def bare(value):
    """A value of a class of one's own, as the built-in type it is made from."""
    return BARE[base_of(value)](value)


class Handle:
    """Something of the other side's. What is done to it is done there."""

    __slots__ = ("_based", "_knows", "_number", "_peer", "_used", "_value")

    def __init__(self, peer, number, based, value):
        """Stand for the other side's object of that number.

        Args:
            peer: The other side.
            number: The object's.
            based: Whether its class is made from a built-in type: "value" if from one that does not change, "content"
                if from a container, else "".
            value: Its value as that built-in type, where that does not change.
        """
        self._peer = peer
        self._number = number
        self._based = based
        self._value = value
        self._used = False
        self._knows = False

    def __call__(self, *args, **kwargs):
        """Call it."""
        return self._peer.ask("call", self, args, kwargs)

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__name__", "__qualname__", "__doc__", "__dict__"):
            raise AttributeError(name)
        self._used = True
        return self._peer.ask("get", self, (name,))

    def __setattr__(self, name, value):
        if name in Handle.__slots__:
            object.__setattr__(self, name, value)
        else:
            self._used = True
            self._peer.ask("set", self, (name, value))

    def __getitem__(self, key):
        return self._peer.ask("getitem", self, (key,))

    def __setitem__(self, key, value):
        self._used = True
        self._peer.ask("setitem", self, (key, value))

    def __delitem__(self, key):
        self._peer.ask("delitem", self, (key,))

    def __contains__(self, item):
        return bool(self._peer.ask("contains", self, (item,)))

    def __iter__(self):
        return self._peer.ask("iter", self)

    def __next__(self):
        found = self._peer.ask("next", self)
        if not found:
            raise StopIteration
        return found[0]

    def __eq__(self, other):
        return self is other or bool(self._peer.ask("eq", self, (other,)))

    def __instancecheck__(self, instance):
        return bool(self._peer.ask("isinstance", None, (instance, self)))

    def __subclasscheck__(self, subclass):
        return bool(self._peer.ask("issubclass", None, (subclass, self)))

    def __deepcopy__(self, memo):
        return self._peer.ask("deepcopy", self)

    def __copy__(self):
        return self._peer.ask("copy", self)

    def __enter__(self):
        return self._peer.ask("enter", self)

    def __exit__(self, *error):
        return self._peer.ask("exit", self, (None, None, None) if error[0] is None else (error[0].__name__,))


def _reading(name):
    def read(self, *args):
        return self._peer.ask(name, self, args)

    return read


def _operation(name, *, turned=False):
    def operate(self, other):
        return self._peer.operate(name, self, other, turned)

    return operate


for _name in ("len", "str", "repr", "bool", "hash", "int", "float", "complex", "round", "format", "reversed", "dir"):
    setattr(Handle, f"__{_name}__", _reading(_name))
for _name in UNARY:
    setattr(Handle, f"__{_name}__", _reading(_name))
for _name in BINARY:
    _plain = _name.rstrip("_")
    setattr(Handle, f"__{_plain}__", _operation(_name))
    setattr(Handle, f"__r{_plain}__", _operation(_name, turned=True))
for _name in COMPARISONS:
    setattr(Handle, f"__{_name}__", _operation(_name))


class Table:
    """The containers of one message, in the order in which they were met, and how values are written."""

    def __init__(self, peer):
        """Write values for, or read values from, the other side of ``peer``."""
        self.peer = peer
        self.containers = []
        self.numbers = {}

    def add(self, container):
        """Give a container the next number."""
        self.numbers[id(container)] = len(self.containers)
        self.containers.append(container)
        return container

    def pack(self, value, depth=0):
        """A value as it crosses.

        Raises:
            ValueError: If it is nested too deeply.
        """
        its = type(value)
        if value is None or its in (bool, str):
            return value
        if its is int:
            return value if value.bit_length() < LONG else ["i", hex(value)]
        if its is float:
            return value if value - value == 0 else ["f", repr(value)]
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        if id(value) in self.numbers:
            return ["x", self.numbers[id(value)]]
        content = self.content(value, depth)
        return self.packed_scalar(value, depth) if content is None else content

    def content(self, value, depth=0):
        """A container as it crosses, with a number of its own from now on; None for anything else."""
        its = type(value)
        if its in (list, set) or its is kind(DEQUE):
            tag = "l" if its is list else "s" if its is set else "q"
            self.number(value)
            return [tag, [self.pack(item, depth + 1) for item in value], *([value.maxlen] if tag == "q" else [])]
        if its is bytearray:
            self.number(value)
            return ["B", value.decode("latin-1")]
        for tag, place in MAPPINGS.items():
            if its is (dict if place is None else kind(place)):
                self.number(value)
                return [tag, [[self.pack(k, depth + 1), self.pack(v, depth + 1)] for k, v in value.items()]]
        return None

    def number(self, container):
        """Number a container, unless it has a number."""
        if id(container) not in self.numbers:
            self.add(container)

    def packed_scalar(self, value, depth):
        """What has no identity that counts."""
        its = type(value)
        if its in (tuple, frozenset):
            return ["t" if its is tuple else "z", [self.pack(item, depth + 1) for item in value]]
        if its is bytes:
            return ["b", value.decode("latin-1")]
        if its is complex:
            return ["c", self.pack(value.real), self.pack(value.imag)]
        if its is slice or (its is range and not value[LONGEST_RANGE:]):
            return ["S" if its is slice else "r", *(self.pack(n) for n in (value.start, value.stop, value.step))]
        if its is type and value.__module__ == "builtins":
            return ["K", value.__name__]
        return self.packed_of_a_module(value) or self.peer.lend(value, self, depth)

    def packed_of_a_module(self, value):
        """A number or a date of the standard library's, or None."""
        its = type(value)
        if its is kind(DECIMAL):
            return ["D", str(value)]
        if its is kind(FRACTION):
            return ["F", self.pack(value.numerator), self.pack(value.denominator)]
        if value is Ellipsis or value is NotImplemented:
            return ["n", str(value)]
        dated = next((place for place in DATES if its is kind(place)), None)
        if dated is None or getattr(value, "tzinfo", None) is not None:
            return None
        return ["T", dated[1], _date_parts(value)]

    def unpack(self, node):
        """A value as it was packed, every part of it of exactly the type that is named."""
        if not isinstance(node, list):
            return node
        tag, *parts = node
        return READERS[tag](self, *parts)

    def many(self, nodes):
        """Several of them."""
        return [self.unpack(node) for node in nodes]

    def fill(self, container, content):
        """Put content as it crosses into a container of that kind, in place of what it holds."""
        parts = content[1]
        if content[0] == "B":
            container[:] = parts.encode("latin-1")
            return container
        new = [(self.unpack(k), self.unpack(v)) for k, v in parts] if content[0] in MAPPINGS else self.many(parts)
        container.clear()
        if isinstance(container, dict):
            for key, value in new:
                container[key] = value
        else:
            (container.update if isinstance(container, set) else container.extend)(new)
        return container


def _date_parts(value):
    if hasattr(value, "days"):
        return [value.days, value.seconds, value.microseconds]
    names = ("year", "month", "day", "hour", "minute", "second", "microsecond")
    return [getattr(value, name) for name in names if hasattr(value, name)]


def _mapping(tag):
    def read(table, parts):
        return table.fill(table.add({} if tag == "d" else made(MAPPINGS[tag])()), [tag, parts])

    return read


def _range(table, *parts):
    found = range(*table.many(parts))
    if found[LONGEST_RANGE:]:
        raise ValueError("the range is too long")
    return found


def _decimal(table, text):
    found = made(DECIMAL)(text)
    if found.is_finite() and abs(found.adjusted()) > LONG:
        raise ValueError("the decimal has too large an exponent")
    return found


def _type_named(table, name):
    found = vars(builtins)[name]
    if type(found) is not type:
        raise ValueError(f"{name} is no type")
    return found


READERS = {
    "i": lambda table, text: int(text, 16),
    "f": lambda table, text: float(text),
    "x": lambda table, number: table.containers[number],
    "l": lambda table, parts: table.fill(table.add([]), ["l", parts]),
    "s": lambda table, parts: table.fill(table.add(set()), ["s", parts]),
    "q": lambda table, parts, most: table.fill(table.add(made(DEQUE)(maxlen=most)), ["q", parts]),
    "B": lambda table, text: table.fill(table.add(bytearray()), ["B", text]),
    **{tag: _mapping(tag) for tag in MAPPINGS},
    "t": lambda table, parts: tuple(table.many(parts)),
    "z": lambda table, parts: frozenset(table.many(parts)),
    "b": lambda table, text: text.encode("latin-1"),
    "c": lambda table, real, imaginary: complex(table.unpack(real), table.unpack(imaginary)),
    "S": lambda table, *parts: slice(*table.many(parts)),
    "r": _range,
    "D": _decimal,
    "F": lambda table, *parts: made(FRACTION)(*table.many(parts)),
    "T": lambda table, name, parts: made(DATES[[place[1] for place in DATES].index(name)])(*parts),
    "K": _type_named,
    "n": lambda table, name: {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}[name],
    "o": lambda table, *parts: table.peer.held(table, *parts),
    "e": lambda table, *parts: table.peer.error_class(*parts),
    "y": lambda table, number: table.peer.own(number),
}


class Peer(ABC):
    """One end: the objects it has lent, those it holds, and how a request is answered.

    `send`, `receive` and what it does when asked are its own.
    """

    def __init__(self):
        """Nothing has crossed yet."""
        self.objects = []
        self.numbers = {}
        self.holds = {}

    @abstractmethod
    def send(self, message):
        """Pass one message on."""

    @abstractmethod
    def receive(self) -> list:
        """The next message."""

    def handle(self, number, based, value):
        """A new handle of one of the other side's objects."""
        return Handle(self, number, based, value)

    @abstractmethod
    def error(self, table, parts) -> Exception:
        """The error that the other side reports."""

    @abstractmethod
    def do(self, operation, target, args, kwargs) -> object:
        """Carry out what the other side asks for."""

    @abstractmethod
    def described(self, error, table) -> list:
        """An error as it crosses."""

    def lend(self, value, table, depth):
        """A handle as it crosses: of one's own object, or back to its owner."""
        if isinstance(value, Handle):
            return ["y", value._number]
        return ["o", self.number_of(value), "", None]

    def number_of(self, value):
        """The number under which an object is lent, the same each time."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return self.numbers[id(value)]

    def own(self, number):
        """The object that was lent under a number."""
        if type(number) is not int or not 0 <= number < len(self.objects):
            raise ValueError("there is no such object")
        return self.objects[number]

    def held(self, table, number, based, value):
        """The handle of the other side's object, the same each time."""
        if number not in self.holds:
            self.holds[number] = self.handle(number, based, table.unpack(value))
        return self.holds[number]

    def operate(self, name, handle, other, turned):
        """A binary operation on a handle."""
        return self.ask(name, other, (handle,)) if turned else self.ask(name, handle, (other,))

    def ask(self, operation, target, args=(), kwargs=None):
        """Have one thing done at the other side, and answer what it asks for meanwhile."""
        table = Table(self)
        self.send(["ask", operation, table.pack(target), table.pack(tuple(args)), table.pack(kwargs or {})])
        while True:
            tag, *parts = self.receive()
            if tag == "ask":
                self.serve(parts)
                continue
            # What was done to the arguments is done to the containers they were copied from.
            found = self.error(table, parts[:-1]) if tag == "error" else table.unpack(parts[0])
            for number, content in parts[-1]:
                table.fill(table.containers[number], content)
            if tag == "error":
                raise found
            return found

    def serve(self, parts):
        """Answer one request."""
        table = Table(self)
        operation, target, args, kwargs = parts
        target, args, kwargs = table.unpack(target), table.unpack(args), table.unpack(kwargs)
        given = list(table.containers)
        before = [table.content(container) for container in given]
        try:
            answer = ["value", table.pack(self.do(operation, target, args, kwargs))]
        except self.reported as error:
            answer = ["error", *self.described(error, table)]
        after = [(n, table.content(container)) for n, container in enumerate(given)]
        try:
            self.send([*answer, [[n, content] for n, content in after if content != before[n]]])
        except ValueError as error:
            self.send(["error", *self.described(error, Table(self)), []])

    reported = Exception
