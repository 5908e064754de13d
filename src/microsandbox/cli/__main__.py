"""``python -m microsandbox.cli`` is ``msb``."""

from microsandbox.cli import program

program()
