"""Versions: of this distribution, and of the public API it implements."""

DISTRIBUTION_VERSION = "0.1.0"

#: The microsandbox release whose Python API, CLI and agent protocol this one follows.
VERSION = "0.5.6"
