"""What outlives a process: paths, configuration, files written atomically, locks, the catalogue."""
