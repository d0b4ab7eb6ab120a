"""``python -m budget_search`` is the command ``budget-search``."""

import sys

from budget_search.cli.main import main

sys.exit(main())
