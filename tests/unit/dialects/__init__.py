"""The compatible surfaces, without a server."""
