"""The host process of one sandbox, and its owner's side: spawning it, holding it, waiting for it."""
