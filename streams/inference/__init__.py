"""The asynchronous door: questions that may wait come by Kafka, are answered by the router, and go back by Kafka."""
