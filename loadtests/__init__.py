"""Load, replay and the demo: drives the mesh from outside, through its public doors."""
