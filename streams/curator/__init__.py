"""The curator: feedback about answers, joined with the answers, becomes examples to learn from."""
