"""vllamad: the daemon. It supervises vLLM workers and serves Ollama, OpenAI and Anthropic clients."""
