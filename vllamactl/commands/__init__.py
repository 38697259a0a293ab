"""One verb a file: its arguments, its call, its rendering (floor 4). Each module offers `command`."""
