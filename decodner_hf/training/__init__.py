"""Training a span-scoring model."""
