"""The ranking networks, shared by the trainer and the Triton backend. Imported in the ml environment only: they need torch."""
