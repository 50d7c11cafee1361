"""The ranking network, shared by the trainer and the Triton backend. Imported in the ml environment only (it needs torch)."""
