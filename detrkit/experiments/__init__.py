"""Many trainings: grids of settings, seeds, tables with intervals."""
