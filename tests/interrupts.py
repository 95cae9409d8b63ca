"""Interrupts where a signal may raise one: after each call that some code makes, one after the other."""

from __future__ import annotations

import contextlib
import dis
import sys
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def interrupted_after(number: int, *functions: object) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt after this many calls made by these functions; yields where, once it did."""
    codes = {function.__code__ for function in functions}
    left, raised = number, []

    def trace(frame, event, arg):
        if frame.f_code not in codes:
            return None
        frame.f_trace_opcodes = True
        called = False

        def within(frame, event, arg):
            nonlocal called, left
            if event == "opcode" and not raised:
                if called:
                    left -= 1
                    if left < 0:
                        raised.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
                        raise KeyboardInterrupt
                # Between two other instructions no signal is looked for.
                called = dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith("CALL")
            return within

        return within

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield raised
    finally:
        sys.settrace(before)


def each_interrupt(functions: tuple[object, ...], act) -> Iterator[str]:
    """Act again and again, interrupted one call later each time, until it ends; yields where it was."""
    if sys.version_info >= (3, 12):
        pytest.skip("opcodes are not always traced from a function's first one on (3.13.0)")
    for number in range(1000):
        with interrupted_after(number, *functions) as raised:
            with contextlib.suppress(KeyboardInterrupt):
                act()
        if not raised:
            assert number > 0
            return
        yield raised[0]
