"""Plain Python values as JSON, to pass between the referee and a program it does not trust.

Only what is listed here can cross: an object that lies about being equal stays behind. Subclasses cross as their base type,
numpy scalars as Python's.
"""

import base64
import datetime
import sys
import zlib
from array import array
from collections import Counter, deque
from decimal import Decimal
from fractions import Fraction
from itertools import chain, islice

MAX_DIGITS = 20_000  # of an integer in decimal; longer ones cross in hexadecimal, which is read in linear time
MANY = 100_000  # values in tuples, from where they are sent as a table
MAX_RANGE = 10_000_000  # values of a range
MAX_TABLE = 1 << 30  # bytes of a table's indices
_SCALARS = {int, float, str, bool, type(None)}


def _bounded(x, ok):
    """x, unless computing with it would take for ever."""
    if not ok(x):
        raise ValueError(f"a {type(x).__name__} beyond its bound")
    return x


# type, its name on the wire, to JSON-able parts, back from them. Subclasses stand before their bases.
_TYPES = (
    (tuple, "tuple", list, tuple),
    (Counter, "Counter", lambda x: [[k, v] for k, v in dict.items(x)], lambda p: Counter({k: v for k, v in p})),
    (dict, "dict", lambda x: [[k, v] for k, v in dict.items(x)], lambda p: {k: v for k, v in p}),
    (set, "set", list, set),
    (frozenset, "frozenset", list, frozenset),
    (deque, "deque", list, deque),
    (
        range,
        "range",
        lambda x: [x.start, x.stop, x.step],
        lambda p: _bounded(range(*p), lambda x: abs(x.stop - x.start) <= MAX_RANGE * abs(x.step)),
    ),
    (type({}.keys()), "set", list, set),
    (type({}.values()), "list", list, list),
    (type({}.items()), "set", list, set),
    (complex, "complex", lambda x: [x.real, x.imag], lambda p: complex(*p)),
    (bytes, "bytes", lambda x: x.hex(), bytes.fromhex),
    (bytearray, "bytearray", lambda x: x.hex(), bytearray.fromhex),
    (Decimal, "Decimal", str, lambda p: _bounded(Decimal(p), lambda x: not x.is_finite() or abs(x.adjusted()) <= MAX_DIGITS)),
    (Fraction, "Fraction", lambda x: [x.numerator, x.denominator], lambda p: Fraction(*p)),
    (datetime.datetime, "datetime", lambda x: x.isoformat(), datetime.datetime.fromisoformat),
    (datetime.date, "date", lambda x: x.isoformat(), datetime.date.fromisoformat),
    (datetime.time, "time", lambda x: x.isoformat(), datetime.time.fromisoformat),
    (datetime.timedelta, "timedelta", lambda x: [x.days, x.seconds, x.microseconds], lambda p: datetime.timedelta(*p)),
)
# Arrays arrive in the widest type of their kind: a half-precision infinity would equal every number above 65,520.
_ARRAYS = {"b": bool, "i": "int64", "u": "uint64", "f": "float64", "c": "complex128", "U": str, "S": bytes}
_BACK = {name: back for _, name, _, back in _TYPES}


class NotPlain(TypeError):
    """The value is of a type that does not cross."""


def encode(x, other=None):
    """A value → JSON-able. `other` is asked for what it makes of a value that is not plain; without it that raises NotPlain."""
    if x is None or x is True or x is False:
        return x
    if isinstance(x, str):
        return str.__str__(x)
    if isinstance(x, int):
        return int(x) if x.bit_length() < 3 * MAX_DIGITS else {"int": hex(x)}
    if isinstance(x, float):
        return float(x)
    if isinstance(x, list):
        return _encode_list(list(list.__iter__(x)), other)
    for kind, name, parts, _ in _TYPES:
        if isinstance(x, kind):
            return {name: encode(parts(x), other)}
    if type(x).__module__ == "numpy":
        if hasattr(x, "dtype") and x.dtype.kind in _ARRAYS:
            if not getattr(x, "shape", ()):
                return encode(x.item(), other)
            return {"array": [encode(x.ravel().tolist(), other), x.dtype.kind, list(x.shape)]}
    if other is not None:
        return other(x)
    raise NotPlain(f"{type(x).__name__} is not a plain value")


def _encode_list(x: list, other):
    """Lists of scalars, and of tuples of scalars, as they are: JSON's own encoder is a hundred times faster than this one."""
    kinds = set(map(type, x))
    if kinds <= _SCALARS and _short(x):
        return x
    if kinds == {tuple}:
        inner = set(map(type, chain.from_iterable(x)))
        if inner <= _SCALARS and _short(chain.from_iterable(x)):
            return {"table": _as_table(x)} if len(inner) == 1 and sum(map(len, x)) > MANY else {"tuples": x}
    return [encode(v, other) for v in x]


def _as_table(x: list[tuple]) -> list:
    """[distinct values, lengths, indices]: combinations of a few values can be many, and share their values on both sides."""
    places = {v: i for i, v in enumerate(dict.fromkeys(chain.from_iterable(x)))}
    indices = array("I", map(places.__getitem__, chain.from_iterable(x)))
    return [list(places), list(map(len, x)), base64.b64encode(zlib.compress(indices.tobytes(), 1)).decode()]


def _from_table(parts: list) -> list[tuple]:
    values, lengths, packed = parts
    unpacker = zlib.decompressobj()
    indices = array("I", unpacker.decompress(base64.b64decode(packed), MAX_TABLE))
    if unpacker.unconsumed_tail:
        raise ValueError("a table beyond its bound")
    flat = map(values.__getitem__, indices)
    return [tuple(islice(flat, n)) for n in lengths]


def _short(scalars) -> bool:
    return all(type(v) is not int or v.bit_length() < 3 * MAX_DIGITS for v in scalars)


def allow_long_integers() -> None:
    """Let JSON read integers of up to MAX_DIGITS digits in this process."""
    sys.set_int_max_str_digits(MAX_DIGITS)


def decode(x, other=None):
    """Back from `encode`. `other` is given the content of {"remote": …}. Raises ValueError for anything else."""
    if isinstance(x, list):
        return x if set(map(type, x)) <= _SCALARS else [decode(v, other) for v in x]
    if not isinstance(x, dict):
        return x
    ((name, parts),) = x.items()
    if name == "int":
        return int(parts, 16)
    if name == "table":
        return _from_table(parts)
    if name == "tuples":
        return [tuple(part) for part in parts]
    if name == "array":
        import numpy as np

        values, kind, shape = parts
        return np.array(decode(values, other), dtype=_ARRAYS[kind]).reshape([int(n) for n in shape] or [-1])
    if name == "remote" and other is not None:
        return other(parts)
    if name not in _BACK:
        raise ValueError(f"unknown value {name!r}")
    return _BACK[name](decode(parts, other))
