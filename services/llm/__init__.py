"""The language model: vLLM in this process behind gRPC streaming, with adapters that come and go by name."""
