"""What predictions are worth: figures with intervals, thresholds, and the report that shows them."""
