"""What a Recommend costs in processor time, process by process and stage by stage, beside another checkout of the project."""
