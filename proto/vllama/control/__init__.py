"""The control plane's protocol, by version."""
