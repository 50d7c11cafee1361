"""What the processes of the language half must agree on: the base model's name and place, adapters and their store. No torch, no gRPC."""
