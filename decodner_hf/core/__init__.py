"""The engine: everything that travels with a checkpoint, from text to entities."""
