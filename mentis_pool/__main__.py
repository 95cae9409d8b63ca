"""The command, as ``mentis-pool`` and as ``python -m mentis_pool``."""

import signal
import sys


def main() -> int:
    """As `mentis_pool.cli.main`, whose import takes a while."""
    # Raised within an import, KeyboardInterrupt is a long traceback, or is lost in a callback.
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if raises:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mentis_pool import cli

    if raises:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
