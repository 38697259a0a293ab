"""What both programs share: the wire format, the table of failures and the version (floor 0)."""

__version__ = "0.1.0"
