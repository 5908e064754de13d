"""Snapshots: the writable layer of a stopped sandbox, kept."""
