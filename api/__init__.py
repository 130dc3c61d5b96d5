"""The HTTP front end; it knows no Celery and, but for the one-machine mode, starts no process."""
