"""The trainer: learns from samples without pause and publishes what it learned; owns control.v1."""
