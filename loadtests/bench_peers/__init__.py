"""Peers that serve what a Recommend computes: LitServe, BentoML and Ray Serve around the mesh's own features, rows and network.

What differs between a peer and the mesh is how a request gets there and back, and how many share a step: so each peer runs this project's
fastest code for the work itself, in the environment of the model with the peer's packages on top (installed.py). job.py is that work;
NAME_app.py serves it; http_loop.py asks; `loadtests.bench.peers` compares.
"""
