"""Run the command ``megalodon`` from a checkout: ``python -m megalodon_tasks``."""

import sys

from megalodon_tasks.cli.main import main

sys.exit(main())
