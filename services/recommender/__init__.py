"""Recall, features, ranking: answers which items a user should see. Called by the router."""
