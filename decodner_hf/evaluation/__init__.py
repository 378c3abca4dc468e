"""Scoring labelled data: exact-span metrics and calibration."""
