"""The public Sandbox: options, creation, lifecycle, commands, files."""
