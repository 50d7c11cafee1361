"""The feedback collector: takes what users did, answers once Kafka has it, and leaves the joining to later."""
