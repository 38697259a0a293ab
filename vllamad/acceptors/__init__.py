"""The HTTP face in several processes (floor 4): what accepts beside the daemon, and how it asks the daemon."""
