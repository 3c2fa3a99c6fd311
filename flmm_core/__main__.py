"""`python -m flmm_core` is the command `flmm`."""

import sys

from flmm_core.cli import main

sys.exit(main())
