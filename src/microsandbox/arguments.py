"""What callers pass, as values of the type that was declared: one converter a type.

The texts are those of microsandbox 0.5.6, which converts in native code. A converter takes any object and
returns the plain value: a ``StrEnum`` member becomes the ``str`` it is, so that nothing but plain values
reaches JSON, CBOR or a command line.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_OUT_OF_RANGE = "out of range integral type conversion attempted"


class Keywords:
    """Stands for TypedDict when the program runs: what that does with annotations takes milliseconds."""

    def __init_subclass__(cls, *, total: bool = True) -> None:
        del total


def _cannot_convert(value: object, target: str) -> TypeError:
    return TypeError(f"'{type(value).__name__}' object cannot be converted to '{target}'")


def parameter(name: str, convert: Callable[[Any], T], value: object) -> T:
    """Convert a parameter that a signature declares; its TypeError says which one it was."""
    try:
        return convert(value)
    except TypeError as error:
        raise TypeError(f"argument '{name}': {error}") from None


def optional(convert: Callable[[Any], T], value: object) -> T | None:
    """None is None; anything else is converted."""
    return None if value is None else convert(value)


def text(value: object) -> str:
    """A ``str`` or an instance of a subclass. Raises TypeError, UnicodeEncodeError for lone surrogates."""
    if not isinstance(value, str):
        raise _cannot_convert(value, "PyString")
    plain = str.__str__(value)
    plain.encode()  # what cannot be encoded could be stored, and would fail when the guest is told
    return plain


def whole(value: Any, bits: int = 32) -> int:
    """An unsigned whole number of so many bits. Raises TypeError, OverflowError."""
    number = operator.index(value)
    if not 0 <= number < 1 << bits:
        raise OverflowError(_OUT_OF_RANGE)
    return number


def real(value: Any) -> float:
    """A real number as ``float``; text is not one. Raises TypeError."""
    return math.ldexp(value, 0)


def seconds(value: object, name: str) -> float:
    """A duration in seconds. Raises TypeError, ValueError for one that is negative or not finite."""
    number = real(value)
    if not number >= 0:
        raise ValueError(f"{name} must be non-negative")
    if math.isinf(number):
        raise ValueError(f"{name} must be finite")
    return number


def flag(value: object) -> bool:
    """``True`` or ``False``; 0 and 1 are neither. Raises TypeError."""
    if not isinstance(value, bool):
        raise _cannot_convert(value, "PyBool")
    return value


def octets(value: Any) -> bytes:
    """Bytes, or a sequence of numbers from 0 to 255. Raises TypeError, ValueError."""
    if isinstance(value, str):
        raise TypeError("Can't extract `str` to `Vec`")
    if not isinstance(value, (bytes, bytearray, memoryview, Sequence)):
        raise _cannot_convert(value, "Sequence")
    return bytes(value)


def text_list(value: object) -> tuple[str, ...]:
    """A sequence of texts that is not itself a text. Raises TypeError."""
    if isinstance(value, str):
        raise TypeError("Can't extract `str` to `Vec`")
    if not isinstance(value, Sequence):
        raise _cannot_convert(value, "Sequence")
    return tuple(text(item) for item in value)


def plain_list(value: object) -> list[Any]:
    """A ``list``. Raises TypeError."""
    if not isinstance(value, list):
        raise _cannot_convert(value, "PyList")
    return value


def text_map(value: object) -> dict[str, str]:
    """A mapping of texts to texts, its order kept. Raises TypeError."""
    if not isinstance(value, Mapping):
        raise _cannot_convert(value, "PyDict")
    return {text(key): text(item) for key, item in value.items()}


class _Attributes(dict[Any, Any]):
    """An object's attributes: unlike the keys of a mapping, they need not all be meant for us."""


def dict_like(value: object) -> Mapping[Any, Any]:
    """A mapping; else what ``_to_dict()`` returns, if that is one; else the attributes. Raises TypeError."""
    if isinstance(value, Mapping):
        return value
    if callable(convert := getattr(value, "_to_dict", None)) and isinstance(found := convert(), Mapping):
        return found
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return _Attributes(vars(value))
    raise TypeError(f"expected dict or object with _to_dict(), got {type(value).__name__}")


def check_keys(values: Mapping[Any, Any], known: Iterable[str], what: str) -> None:
    """Refuse a key that nobody would read: a misspelt option must not be lost in silence.

    Raises TypeError with the nearest known key.
    """
    if isinstance(values, _Attributes):
        return
    for key in values:
        if key not in known:
            raise TypeError(f"unknown {what}: {key}{nearest(key, known)}")


def required(values: Mapping[Any, Any], key: str, complaint: str | None = None) -> str:
    """The text under a key that must be there. Raises ValueError, TypeError."""
    if key not in values:
        raise ValueError(complaint or f"{key} is required")
    return text(values[key])


def nearest(word: object, known: Iterable[str]) -> str:
    """`` (did you mean "x"?)``, or nothing."""
    import difflib

    found = difflib.get_close_matches(str(word), sorted(known), 1)
    return f' (did you mean "{found[0]}"?)' if found else ""
