"""The router: the only public gRPC API of the mesh."""
