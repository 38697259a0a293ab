"""vLLM: the command line it needs and the HTTP it speaks (floor 2). Executed, never imported."""
