"""The operating system around the daemon: clock, signals, logs, service manager (floor 2)."""
