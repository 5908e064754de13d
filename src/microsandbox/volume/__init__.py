"""Volumes: file systems that outlive the sandboxes they are mounted into."""
