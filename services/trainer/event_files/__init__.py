"""Files of events that users bring to `make train`: which files those are, what is in them, and what each cell means.

Reads what pandas, Spark, polars, DuckDB, Hive and hands write (tests/event_files holds a matrix of their files). Whatever cannot be read
without guessing is refused: the message names file, column, row, value and what to do.
"""
