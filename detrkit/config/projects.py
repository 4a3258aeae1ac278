"""The projects of this repository: folders of `projects/`, packages of the same names. A new one is added here alone.

`setup.py` runs this file, so it imports nothing.
"""

PROJECT_NAMES = ("align_detr", "co_detr", "sd_detr")
