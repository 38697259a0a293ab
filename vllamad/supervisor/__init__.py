"""Makes decisions true in processes (floor 3)."""
