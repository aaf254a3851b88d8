"""Writers of what the docs and the README show, from rows and runs."""
