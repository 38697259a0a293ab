"""vllamactl: the client. It talks gRPC over the daemon's Unix socket and never peeks behind it."""
