"""Log events: which there are, and where they go.

The library asks structlog for a logger and configures nothing. structlog, left
unconfigured, would print every event on stdout; so unless the application has
configured it, events go to the standard logger ``mentis_pool``, which shows
warnings on stderr where logging is not configured either.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

_standard = logging.getLogger("mentis_pool")

Level = Literal["debug", "info", "warning"]
_NUMBERS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}


def _to_standard(
    _: Any, __: str, event: MutableMapping[str, Any]
) -> tuple[tuple[str], dict[str, Any]]:
    """An event for the standard logger: a line to read, and the fields as ``record.fields``."""
    name = str(event.pop("event"))
    fields = dict(event)
    line = " ".join([name, *(f"{key}={value!r}" for key, value in fields.items())])
    # Without arguments logging takes the line as it is, percent signs and all.
    return (line,), {"extra": {"event": name, "fields": fields}}


_to_logging = structlog.wrap_logger(
    _standard,
    processors=[_to_standard],
    wrapper_class=structlog.stdlib.BoundLogger,
    context_class=dict,
).bind()  # once, and not for each event
_to_structlog = structlog.get_logger("mentis_pool")


# What structlog's methods call their own parameters.
_TAKEN = frozenset(("self", "method_name", "event"))


def wanted(level: Level) -> bool:
    """Whether anybody would see an event of this level; False saves making it."""
    return structlog.is_configured() or _standard.isEnabledFor(_NUMBERS[level])


def log(level: Level, event: str, /, **fields: Any) -> None:
    """Log one event: a noun and a past verb, and its fields.

    A field may have any name, since the user's contextvars are among them; one
    that structlog cannot take gets an underscore behind it.
    """
    for name in _TAKEN & fields.keys():
        fields[f"{name}_"] = fields.pop(name)
    logger = _to_structlog if structlog.is_configured() else _to_logging
    try:
        getattr(logger, level)(event, **fields)
    except Exception as exc:  # noqa: BLE001 - the application's processors: no task is lost for a log
        _standard.warning("the event %s could not be logged: %r", event, exc)
