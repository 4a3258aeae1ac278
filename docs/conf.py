"""The documentation as a site: `make docs`."""

project = "Align-DETR"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = project
html_show_sphinx = html_show_copyright = False
myst_heading_anchors = 3  # links such as method.md#options, as they work on GitHub
