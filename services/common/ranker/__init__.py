"""What trainer, ranker, recommender and streams must agree on about ranking: feature spec and rows, deltas, tables, networks."""
