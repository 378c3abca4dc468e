"""The command line: one file a command. Imports nothing of `decodner_hf`, and so no torch, before a command runs."""
