"""The contract between the API and the workers; it knows no web framework and no Celery."""
