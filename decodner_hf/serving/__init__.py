"""Serves the pipeline to others: over HTTP, on a page, in spaCy. Each is an optional extra; none is imported here."""
