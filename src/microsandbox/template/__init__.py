"""Memory templates: guests that were booted once, from which sandboxes go on."""
