"""Backends: modules with the functions that `dispatch` lists, each of which knows where it runs.

One that takes long to import is a package with these functions, which are asked first:

    missing() -> str | None            why no problem can run on it in this installation
    misplaced(device) -> str | None    why it runs nothing on this type of device
    load() -> module                   imports the rest: what has the functions that `dispatch` lists
"""
