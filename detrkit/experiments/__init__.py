"""Experiments: many trainings with several seeds, compared in one table."""

CONSOLE = "console.txt"  # output of the commands of a training, in its folder
