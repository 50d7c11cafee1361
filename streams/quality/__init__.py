"""Quality of the answers per variant and model version, drift and alarms."""
