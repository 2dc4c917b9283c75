"""A restricted unpickler for arrays that executes no code from the file.

A pickle is a program for a stack machine and may call anything that Python can import. `load` runs the program on a
stack machine that imports nothing. The few globals that feature files need (`ALLOWED`) map to functions of this module;
all others are refused by name, as are all instructions that create objects in other ways. Arrays are views of the
memory-mapped file: a declared size that the file does not have is refused before memory is allocated, and pickles
larger than memory can be read.

Instructions and their arguments are those of `pickletools`, protocols 0 to 5.
"""

from __future__ import annotations

import codecs
import math
import mmap
import pickletools
import re
import reprlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

MAX_INTEGER_SIZE = 1024
"""Bytes or digits of an integer. Converting digits takes quadratic time."""

DTYPE_NAME = re.compile(r"[biufSU][0-9]{1,6}|O8?|[?]")
"""Names under which NumPy pickles the dtypes of booleans, numbers, strings and objects."""

PLAIN = (str, int, float, bool, type(None))
"""Types that object arrays, sets and keys of dicts may hold. Tuples are excluded: a few bytes can encode nested tuples
that take years to hash or print (messages therefore use `reprlib`)."""


MAX_NUMERIC_KEYS = 1000
"""Limit of the entries of a dict, a set or the memo with keys other than strings. Hashes of numbers are known: a file
can choose numbers that collide, and filling a dict with these takes quadratic time. Hashes of strings are secret.
"""

MAX_CODE_POINT = 0x10FFFF


class RefusedPickleError(ValueError):
    """The file is not a pickle that may or can be read. The message names the file and what was found."""


class _RefusalError(Exception):
    """Reason why an instruction is refused, without the file's name."""


@dataclass(slots=True)
class _Pending:
    """An object that the instruction `BUILD` completes later: an array (`name` is None) or a dtype.

    Attributes:
        name: the dtype's name.
        memo: indices under which the object is memoized.
    """

    name: str | None
    memo: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Global:
    """An allowed global: its name, and the function that a call of it runs; None where it only names a type."""

    name: str
    call: Callable[..., Any] | None


def load(path: Path) -> Any:
    """Load plain values, lists, dicts, and arrays, which are read-only views of the file.

    Strings of Python 2 are read as Latin-1. Object arrays may hold plain values (`PLAIN`).

    Raises:
        FileNotFoundError: there is no such file.
        RefusedPickleError: the pickle uses a global that is not in `ALLOWED` or an instruction that creates objects in
            another way, an array's declared size is not that of its bytes, or the pickle is incomplete.
    """
    with Path(path).open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise RefusedPickleError(f"{path}: the file is empty; get it again") from error
    try:
        return _Machine(mapped).run()
    except _RefusalError as reason:
        raise RefusedPickleError(f"{path}: {reason}") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error, RecursionError) as error:
        raise RefusedPickleError(
            f"{path}: not a whole pickle of arrays, lists and dicts ({type(error).__name__}: {error}); get it again"
        ) from error


class _Machine:
    """The stack machine: the file's bytes, the current stack, the stacks set aside by marks, and the memo."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped, self._bytes = mapped, memoryview(mapped)
        self._position = 0
        self._stack: list[Any] = []
        self._aside: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Execute the instructions up to STOP and return the result."""
        while True:
            code = chr(self._take(1)[0])
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise _RefusalError(f"not a pickle: {code!r} at byte {self._position - 1} is not an instruction")
            argument = self._argument(instruction)
            if instruction.name == "STOP":
                return self._stack.pop()
            step = _STEPS.get(instruction.name)
            if step is None:
                raise _RefusalError(_refusal(instruction.name, argument))
            step(self, argument)

    def _take(self, size: int) -> memoryview:
        """Read the next bytes."""
        remaining = len(self._bytes) - self._position
        if not 0 <= size <= remaining:
            raise _RefusalError(
                f"declares {size:,} bytes at byte {self._position:,}, but the file has {remaining:,} more; "
                "it is damaged or malicious"
            )
        self._position += size
        return self._bytes[self._position - size : self._position]

    def _line(self) -> bytes:
        """Read up to the next newline."""
        end = self._mapped.find(b"\n", self._position)
        if end < 0:
            raise _RefusalError("ends in the middle of a line; get it again")
        line = self._mapped[self._position : end]
        self._position = end + 1
        return line

    def _argument(self, instruction: Any) -> Any:
        """Read an instruction's argument: bytes with a length prefix, a number, or one or two lines of text."""
        kind = instruction.arg
        if kind is None:
            return None
        if kind.n == pickletools.UP_TO_NEWLINE:
            first = self._line()
            return (first, self._line()) if kind.name == "stringnl_noescape_pair" else first
        if kind.n in _SIZES:
            prefix = _SIZES[kind.n]
            return self._take(struct.unpack(prefix, self._take(struct.calcsize(prefix)))[0])
        return struct.unpack(_NUMBERS[kind.name], self._take(kind.n))[0]

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def top(self, kind: type) -> Any:
        """Return the value on top of the stack, after a check of its type."""
        if type(self._stack[-1]) is not kind:
            raise _RefusalError(f"fills a {type(self._stack[-1]).__name__} as if it were a {kind.__name__}")
        return self._stack[-1]

    def mark(self) -> None:
        self._aside.append(self._stack)
        self._stack = []

    def marked(self) -> list[Any]:
        """Pop everything that was pushed since the last mark."""
        values, self._stack = self._stack, self._aside.pop()
        return values

    def memoize(self, index: int) -> None:
        # Picklers count from 0 or 1; gaps are left only where the file was edited
        if index not in (len(self._memo), len(self._memo) + 1) and index not in self._memo:
            _check_keys([index], len(self._memo))
        self._memo[index] = self._stack[-1]
        if isinstance(self._stack[-1], _Pending):
            self._stack[-1].memo.append(index)

    def memoize_next(self) -> None:
        self.memoize(len(self._memo))

    def fetch(self, index: int) -> None:
        self.push(self._memo[index])

    def find_global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise _RefusalError("names a global by a value that is not a string; nothing of it was run")
        if f"{module}.{name}" not in ALLOWED:
            raise _RefusalError(_refusal("GLOBAL", (module.encode(), name.encode())))
        self.push(_Global(f"{module}.{name}", ALLOWED[f"{module}.{name}"]))

    def reduce(self) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, _Global) or called.call is None or type(arguments) is not tuple:
            raise _RefusalError(
                f"calls {getattr(called, 'name', type(called).__name__)}, which is not an allowed function"
            )
        try:
            self.push(called.call(*arguments))
        except (TypeError, ValueError, LookupError) as error:
            raise _RefusalError(
                f"calls {called.name} with arguments that feature files do not have ({error})"
            ) from error

    def build(self) -> None:
        """Complete the array or dtype on top of the stack, and replace it in the memo as well."""
        state, pending = self.pop(), self.top(_Pending)
        complete = _build_array(state) if pending.name is None else _build_dtype(pending.name, state)
        self._stack[-1] = complete
        for index in pending.memo:
            self._memo[index] = complete


def _refusal(instruction: str, argument: Any) -> str:
    if instruction in ("GLOBAL", "INST"):
        name = ".".join(part.decode("utf-8", "replace") for part in argument)
        return (
            f"refused: it uses the global {name}, by which a pickle may run code. Nothing of it was run; only arrays, "
            "strings, numbers, lists and dicts are read. If you trust its source, save its content as those"
        )
    return (
        f"refused: instruction {instruction} creates objects other than arrays, lists and dicts. Nothing of it was run"
    )


def _integer(raw: memoryview | bytes) -> int:
    if len(raw) > MAX_INTEGER_SIZE:
        raise _RefusalError(f"holds an integer of {len(raw):,} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _integer_line(line: bytes) -> int | bool:
    if line in (b"00", b"01"):  # how protocol 0 writes False and True
        return line == b"01"
    if len(line) > MAX_INTEGER_SIZE:
        raise _RefusalError(f"holds an integer of {len(line):,} digits")
    return int(line.rstrip(b"L"))


def _text(raw: memoryview) -> str:
    return str(raw, "utf-8", "surrogatepass")


def _old_text(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
        raise _RefusalError(f"holds a string without its quotes, {line[:20]!r}")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(_check_keys(values[::2]), values[1::2], strict=True))


def _check_keys(keys: Any, held: int = 0) -> Any:
    """Return the keys after a check that they may be added to a dict or set that holds `held` others."""
    if held + len(keys) > MAX_NUMERIC_KEYS and any(type(key) is not str for key in _plain(keys)):
        raise _RefusalError(
            f"has a dict or set of more than {MAX_NUMERIC_KEYS:,} entries whose keys are not all strings; such keys "
            "can take very long to read, so save them as strings or as an array"
        )
    return _plain(keys)


def _plain(values: Any) -> Any:
    """Return the values after a check that their types are in `PLAIN`."""
    other = next((value for value in values if type(value) not in PLAIN), None)
    if other is not None:
        raise _RefusalError(f"has a {type(other).__name__} where only strings and numbers may be")
    return values


def _make_array(raw: Any, dtype: Any, shape: Any, fortran: bool) -> np.ndarray:
    """Return an array over the bytes, or of the list's values, after a check of its size."""
    shape = (shape,) if type(shape) is int else shape
    if type(shape) is not tuple or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise _RefusalError(f"holds an array of shape {reprlib.repr(shape)}")
    if not isinstance(dtype, np.dtype):
        raise _RefusalError(f"holds an array with a {type(dtype).__name__} for its dtype")
    order: Literal["C", "F"] = "F" if fortran else "C"
    if dtype.hasobject:
        return _object_array(raw, shape, order)
    raw = raw.encode("latin-1") if isinstance(raw, str) else raw
    if not isinstance(raw, (bytes, memoryview)):
        raise _RefusalError(f"holds an array of {dtype} whose bytes are a {type(raw).__name__}")
    declared = math.prod(shape) * dtype.itemsize
    if declared != len(raw):
        raise _RefusalError(
            f"declares an array of shape {shape} of {dtype}, {declared:,} bytes, but holds {len(raw):,} for it; "
            "it is damaged or malicious"
        )
    if dtype.kind == "U" and declared and np.frombuffer(raw, f"{dtype.str[0]}u4").max(initial=0) > MAX_CODE_POINT:
        raise _RefusalError(
            "holds an array of strings with numbers that are not characters; it is damaged or malicious"
        )
    return np.frombuffer(raw, dtype).reshape(shape, order=order) if declared else np.empty(shape, dtype)


def _object_array(values: Any, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    if type(values) is not list or math.prod(shape) != len(values):
        raise _RefusalError(f"declares an object array of shape {shape}, but does not hold as many objects")
    array = np.empty(len(values), object)
    array[:] = _plain(values)
    return array.reshape(shape, order=order)


def _build_array(state: Any) -> np.ndarray:
    """Build an array from NumPy's state: version, shape, dtype, whether in Fortran order, bytes or list."""
    if type(state) is not tuple or len(state) != 5 or state[0] != 1:
        raise _RefusalError("holds an array in a form that NumPy does not write")
    _, shape, dtype, fortran, raw = state
    return _make_array(raw, dtype, shape, fortran is True or fortran == 1)


def _build_dtype(name: str, state: Any) -> np.dtype:
    """Build a dtype from NumPy's state: version, byte order, fields (none allowed), sizes and flags."""
    if type(state) is not tuple or len(state) not in (8, 9) or state[1] not in ("<", ">", "|", "="):
        raise _RefusalError("holds a dtype in a form that NumPy does not write")
    if any(part is not None for part in state[2:5]) or state[8:] not in ((), (None,)):
        raise _RefusalError("holds a dtype with fields; only numbers and strings are read")
    return np.dtype(name) if state[1] == "|" else np.dtype(name).newbyteorder(state[1])


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Pending:
    """Stand in for NumPy's `_reconstruct(ndarray, (0,), b"b")`, an empty array that `BUILD` completes."""
    code = bytes(code) if isinstance(code, memoryview) else code
    is_ndarray = isinstance(kind, _Global) and kind.name == "numpy.ndarray"
    if not is_ndarray or shape != (0,) or code not in (b"b", "b"):
        raise ValueError("NumPy writes ndarray, (0,), b'b'")
    return _Pending(None)


def _dtype(name: Any, align: Any = 0, copy: Any = 1) -> _Pending:
    if not isinstance(name, str) or not DTYPE_NAME.fullmatch(name) or name.rstrip("0") in ("S", "U"):
        raise ValueError(f"{reprlib.repr(name)} is not a dtype of numbers or strings")
    return _Pending("O" if name.startswith("O") else name)


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if order not in ("C", "F"):
        raise ValueError(f"order {reprlib.repr(order)}")
    if isinstance(dtype, np.dtype) and dtype.hasobject:
        raise ValueError("objects have no buffer")
    return _make_array(raw, dtype, shape, order == "F")


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    if isinstance(dtype, np.dtype) and dtype.hasobject:
        raise ValueError("an object is not a scalar")
    return _make_array(raw, dtype, (), False).item()


def _encode(text: Any, encoding: Any) -> bytes:
    """Stand in for `_codecs.encode`, by which protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"encoding {reprlib.repr(encoding)}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """Stand in for `bytes()`, by which protocols before 3 write empty bytes."""
    return b""


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    return _pairs([part for pair in pairs for part in (pair[0], pair[1])])


def _set(values: Any = ()) -> set[Any]:
    if type(values) not in (list, tuple):
        raise ValueError(f"a set of a {type(values).__name__}")
    return set(_check_keys(values))


ALLOWED: dict[str, Callable[..., Any] | None] = {
    "numpy.ndarray": None,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
    "collections.OrderedDict": _ordered,
    "__builtin__.set": _set,
    "builtins.set": _set,
}
"""The globals that a pickle may name, as NumPy 1 and NumPy 2 spell them, and the functions that stand in for them."""

_INSTRUCTIONS = {instruction.code: instruction for instruction in pickletools.opcodes}
_SIZES = {
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<i",
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}
"""Formats of the length prefixes of arguments."""
_NUMBERS = {"uint1": "<B", "uint2": "<H", "int4": "<i", "uint4": "<I", "uint8": "<Q", "float8": ">d"}

_Step = Callable[[_Machine, Any], Any]


def _value(convert: Callable[[Any], Any]) -> _Step:
    """Return a step that pushes the converted argument of the instruction."""
    return lambda machine, argument: machine.push(convert(argument))


def _tuple_of(count: int) -> _Step:
    """Return a step that replaces the last values of the stack by a tuple."""
    return lambda machine, _: machine.push(tuple([machine.pop() for _ in range(count)][::-1]))


def _ignore(machine: _Machine, argument: Any) -> None:
    """Ignore an instruction."""


def _append(machine: _Machine, values: list[Any]) -> None:
    machine.top(list).extend(values)


def _update(machine: _Machine, pairs: dict[Any, Any]) -> None:
    held = machine.top(dict)
    _check_keys(pairs.keys(), len(held))
    held.update(pairs)


def _add(machine: _Machine, values: list[Any]) -> None:
    held = machine.top(set)
    held.update(_check_keys(values, len(held)))


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _update(machine, _pairs([key, value]))


_STEPS: dict[str, _Step] = {
    "PROTO": _ignore,
    "FRAME": _ignore,  # only a length, for readers that read ahead
    "NONE": _value(lambda _: None),
    "NEWTRUE": _value(lambda _: True),
    "NEWFALSE": _value(lambda _: False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT"), _value(lambda number: number)),
    **dict.fromkeys(("LONG1", "LONG4"), _value(_integer)),
    **dict.fromkeys(("INT", "LONG"), _value(_integer_line)),
    "FLOAT": _value(float),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _value(_text)),
    "UNICODE": _value(lambda line: str(line, "raw-unicode-escape")),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _value(lambda raw: str(raw, "latin-1"))),
    "STRING": _value(_old_text),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _value(lambda raw: raw)),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.marked(),
    "EMPTY_TUPLE": _value(lambda _: ()),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "EMPTY_LIST": _value(lambda _: []),
    "LIST": lambda machine, _: machine.push(machine.marked()),
    "APPEND": lambda machine, _: _append(machine, [machine.pop()]),
    "APPENDS": lambda machine, _: _append(machine, machine.marked()),
    "EMPTY_DICT": _value(lambda _: {}),
    "DICT": lambda machine, _: machine.push(_pairs(machine.marked())),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: _update(machine, _pairs(machine.marked())),
    "EMPTY_SET": _value(lambda _: set()),
    "ADDITEMS": lambda machine, _: _add(machine, machine.marked()),
    "FROZENSET": lambda machine, _: machine.push(frozenset(_check_keys(machine.marked()))),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, index: machine.memoize(index)),
    "PUT": lambda machine, line: machine.memoize(_integer_line(line)),
    "MEMOIZE": lambda machine, _: machine.memoize_next(),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.fetch(index)),
    "GET": lambda machine, line: machine.fetch(_integer_line(line)),
    "GLOBAL": lambda machine, names: machine.find_global(*(str(name, "utf-8") for name in names)),
    "STACK_GLOBAL": lambda machine, _: (lambda name, module: machine.find_global(module, name))(
        machine.pop(), machine.pop()
    ),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
"""Implementation of each instruction. INST, OBJ, NEWOBJ, NEWOBJ_EX, PERSID, BINPERSID, EXT1, EXT2, EXT4, NEXT_BUFFER
and READONLY_BUFFER are missing on purpose: they create objects, or fetch them from elsewhere."""
