"""Pure translators between client-facing wire formats and the engine's (floor 1)."""
