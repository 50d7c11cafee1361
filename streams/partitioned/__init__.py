"""What the streams share that join two topics of equal partitioning, partition by partition. Knows no topic and no event."""
