"""``python -m mentis_pool``: the command."""

import sys

from mentis_pool.cli import main

sys.exit(main())
