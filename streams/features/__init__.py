"""Keeps the online features in Redis up to date from feedback."""
