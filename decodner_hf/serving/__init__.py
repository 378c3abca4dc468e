"""Serves the pipeline to others: over HTTP, on a page, in spaCy. Each file is an optional extra of its own."""
