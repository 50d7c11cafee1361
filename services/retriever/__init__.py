"""The retriever: finds passages in files and in the catalogue, by meaning and by words."""
