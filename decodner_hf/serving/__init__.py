"""Serves the pipeline to others: over HTTP, on a page. Each is an optional extra; nothing is imported here."""
