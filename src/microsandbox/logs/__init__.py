"""A sandbox's logs, read from their files, whether it runs, has stopped or has crashed."""
