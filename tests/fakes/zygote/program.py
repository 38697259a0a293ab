"""A program that runs what it is told on its command line, as ``python -c`` does, but is started by ``-m``."""

import sys

exec(sys.argv[1])
