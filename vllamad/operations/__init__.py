"""Long work with progress and an end (floor 3)."""
