"""`python -m vitscale.cli`, where the command is not on the path."""

import sys

from vitscale.cli import main

sys.exit(main())
