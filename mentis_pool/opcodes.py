"""What a pickle out of a sandbox may be made of, decided before one byte of it is loaded.

`check` lets through only what the C unpickler loads in time and memory that are in
proportion to its length. Three things are not, and are refused:

- *An opcode that no result needs.* What is listed here is all that there is. So no memo index
  as large as it likes (for one PUT of 2**30 the unpickler allocates 16 GB), nothing from
  copyreg's registry (EXT), no INST, OBJ, NEWOBJ or GLOBAL, no buffers, no persistent ids.
- *A length that goes beyond the end.*
- *Tuples that share tuples.* A tuple's hash is made of its elements' hashes, each time anew
  (before Python 3.14): forty times ``t = (t, t)``, some 200 bytes, as a key of a dict keep the
  process busy for days, in C and with the GIL; a million tuples within each other use up the
  C stack. Where something hashes, tuples are weighed.

Regular expressions do the reading, at about the speed of the unpickling itself; only
`_weigh` is a loop, and it runs where there are both tuples and something that hashes.
"""

from __future__ import annotations

import re
import sys

from mentis_pool.errors import PayloadError

MAX_TUPLE_DEPTH = 2000
"""Tuples within each other."""

# With everything shared written out, the tuples may have so many elements.
_FREE_WEIGHT, _WEIGHT_PER_BYTE = 1_000_000, 64

_TUPLES = rb"t\x85-\x87"
# These fill a set or a dict, or call something that may.
_HASHING = rb"su\x90\x91Rb"
_OTHERS = rb"()\]}N\x88\x89\x8f\x93\x94ae01"


def _counted(op: bytes) -> bytes:
    """An opcode, one byte that is a length, and that many bytes."""
    return (
        op + b"(?:" + b"|".join(b"%b.{%d}" % (re.escape(bytes([n])), n) for n in range(256)) + b")"
    )


# BININT1, BININT2, BININT, BINFLOAT; SHORT_BINUNICODE, LONG1, SHORT_BINBYTES.
_SCALARS = rb"K.|M..|J.{4}|G.{8}|" + _counted(rb"[\x8c\x8aC]")
_GETS = rb"h.|j.{4}"
# FRAME: it says nothing to an unpickler that has all the bytes (`rebuild._Whole`). PROTO.
_NOTHING = rb"\x95.{8}|\x80[\x02-\x05]"
# BINUNICODE, BINBYTES, LONG4; BINUNICODE8, BINBYTES8, BYTEARRAY8: so many bytes are the length.
_LENGTH = dict.fromkeys(b"XB\x8b", 4) | dict.fromkeys(b"\x8d\x8e\x96", 8)


def _run_of(*single: bytes) -> re.Pattern[bytes]:
    # Possessive, or in short runs: to be able to go back, a greedy one keeps more than it reads.
    repeat = b"*+" if sys.version_info >= (3, 11) else b"{0,1000}"
    tokens = [b"[" + b"".join(single) + b"]+", _SCALARS, _GETS, _NOTHING]
    return re.compile(b"(?:" + b"|".join(tokens) + b")" + repeat, re.DOTALL)


_WITHOUT_TUPLES = _run_of(_OTHERS, _HASHING)
_WITHOUT_HASHING = _run_of(_OTHERS, _TUPLES)
_EVERYTHING = _run_of(_OTHERS, _HASHING, _TUPLES)
# The opcodes of a run, one by one: empty for a scalar.
_EACH = re.compile(
    b"([" + _OTHERS + _HASHING + _TUPLES + b"]|" + _GETS + b"|" + _NOTHING + b")|" + _SCALARS,
    re.DOTALL,
)


def check(pickled: bytes) -> None:
    """Pass what may be loaded.

    Raises:
        PayloadError: it would not be harmless, or is no pickle at all.
    """
    end = len(pickled) - 1
    if not pickled.endswith(b"."):
        raise PayloadError("the sandbox sent no pickle, or only a part of one")
    if _is_all(_WITHOUT_TUPLES, pickled, end) or _is_all(_WITHOUT_HASHING, pickled, end):
        return
    try:
        _weigh(pickled, end)
    except IndexError as exc:  # more taken from the stack, the marks or the memo than was there
        raise PayloadError("the sandbox sent a broken pickle") from exc


def _is_all(run: re.Pattern[bytes], pickled: bytes, end: int) -> bool:
    """Whether the opcodes of ``run``, and long strings, are all that there is."""
    at = 0
    while at < end:
        start, at = at, _end_of(run, pickled, at, end)
        if at == start:
            if pickled[at] not in _LENGTH:
                return False
            at = _after_length(pickled, at)
    return at == end


def _end_of(run: re.Pattern[bytes], pickled: bytes, at: int, end: int) -> int:
    matched = run.match(pickled, at, end)
    return matched.end() if matched else at


def _after_length(pickled: bytes, at: int) -> int:
    argument = at + 1 + _LENGTH[pickled[at]]
    return argument + int.from_bytes(pickled[at + 1 : argument], "little")


_MEMOIZE, _MARK, _POP = b"\x94(0"
_GET = frozenset(b"hj")
_TUPLE, _TUPLE1, _TUPLE3, _FROZENSET = b"t\x85\x87\x91"
_TO_MARK = frozenset(b"eu\x901")  # APPENDS, SETITEMS, ADDITEMS, POP_MARK
_MAKES = frozenset(b"R\x93")  # REDUCE, STACK_GLOBAL: take one, and replace the next
_TAKES = dict.fromkeys(b"abR\x93", 1) | dict.fromkeys(b"s", 2)
_NEITHER = frozenset(b"\x80\x95")


def _weigh(pickled: bytes, end: int) -> None:
    """Follow the unpickler, and know of each tuple its weight and depth.

    A tuple weighs one, and one for each element, and what its elements weigh. Taken from
    the memo it weighs again, and that is what must not get out of hand.
    """
    weights = _Weights(_FREE_WEIGHT + _WEIGHT_PER_BYTE * len(pickled))
    at = 0
    while at < end:
        start, at = at, _end_of(_EVERYTHING, pickled, at, end)
        weights.follow(_EACH.findall(pickled, start, at))
        if at == start:
            if pickled[at] not in _LENGTH:
                raise PayloadError(f"the sandbox sent a forbidden opcode: {pickled[at]:#x}")
            weights.stack.append(None)
            at = _after_length(pickled, at)
    if at != end:
        raise PayloadError("the sandbox sent a pickle that ends too soon")


class _Weights:
    """The unpickler's stack, marks and memo: (weight, depth) of tuples, and None for the others."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.shared = 0
        self.stack: list[tuple[int, int] | None] = []
        self.marks: list[int] = []
        self.memo: list[tuple[int, int] | None] = []

    def follow(self, opcodes: list[bytes]) -> None:
        stack, marks, memo = self.stack, self.marks, self.memo
        for opcode in opcodes:
            op = opcode[0] if opcode else None
            if op is None:
                stack.append(None)
            elif op == _MEMOIZE:
                memo.append(stack[-1])
            elif op in _GET:
                value = memo[int.from_bytes(opcode[1:], "little")]
                stack.append(value)
                if value is not None:
                    self.share(value[0])
            elif op in _TAKES:
                del stack[len(stack) - _TAKES[op] :]
                if op in _MAKES:
                    stack[-1] = None
            elif _TUPLE1 <= op <= _TUPLE3:
                self.tuple_from(len(stack) - 1 - (op - _TUPLE1))
            elif op == _TUPLE:
                self.tuple_from(marks.pop())
            elif op == _MARK:
                marks.append(len(stack))
            elif op in _TO_MARK:
                del stack[marks.pop() :]
            elif op == _FROZENSET:
                del stack[marks.pop() :]
                stack.append(None)
            elif op == _POP:
                # The unpickler takes a mark for a value here.
                (marks if marks and marks[-1] == len(stack) else stack).pop()
            elif op not in _NEITHER:
                stack.append(None)

    def share(self, weight: int) -> None:
        self.shared += weight
        if self.shared > self.limit:
            raise PayloadError("the value's tuples share tuples, more than may be rebuilt")

    def tuple_from(self, first: int) -> None:
        values = self.stack[first:]
        del self.stack[first:]
        weight, depth = 1 + len(values), 1
        for value in values:
            if value is not None:
                weight += value[0]
                depth = max(depth, 1 + value[1])
        if depth > MAX_TUPLE_DEPTH:
            raise PayloadError(f"the value has more than {MAX_TUPLE_DEPTH} tuples in each other")
        self.stack.append((weight, depth))
