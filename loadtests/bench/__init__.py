"""What the project promises about speed, row by row: `make bench`. A row is measured beside its peer in one run."""
