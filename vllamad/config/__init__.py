"""Settings: one table, several layers, every value knows its source (floor 2)."""
