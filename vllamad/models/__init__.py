"""The catalogue: names to models, joining the store and the workers (floor 3)."""
