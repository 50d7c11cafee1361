"""The operator's commands on a running mesh: why, rollback, pause, resume, retrain, dlq. See command_line.py."""
