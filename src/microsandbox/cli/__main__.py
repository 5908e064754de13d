"""``python -m microsandbox.cli`` is ``msb``."""

import sys

from microsandbox.cli import main

sys.exit(main())
