"""The retriever's decisions, pure: documents and passages, fusion, search. No I/O, no library of an index, a model or a file format."""
