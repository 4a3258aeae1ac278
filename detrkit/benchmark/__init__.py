"""Speed and memory of training, inference and data loading."""
