"""Ollama's chat templates: Go templates as they use them, and the prompts that they make (floor 1)."""
