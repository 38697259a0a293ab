"""Children: launch, watch, signal and reap whole trees (floor 2)."""
