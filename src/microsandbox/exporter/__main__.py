"""``python -m microsandbox.exporter`` is ``msb-metrics``."""

from microsandbox.exporter.program import program

program()
