"""Wide data: 13 numbers and 26 categories of 10 to 10 million values, of which two planted ones decide together."""
