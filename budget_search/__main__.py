"""``python -m budget_search`` is the command ``budget-search``."""

import sys

from budget_search.cli import main

sys.exit(main())
