"""Processes, logging, metrics and randomness: what the rest of the engine rests on."""
