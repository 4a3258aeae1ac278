"""Utilities: processes, logging, metrics, random seeds, files, drawing."""
