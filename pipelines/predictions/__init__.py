"""The table of predictions: its columns, its commits, the runs beside it, and questions to it."""
