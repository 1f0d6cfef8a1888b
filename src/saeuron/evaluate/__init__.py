"""Protocols that measure a pipeline, however it was made to forget."""
