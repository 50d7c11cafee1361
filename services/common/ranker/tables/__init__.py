"""Embedding tables: rows by 64-bit id, for the trainer in ordinary memory, for the replicas of a host in mapped files."""
