"""vllama.control.v1: the protos and the stubs that are generated from them (`make proto`)."""
