"""``python -m benchmarks [NAME]``: picks the benchmark, shows and saves its report.

Without a name it is ``speed``: one table of all figures that are to be reached.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks import attacks, calls, cells, chaos, humaneval, sandboxes, speed
from benchmarks.table import Report


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for.

    Returns:
        The exit code: 1 where a target is not met.

    Raises:
        SystemExit: bad arguments, or something that was measured did not work.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_arguments(parser, speed)
    names = parser.add_subparsers(title="benchmarks", metavar="NAME")
    for module in (speed, humaneval, cells, calls, sandboxes, attacks, chaos):
        name = module.__name__.rpartition(".")[2]
        said = (module.__doc__ or "").splitlines()[0]
        sub = names.add_parser(name, help=said, description=module.__doc__)
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
        _add_arguments(sub, module)
    arguments = parser.parse_args(argv)
    try:
        report: Report = arguments.measure(arguments)
    except ModuleNotFoundError as exc:
        sys.exit(f"{exc.name} is not installed: pip install '.[bench]'")
    print(report)
    if arguments.json:
        report.save(arguments.json)
    if arguments.no_target or report.met:
        return 0
    missed = [target.name for target in report.targets if not target.met]
    print(f"target not met: {', '.join(missed)}", file=sys.stderr)
    return 1


def _add_arguments(parser: argparse.ArgumentParser, module: Any) -> None:
    parser.add_argument("--rounds", type=at_least(1), default=5, help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--no-target", action="store_true", help="exit 0 whatever the figures are")
    module.add_arguments(parser, at_least)
    parser.set_defaults(measure=module.measure)


class at_least:  # noqa: N801 - reads as a type where argparse wants one
    """A whole number that is not too small, for argparse."""

    def __init__(self, least: int) -> None:
        self._least = least

    def __call__(self, text: str) -> int:
        value = int(text)
        if value < self._least:
            raise argparse.ArgumentTypeError(f"must be at least {self._least}")
        return value

    def __repr__(self) -> str:
        return "whole number"


if __name__ == "__main__":
    sys.exit(main())
