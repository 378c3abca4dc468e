"""Labelled data: readers, label maps, tag schemes, document context, decontamination."""
