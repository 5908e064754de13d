"""A sandbox's network: what callers may ask for. This release has none to give but no network at all."""
