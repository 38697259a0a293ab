"""The control plane over gRPC (floor 4): it translates and decides nothing."""
