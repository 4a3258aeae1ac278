"""HTML reports of trainings and of alignment."""
