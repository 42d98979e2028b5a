"""What operators look at: health, metrics, history, accuracy, traces; may import `serving` and what is below."""
