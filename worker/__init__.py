"""The worker side: takes runs from the queues and carries them out; it knows no HTTP."""
