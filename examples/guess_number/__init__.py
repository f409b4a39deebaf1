"""Two agents who know some of a number's bits each."""
