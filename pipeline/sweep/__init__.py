"""Many experiments at once: DVC's queue says what to run, Ray runs it, and it comes back as DVC's experiments.

An experiment travels as git commits (a bundle), and comes back as its experiment's ref and the objects of DVC's cache
that home lacks. No shared file system is needed.
"""
