"""Detection over HTTP: `align-detr serve`."""

EXTRA = "pip install 'align-detr[serve]'"
