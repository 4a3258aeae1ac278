"""Small datasets in COCO's layout: drawn shapes, or a part of a real one. Without PyTorch."""
