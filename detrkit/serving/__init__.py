"""Detection over HTTP: `align-detr serve`."""

from detrkit.runtime.extras import pip_install

EXTRA = pip_install("serve")
