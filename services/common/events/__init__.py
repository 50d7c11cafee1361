"""What travels through Kafka: topics, the envelope, dead letters and their reasons, feedback kinds."""
