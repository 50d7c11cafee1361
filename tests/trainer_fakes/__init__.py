"""Collaborators of the trainer as real classes without sockets, clocks or torch."""
