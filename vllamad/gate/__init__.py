"""Turns requests into leases on ready workers, and carries the bytes (floor 3)."""
