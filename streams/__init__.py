"""Faust apps: one folder each. A stream imports itself, services.common and the stubs."""
