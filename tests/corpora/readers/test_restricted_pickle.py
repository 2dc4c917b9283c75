"""A pickle is read as data: what asks for anything to be run is refused, and nothing of it runs."""

from __future__ import annotations

import collections
import copyreg
import functools
import os
import pickle
import struct
import subprocess
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from corpora.readers.restricted_pickle import RefusedPickleError, load

if TYPE_CHECKING:
    from pathlib import Path

PROTOCOLS = range(6)


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class Plain:
    """Pickles as an object of a class of ours."""


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "features.pkl"


def refusal(path: Path, content: bytes) -> str:
    """Why `load` refuses a file of these bytes."""
    path.write_bytes(content)
    with pytest.raises(RefusedPickleError) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}: ")
    return str(refused.value)


def same(found: Any, given: Any) -> bool:
    if isinstance(given, np.ndarray):
        return found.dtype == given.dtype and found.shape == given.shape and (found == given).all()
    if isinstance(given, dict):
        return list(found) == list(given) and all(same(found[key], given[key]) for key in given)
    if isinstance(given, (list, tuple)):
        return type(found) is type(given) and len(found) == len(given) and all(map(same, found, given))
    if isinstance(given, bytes):
        return bytes(found) == given
    return type(found) is type(given) and found == given


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_plain_values_come_out_as_they_went_in(path, protocol):
    shared = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    given = {
        "double": shared,
        "again": shared,
        "single": np.float32([[0.5, -np.inf]]),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "booleans": np.array([True, False]),
        "objects": np.array([["a$_$1", "早上好"], [None, 1]], object),
        "strings": np.array(["early", "早上好"]),
        "bytes": np.array([b"early", b"on"]),
        "none": np.empty((0, 5), np.float32),
        "values": [1, -2.5, True, False, None, "text", 10**30, -(10**30), "", "x" * 300, b"raw", b""],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "nested": {1: [{"deep": [[]]}]},
    }
    path.write_bytes(pickle.dumps(given, protocol=protocol))
    found = load(path)
    assert same(found, given)
    assert found["double"] is found["again"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_ordered_dicts_and_sets_come_out_as_plain_ones(path, protocol):
    given = [np.float32(0.5), np.int64(7), np.str_("five"), collections.OrderedDict(b=1, a=2), {1, 2}, np.bool_(True)]
    path.write_bytes(pickle.dumps(given, protocol=protocol))
    assert same(load(path)[:4], [0.5, 7, "five", {"b": 1, "a": 2}])
    assert load(path)[4:] == [{1, 2}, True]


def test_arrays_are_read_under_the_names_of_both_versions_of_numpy(path):
    for protocol in PROTOCOLS:
        content = pickle.dumps({"a": np.arange(3.0), "b": np.float64(1)}, protocol=protocol)
        core, other = (b"numpy.core", b"numpy._core") if b"numpy.core" in content else (b"numpy._core", b"numpy.core")
        short = content.replace(b"\x8c" + bytes([len(core) + 11]) + core, b"\x8c" + bytes([len(other) + 11]) + other)
        short = short.replace(b"\x8c" + bytes([len(core) + 8]) + core, b"\x8c" + bytes([len(other) + 8]) + other)
        short = short.replace(b"c" + core, b"c" + other)
        assert core + b"." not in short
        path.write_bytes(short)  # the frame's length no longer fits, and nobody needs it
        assert same(load(path), {"a": np.arange(3.0), "b": 1.0})


def test_a_pickle_of_python_2_is_read_as_latin_1(path):
    path.write_bytes(b"\x80\x02}U\x03keyU\x02\xe9!s.")
    assert load(path) == {"key": "é!"}
    path.write_bytes(b"(dp0\nS'key'\np1\nI01\ns.")
    assert load(path) == {"key": True}


def test_arrays_are_views_of_the_file_and_cost_no_memory(path):
    path.write_bytes(pickle.dumps({"a": np.ones(2_000_000)}, protocol=4))
    tracemalloc.start()
    try:
        array = load(path)["a"]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert array.sum() == 2_000_000 and not array.flags.writeable


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("place", ["alone", "nested", "in an object array", "behind the arrays"])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), f"{os.system.__module__}.system"),
        (eval, ("open('{}', 'w')",), "eval"),
        (subprocess.Popen, ("touch {}",), "Popen"),  # Python 2 had it in another module, and so have old protocols
        (getattr, ("{}", "upper"), "getattr"),
        (np.load, ("{}",), "numpy.load"),
        (np.fromfile, ("{}",), "numpy.fromfile"),
    ],
)
def test_any_other_global_is_refused_by_name_and_nothing_runs(
    path, tmp_path, protocol, place, function, arguments, name
):
    proof = tmp_path / "ran"
    call = Call(function, *(argument.format(proof) for argument in arguments))
    content = {
        "alone": call,
        "nested": {"train": {"id": [["a"], [[call]]]}},
        "in an object array": {"train": {"id": np.array(["a", call], object)}},
        "behind the arrays": {"train": np.ones(9), "valid": (call,)},
    }[place]
    said = refusal(path, pickle.dumps(content, protocol=protocol))
    assert f"{name}," in said and "Nothing of it was run" in said
    assert not proof.exists()


@pytest.mark.parametrize("module", ["builtins", "__builtin__"])
@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__", "open", "compile", "object", "type"])
def test_builtins_are_refused_in_both_spellings(path, module, name):
    assert f"{module}.{name}" in refusal(path, f"c{module}\n{name}\n(S'1'\ntR.".encode())


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("numpy", "core.multiarray.os.system"),  # protocol 4 follows dots
        ("numpy.core", "multiarray._reconstruct.__globals__"),
        ("numpy", "ndarray.__class__"),
        ("numpy.core.multiarray", "_reconstruct.__call__"),
        ("numpy\x00", "ndarray"),
        ("numpy", "Ndarray"),
        ("numpy.testing._private.utils", "runstring"),
        ("", ""),
    ],
)
def test_names_that_are_put_together_on_the_stack_are_compared_whole(path, module, name):
    content = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    assert f"{module}.{name}" in refusal(path, content + b"\x93)R.")


def test_a_global_named_by_no_string_is_refused(path):
    assert "not a string" in refusal(path, b"\x80\x04K\x01\x8c\x07ndarray\x93.")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        (b"\x80\x04cnumpy\nndarray\n)}\x92.", "NEWOBJ_EX"),
        (b"(cnumpy\nndarray\no.", "OBJ"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"Pfile\n.", "PERSID"),
        (b"\x80\x02U\x04fileQ.", "BINPERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\x83\x01\x00.", "EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00x\x98.", "READONLY_BUFFER"),
    ],
)
def test_other_ways_to_make_objects_are_refused(path, content, said):
    assert said in refusal(path, content)


def test_a_registered_extension_code_is_not_followed(path):
    copyreg.add_extension("builtins", "eval", 0x70000)
    try:
        said = refusal(path, b"\x80\x02" + pickle.EXT4 + struct.pack("<i", 0x70000) + b"U\x011\x85R.")
    finally:
        copyreg.remove_extension("builtins", "eval", 0x70000)
    assert "EXT4" in said


def test_objects_of_classes_are_refused(path):
    for protocol in PROTOCOLS:
        said = refusal(path, pickle.dumps(Plain(), protocol=protocol))
        assert "Plain" in said or "_reconstructor" in said


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
FLOATS = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


@pytest.mark.parametrize(
    "arguments",
    [
        b"(" + NDARRAY + b"J\x00\x00\x00\x70\x85U\x01btR",  # numpy would allocate 1,879,048,192 of them
        b"(" + NDARRAY + b"K\x00\x85U\x01OtR",
        b"(K\x01K\x00\x85U\x01btR",
        b"(tR",
        b"(" + RECONSTRUCT + b"K\x00\x85U\x01btR",
        b"(" + NDARRAY + b"K\x00\x85}tR",
    ],
)
def test_strange_arguments_of_an_allowed_function_are_refused(path, arguments):
    assert "_reconstruct" in refusal(path, b"\x80\x02" + RECONSTRUCT + arguments + b".")


def array(shape: bytes, dtype: bytes, raw: bytes) -> bytes:
    """A pickled array with the state that is given."""
    made = b"\x80\x03" + RECONSTRUCT + b"(" + NDARRAY + b"K\x00\x85C\x01btR"
    return made + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb."


def test_an_array_in_order_is_read_from_the_parts_that_the_next_tests_bend(path):
    path.write_bytes(array(b"K\x02\x85", FLOATS, b"C\x10" + np.float64([1, 2]).tobytes()))
    assert load(path).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (array(b"J\x00\x00\x00\x20\x85", FLOATS, b"C\x08" + bytes(8)), "4,294,967,296 bytes, but holds 8"),
        (array(b"\x8a\x08" + b"\xff" * 7 + b"\x0f\x85", FLOATS, b"C\x08" + bytes(8)), "declares an array of shape"),
        (array(b"\x8a\x01\xff\x85", FLOATS, b"C\x08" + bytes(8)), r"shape (-1,)"),
        (array(b"K\x01\x85", FLOATS, b"]"), "whose bytes are a list"),
        (array(b"K\x01\x85", b"N", b"C\x08" + bytes(8)), "NoneType for its dtype"),
        (array(b"N", FLOATS, b"C\x08" + bytes(8)), "shape None"),
        (array(b"K\x01\x85", FLOATS.replace(b"f8", b"O8"), b"C\x08" + bytes(8)), "not hold as many objects"),
        (array(b"K\x01\x85", FLOATS.replace(b"f8", b"O8"), b"]]a"), "a list where only strings"),
        (array(b"K\x01\x85", FLOATS.replace(b"f8", b"V8"), b"C\x08" + bytes(8)), "'V8'"),
        (array(b"K\x01\x85", FLOATS.replace(b"f8", b"U0"), b"C\x00"), "'U0'"),
        (array(b"K\x01\x85", FLOATS.replace(b"NNN", b"NK\x01K\x01"), b"C\x08" + bytes(8)), "fields"),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(path, content, said):
    tracemalloc.start()
    try:
        assert said in refusal(path, content)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "declared",
    [
        b"\x8e" + struct.pack("<Q", 1 << 32),  # BINBYTES8
        b"\x96" + struct.pack("<Q", 1 << 32),  # BYTEARRAY8
        b"\x8d" + struct.pack("<Q", 1 << 62),  # BINUNICODE8
        b"B" + struct.pack("<I", 0xFFFFFFFF),  # BINBYTES
        b"X" + struct.pack("<I", 0xFFFFFFFF),  # BINUNICODE
        b"T" + struct.pack("<i", -1),  # BINSTRING
        b"\x8b" + struct.pack("<i", 0x7FFFFFFF),  # LONG4
    ],
)
def test_a_size_beyond_the_file_is_refused_before_memory_is_asked_for(path, declared):
    tracemalloc.start()
    try:
        said = refusal(path, b"\x80\x05" + declared + b"short.")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert "but the file has 6 more" in said


def test_an_instruction_may_fill_nothing_but_what_it_is_for(path):
    assert "as if it were" in refusal(path, b"\x80\x02" + NDARRAY + b"}U\x01aK\x01sb.")  # attributes of a global
    assert "as if it were" in refusal(path, b"\x80\x02" + NDARRAY + b"K\x01a.")  # its method `append`
    assert "as if it were" in refusal(path, b"\x80\x02]U\x01aK\x01s.")  # an item of a list


def bomb(levels: int = 60) -> tuple[Any, ...]:
    """A tuple that is 2 ** 60 times as large as it is written."""
    return functools.reduce(lambda inner, _: (inner, inner), range(levels), ("x",))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04}%sK\x01s.",  # a dict's key
        b"\x80\x04(%sK\x01d.",
        b"\x80\x04\x8f(%s\x90.",  # what a set holds
        b"\x80\x04(%s\x91.",
        b"\x80\x04c__builtin__\nset\n]%sa\x85R.",
        b"\x80\x04cnumpy\ndtype\n%s\x85R.",  # what a message would show
        array(b"%s", FLOATS, b"C\x08" + bytes(8)),
        array(b"%s\x85", FLOATS, b"C\x08" + bytes(8)),
    ],
)
def test_what_grows_beyond_measure_when_it_is_hashed_or_shown_is_refused_at_once(path, content):
    assert refusal(path, content.replace(b"%s", pickle.dumps(bomb(), protocol=2)[2:-1]))


def test_what_would_grow_beyond_measure_stays_as_small_as_it_is_written(path):
    path.write_bytes(pickle.dumps({"train": bomb()}))
    found = load(path)["train"]
    assert found[0] is found[1]


@pytest.mark.parametrize("keep", [0, 1, 5, 60, -40, -1])
def test_a_file_that_was_cut_off_is_refused(path, keep):
    whole = pickle.dumps({"train": {"audio": np.ones((3, 4)), "id": ["a", "b", "c"]}}, protocol=4)
    assert refusal(path, whole[:keep])


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"hello", b"\x80\x04.", b"\x80\x02h\x05.", b"0."]
)
def test_what_is_no_pickle_is_refused(path, content):
    assert refusal(path, content)


def test_numbers_that_take_long_to_read_are_refused(path):
    assert "integer" in refusal(path, b"I" + b"9" * 5000 + b"\n.")
    assert "integer" in refusal(path, b"\x80\x02\x8b" + struct.pack("<i", 5000) + b"\x01" * 5000 + b".")


PRIME = (1 << 61) - 1
"""Multiples of it have the hash 0."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [int, float])
def test_numbers_as_keys_are_limited_since_they_can_be_chosen_to_collide(path, protocol, kind):
    many = [kind(n * PRIME) for n in range(1, 1101)]
    for content in (dict.fromkeys(many), collections.OrderedDict((n, None) for n in many), set(many)):
        assert "more than 1,000 entries" in refusal(path, pickle.dumps({"train": content}, protocol=protocol))
    mixed = {f"key {n}": n for n in range(2000)} | {many[0]: None}
    assert "more than 1,000 entries" in refusal(path, pickle.dumps(mixed, protocol=protocol))
    given = {"strings": {f"key {n}": n for n in range(5000)}, "numbers": dict.fromkeys(many[:900])}
    path.write_bytes(pickle.dumps(given, protocol=protocol))
    assert same(load(path), given)


def long(number: int) -> bytes:
    return b"\x8a\x0a" + number.to_bytes(10, "little")


@pytest.mark.parametrize(
    "content",
    [
        b"}" + b"".join(long(n * PRIME) + b"Ns" for n in range(1, 1101)),
        b"\x8f" + b"".join(b"(" + long(n * PRIME) + b"\x90" for n in range(1, 1101)),
        b"(" + b"".join(long(n * PRIME) for n in range(1, 1101)) + b"\x91",
        b"(" + b"".join(long(n * PRIME) + b"N" for n in range(1, 1101)) + b"d",
        b"N" + b"".join(b"p%d\n" % (n * PRIME) for n in range(1, 1101)),  # indices of the memo
    ],
)
def test_colliding_keys_one_by_one_are_limited_as_well(path, content):
    assert "more than 1,000 entries" in refusal(path, b"\x80\x04" + content + b".")


def test_a_memo_that_is_counted_from_1_may_be_long(path):
    path.write_bytes(b"\x80\x02]" + b"".join(b"]r" + struct.pack("<I", n) + b"a" for n in range(1, 3000)) + b".")
    assert len(load(path)) == 2999


STRINGS = b"cnumpy\ndtype\n(U\x02U1K\x00K\x01tR(K\x03U\x01%sNNNK\x04K\x04K\x08tb"


@pytest.mark.parametrize(("order", "pack"), [(b"<", "<I"), (b">", ">I")])
@pytest.mark.parametrize("code", [0x110000, 0x7FFFFFFF, 0xFFFFFFFF])
def test_numbers_that_are_no_characters_are_refused_in_strings(path, order, pack, code):
    dtype, raw = STRINGS % order, b"C\x04" + struct.pack(pack, code)
    assert "not characters" in refusal(path, b"\x80\x03cnumpy.core.multiarray\nscalar\n(" + dtype + raw + b"tR.")
    assert "not characters" in refusal(path, array(b"K\x01\x85", dtype, raw))


@pytest.mark.parametrize(("order", "pack"), [(b"<", "<I"), (b">", ">I")])
def test_the_highest_character_is_read(path, order, pack):
    path.write_bytes(array(b"K\x01\x85", STRINGS % order, b"C\x04" + struct.pack(pack, 0x10FFFF)))
    assert load(path).tolist() == ["\U0010ffff"]


def test_a_cut_or_changed_byte_never_ends_in_another_error(path):
    """Whatever a byte is changed into, the file is read or refused."""
    whole = pickle.dumps({"a": np.arange(4.0), "b": ["x", 1], "o": np.array(["s", None], object)}, protocol=4)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(600):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(changed)
        try:
            load(path)
        except RefusedPickleError:
            refused += 1
    assert refused > 100
