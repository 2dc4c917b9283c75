"""Reading a pickle of arrays without running it.

A pickle is a program for a stack machine that may call anything which Python can import. `load` runs such a program
on a machine of its own that imports nothing: the few globals that files of features need (`ALLOWED`) stand for
functions in this module, any other is refused by name, and so is every instruction that makes objects in another
way. Arrays are views of the file, so that a size which the file does not hold is refused before memory is asked for,
and a pickle larger than memory can be read.

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
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_INTEGER = 1024
"""Bytes or digits of an integer: Python takes the square of it to make one of digits."""

DTYPE_NAME = re.compile(r"[biufSU][0-9]{1,6}|O8?|[?]")
"""Dtypes by the names that numpy pickles them under: booleans, numbers, strings, objects."""

PLAIN = (str, int, float, bool, type(None))
"""What an object array, a set or the keys of a dict may hold. Tuples are not among them: a few bytes make one of tuples
that takes years to hash, or to print, for which messages use `reprlib`."""


class RefusedPickleError(ValueError):
    """The file is no pickle that may or can be read. The message names the file and what was found."""


class _Refused(Exception):
    """Why an instruction was refused, without the file's name."""


@dataclass(slots=True)
class _Pending:
    """What numpy makes first and fills by a later instruction, `BUILD`: an array, or a dtype by its name."""

    name: str | None
    memo: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Global:
    """An allowed global: its name, and what a call of it does here; None where it only names a type."""

    name: str
    call: Callable[..., Any] | None


def load(path: Path) -> Any:
    """What the pickle holds: plain values, lists, dicts, and arrays that are read-only views of the file.

    Strings of Python 2 are read as Latin-1. Object arrays may hold plain values (`PLAIN`).

    Raises:
        FileNotFoundError: no such file.
        RefusedPickleError: any other global than those of `ALLOWED`, an instruction that makes objects in another way, an
            array whose size is not that of its bytes, or no whole pickle.
    """
    with open(path, "rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise RefusedPickleError(f"{path}: the file is empty; get it again") from error
    try:
        return _Machine(mapped).run()
    except _Refused as reason:
        raise RefusedPickleError(f"{path}: {reason}") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error, RecursionError) as error:
        raise RefusedPickleError(
            f"{path}: not a whole pickle of arrays, lists and dicts ({type(error).__name__}: {error}); get it again"
        ) from error


class _Machine:
    """One run of a pickle: its bytes, the stack with those that marks have put aside, and the memo."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped, self._bytes = mapped, memoryview(mapped)
        self._at = 0
        self._stack: list[Any] = []
        self._aside: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Follow the instructions up to STOP."""
        while True:
            code = chr(self._take(1)[0])
            instruction = pickletools.code2op.get(code)
            if instruction is None:
                raise _Refused(f"no pickle: {code!r} at byte {self._at - 1} is no instruction of one")
            argument = self._argument(instruction)
            if instruction.name == "STOP":
                return self._stack.pop()
            step = _STEPS.get(instruction.name)
            if step is None:
                raise _Refused(_refusal(instruction.name, argument))
            step(self, argument)

    def _take(self, size: int) -> memoryview:
        if size > len(self._bytes) - self._at or size < 0:
            raise _Refused(
                f"declares {size:,} bytes at byte {self._at:,}, but the file has {len(self._bytes) - self._at:,} more; "
                "it is damaged or made to harm"
            )
        self._at += size
        return self._bytes[self._at - size : self._at]

    def _line(self) -> bytes:
        end = self._mapped.find(b"\n", self._at)
        if end < 0:
            raise _Refused("ends in the middle of a line; get it again")
        line = self._mapped[self._at : end]
        self._at = end + 1
        return line

    def _argument(self, instruction: Any) -> Any:
        """The bytes of an argument of its own length, the number of one of fixed length, or the line or two of text."""
        kind = instruction.arg
        if kind is None:
            return None
        if kind.n == pickletools.UP_TO_NEWLINE:
            first = self._line()
            return (first, self._line()) if kind.name == "stringnl_noescape_pair" else first
        if kind.n in _SIZES:
            form = _SIZES[kind.n]
            return self._take(struct.unpack(form, self._take(struct.calcsize(form)))[0])
        return struct.unpack(_NUMBERS[kind.name], self._take(kind.n))[0]

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def top(self, kind: type) -> Any:
        """The value on top, which must be of the kind: an instruction may not change anything else."""
        if type(self._stack[-1]) is not kind:
            raise _Refused(f"fills a {type(self._stack[-1]).__name__} as if it were a {kind.__name__}")
        return self._stack[-1]

    def mark(self) -> None:
        self._aside.append(self._stack)
        self._stack = []

    def marked(self) -> list[Any]:
        """What was pushed since the last mark, taken off the stack."""
        values, self._stack = self._stack, self._aside.pop()
        return values

    def remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]
        if isinstance(self._stack[-1], _Pending):
            self._stack[-1].memo.append(index)

    def remember_next(self) -> None:
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        self.push(self._memo[index])

    def find_global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise _Refused("names a global by something that is no string; nothing of it was run")
        if f"{module}.{name}" not in ALLOWED:
            raise _Refused(_refusal("GLOBAL", (module.encode(), name.encode())))
        self.push(_Global(f"{module}.{name}", ALLOWED[f"{module}.{name}"]))

    def reduce(self) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, _Global) or called.call is None or type(arguments) is not tuple:
            raise _Refused(f"calls {getattr(called, 'name', type(called).__name__)}, which is no function of ours")
        try:
            self.push(called.call(*arguments))
        except (TypeError, ValueError, LookupError) as error:
            raise _Refused(f"calls {called.name} with arguments that no file of features has ({error})") from error

    def build(self) -> None:
        """Fill the array or dtype on top, wherever it was remembered."""
        state, pending = self.pop(), self.top(_Pending)
        made = _fill_array(state) if pending.name is None else _fill_dtype(pending.name, state)
        self._stack[-1] = made
        for index in pending.memo:
            self._memo[index] = made


def _refusal(instruction: str, argument: Any) -> str:
    if instruction in ("GLOBAL", "INST"):
        name = ".".join(part.decode("utf-8", "replace") for part in argument)
        return (
            f"refused: it asks for the global {name}, and a pickle may run what it asks for. Nothing of it was run; "
            "only arrays, strings, numbers, lists and dicts are read. If you trust its maker, save its content as those"
        )
    return f"refused: instruction {instruction} makes objects that are no arrays, lists or dicts. Nothing of it was run"


def _integer(raw: memoryview | bytes) -> int:
    if len(raw) > LARGEST_INTEGER:
        raise _Refused(f"holds an integer of {len(raw):,} bytes")
    return int.from_bytes(raw, "little", signed=True)


def _integer_line(line: bytes) -> int | bool:
    if line in (b"00", b"01"):  # how protocol 0 writes False and True
        return line == b"01"
    if len(line) > LARGEST_INTEGER:
        raise _Refused(f"holds an integer of {len(line):,} digits")
    return int(line.rstrip(b"L"))


def _text(raw: memoryview) -> str:
    return str(raw, "utf-8", "surrogatepass")


def _old_text(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
        raise _Refused(f"holds a string without its quotes, {line[:20]!r}")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


def _pairs(values: list[Any]) -> dict[Any, Any]:
    return dict(zip(_plain(values[::2]), values[1::2], strict=True))


def _plain(values: Any) -> Any:
    """The values, of which all are `PLAIN`."""
    strange = next((value for value in values if type(value) not in PLAIN), None)
    if strange is not None:
        raise _Refused(f"has a {type(strange).__name__} where only strings and numbers may be")
    return values


def _make_array(raw: Any, dtype: Any, shape: Any, fortran: bool) -> np.ndarray:
    """An array over the bytes, or of the list's values, whose size is what it says."""
    shape = (shape,) if type(shape) is int else shape
    if type(shape) is not tuple or len(shape) > 8 or not all(type(n) is int and n >= 0 for n in shape):
        raise _Refused(f"holds an array of shape {reprlib.repr(shape)}")
    if not isinstance(dtype, np.dtype):
        raise _Refused(f"holds an array of {type(dtype).__name__} for a dtype")
    order = "F" if fortran else "C"
    if dtype.hasobject:
        return _object_array(raw, shape, order)
    raw = raw.encode("latin-1") if isinstance(raw, str) else raw
    if not isinstance(raw, (bytes, memoryview)):
        raise _Refused(f"holds an array of {dtype} whose bytes are a {type(raw).__name__}")
    declared = math.prod(shape) * dtype.itemsize
    if declared != len(raw):
        raise _Refused(
            f"declares an array of shape {shape} of {dtype}, {declared:,} bytes, but holds {len(raw):,} for it; "
            "it is damaged or made to harm"
        )
    return np.frombuffer(raw, dtype).reshape(shape, order=order) if declared else np.empty(shape, dtype)


def _object_array(values: Any, shape: tuple[int, ...], order: Any) -> np.ndarray:
    if type(values) is not list or math.prod(shape) != len(values):
        raise _Refused(f"declares an object array of shape {shape}, but holds not as many objects")
    made = np.empty(len(values), object)
    made[:] = _plain(values)
    return made.reshape(shape, order=order)


def _fill_array(state: Any) -> np.ndarray:
    """The array of numpy's state (version, shape, dtype, whether in Fortran's order, bytes or list)."""
    if type(state) is not tuple or len(state) != 5 or state[0] != 1:
        raise _Refused("holds an array of a form that numpy does not write")
    _, shape, dtype, fortran, raw = state
    return _make_array(raw, dtype, shape, fortran is True or fortran == 1)


def _fill_dtype(name: str, state: Any) -> np.dtype:
    """The dtype of numpy's state (version, byte order, no fields of any kind, sizes and flags)."""
    if type(state) is not tuple or len(state) not in (8, 9) or state[1] not in ("<", ">", "|", "="):
        raise _Refused("holds a dtype of a form that numpy does not write")
    if any(part is not None for part in state[2:5]) or state[8:] not in ((), (None,)):
        raise _Refused("holds a dtype with fields; only numbers and strings are read")
    return np.dtype(name) if state[1] == "|" else np.dtype(name).newbyteorder(state[1])


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Pending:
    """numpy's empty array, before its state: `_reconstruct(ndarray, (0,), b"b")` and nothing else."""
    code = bytes(code) if isinstance(code, memoryview) else code
    named = isinstance(kind, _Global) and kind.name == "numpy.ndarray"
    if not named or shape != (0,) or code not in (b"b", "b"):
        raise ValueError("numpy writes ndarray, (0,), b'b'")
    return _Pending(None)


def _dtype(name: Any, align: Any = 0, copy: Any = 1) -> _Pending:
    if not isinstance(name, str) or not DTYPE_NAME.fullmatch(name) or name.rstrip("0") in ("S", "U"):
        raise ValueError(f"{reprlib.repr(name)} is no dtype of numbers or strings")
    return _Pending("O" if name.startswith("O") else name)


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if order not in ("C", "F"):
        raise ValueError(f"order {reprlib.repr(order)}")
    if isinstance(dtype, np.dtype) and dtype.hasobject:
        raise ValueError("objects have no buffer")
    return _make_array(raw, dtype, shape, order == "F")


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    if isinstance(dtype, np.dtype) and dtype.hasobject:
        raise ValueError("an object is no scalar")
    return _make_array(raw, dtype, (), False).item()


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocols before 3 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"encoding {reprlib.repr(encoding)}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    """How protocols before 3 write no bytes."""
    return b""


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    return _pairs([part for pair in pairs for part in (pair[0], pair[1])])


def _set(values: Any = ()) -> set[Any]:
    if type(values) not in (list, tuple):
        raise ValueError(f"a set of a {type(values).__name__}")
    return set(_plain(values))


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
"""Every global that a pickle may name, in numpy 1's and numpy 2's spelling, and the function that stands for it."""

_SIZES = {
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<i",
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}
_NUMBERS = {"uint1": "<B", "uint2": "<H", "int4": "<i", "uint4": "<I", "uint8": "<Q", "float8": ">d"}

_Step = Callable[[_Machine, Any], Any]


def _value(make: Callable[[Any], Any]) -> _Step:
    """A step that pushes what `make` makes of the instruction's argument."""
    return lambda machine, argument: machine.push(make(argument))


def _last(count: int) -> _Step:
    """A step that puts the last values of the stack into a tuple."""
    return lambda machine, _: machine.push(tuple([machine.pop() for _ in range(count)][::-1]))


def _nothing(machine: _Machine, argument: Any) -> None:
    """A step for what says nothing to this machine."""


def _append(machine: _Machine, values: list[Any]) -> None:
    machine.top(list).extend(values)


def _update(machine: _Machine, pairs: dict[Any, Any]) -> None:
    machine.top(dict).update(pairs)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _update(machine, _pairs([key, value]))


_STEPS: dict[str, _Step] = {
    "PROTO": _nothing,
    "FRAME": _nothing,  # a length for readers that read ahead
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
    "TUPLE1": _last(1),
    "TUPLE2": _last(2),
    "TUPLE3": _last(3),
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
    "ADDITEMS": lambda machine, _: (lambda values: machine.top(set).update(values))(_plain(machine.marked())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(_plain(machine.marked()))),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda machine, index: machine.remember(index)),
    "PUT": lambda machine, line: machine.remember(_integer_line(line)),
    "MEMOIZE": lambda machine, _: machine.remember_next(),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, index: machine.recall(index)),
    "GET": lambda machine, line: machine.recall(_integer_line(line)),
    "GLOBAL": lambda machine, names: machine.find_global(*(str(name, "utf-8") for name in names)),
    "STACK_GLOBAL": lambda machine, _: (lambda name, module: machine.find_global(module, name))(
        machine.pop(), machine.pop()
    ),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
"""What each instruction does. INST, OBJ, NEWOBJ, NEWOBJ_EX, PERSID, BINPERSID, EXT1, EXT2, EXT4, NEXT_BUFFER and
READONLY_BUFFER are not among them: they make objects, or fetch them from elsewhere."""
