"""`clinvk top`: a live view of queue, workers and runs in the terminal."""
