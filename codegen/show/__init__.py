"""What the terminal shows: a table, a tree, JSON, a diff. Rich is imported inside these modules only."""
