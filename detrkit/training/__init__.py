"""Train and evaluate detectors; start reading at `loop.train`.

Trainings resume exactly, and lose little when a process, a disk or a machine fails.

Written against public names of detectron2, detrex and PyTorch.
"""
