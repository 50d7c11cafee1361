"""The small shared kernel: what two parts of the mesh must agree on. Imports no service and no stream."""
