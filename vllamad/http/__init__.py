"""The HTTP faces (floor 4): they translate and decide nothing."""
