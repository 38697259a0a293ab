"""What memory the machine has and who uses it (floor 2)."""
