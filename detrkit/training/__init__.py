"""Trainings that resume exactly and keep what they have when something breaks; `loop.train` is the way in.

Written against public names of detectron2, detrex and PyTorch.
"""
