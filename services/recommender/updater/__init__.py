"""The updater: the one process of a host that writes the mapped tables. It follows bases and deltas, and serves nothing but its health."""
