"""What every service stands on: errors, settings, telemetry, gRPC, Kafka, artifacts, control. Knows no model and no domain."""
