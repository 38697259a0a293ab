"""Where the engine has its entry."""

import sys

from engine import serve

serve(sys.argv[1:])
